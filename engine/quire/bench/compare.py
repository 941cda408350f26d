"""`quire bench compare`: the same work by Quire and by transformers, in one run, in turns.

    prefill          num_prompt / seconds of one generated token
    decode           batch * (num_decode - 1) / (seconds of num_decode tokens - seconds of one)
    cached prefix    seconds to the first token, the second time a prompt comes / the first time

Both sides are timed from outside, by the wall clock, on fresh random prompts; turns alternate so
that a slow minute of the machine is shared. Seconds are medians over the rounds; those of a single
one may be less than nothing, where two times are subtracted on a busy machine.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from quire.bench.offline import MeasuredLLM
from quire.bench.options import check_at_least
from quire_engine.config import option
from quire_engine.errors import ConfigError
from quire_engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """What is measured, and how often."""

    prefill_len: int = option(512, "prompt tokens of the prefill measurement")
    decode_prompt_len: int = option(32, "prompt tokens of the decode measurements")
    decode_len: int = option(64, "generated tokens of the decode measurements")
    decode_batch: int = option(32, "prompts of the batched decode measurement")
    prefix_len: int = option(1024, "prompt tokens of the cached-prefix measurement")
    num_rounds: int = option(5, "rounds; figures are medians over them")
    output_json: str | None = option(None, "file for the result")

    def __post_init__(self) -> None:
        for name in ("prefill_len", "decode_prompt_len", "decode_batch", "prefix_len"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("decode_len", self.decode_len, 2)
        check_at_least("num_rounds", self.num_rounds, 1)


class Generator(Protocol):
    """Generates greedily from token ids; every prompt of a batch is equally long."""

    def generate(self, prompts: Sequence[list[int]], num_tokens: int) -> None: ...


class QuireGenerator:
    """Quire's engine in this process."""

    def __init__(self, llm: MeasuredLLM) -> None:
        self._llm = llm

    def generate(self, prompts: Sequence[list[int]], num_tokens: int) -> None:
        params = SamplingParams(
            temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
        )
        batch = [{"prompt_token_ids": prompt} for prompt in prompts]
        self._llm.generate(batch, params, use_tqdm=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One line of the table: medians in tokens a second."""

    measure: str
    quire: float
    transformers: float

    @property
    def ratio(self) -> float:
        return self.quire / self.transformers


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixHit:
    """Seconds to the first token of a prompt: new, and cached."""

    first_s: float
    second_s: float

    @property
    def share(self) -> float:
        return self.second_s / self.first_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """One line of the table before it is measured."""

    name: str
    num_tokens: int
    seconds: Callable[[Generator], float]
    """Time the tokens once."""

    def speed(self, samples: Sequence[float]) -> float:
        """Return tokens a second.

        Raises:
            ConfigError: the tokens took no time, by the median of these seconds.
        """
        seconds = statistics.median(samples)
        if seconds <= 0:
            raise ConfigError(
                f"{self.name}: {self.num_tokens} tokens took {seconds * 1000:.3f} ms by the median "
                f"of {len(samples)} rounds: the machine does too much else; give it more to do "
                "with --decode-len, or more --num-rounds"
            )
        return self.num_tokens / seconds


class Comparison:
    """Times generators on fresh random prompts."""

    def __init__(
        self,
        config: CompareConfig,
        vocabulary: int,
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config = config
        self._vocabulary = vocabulary
        self._rng = np.random.default_rng(seed)
        self._clock = clock

    def speeds(
        self,
        quire: Generator,
        transformers: Generator,
        *,
        on_round: Callable[[], None] = lambda: None,
    ) -> list[Speed]:
        """Measure every line of the table on both, in turns; the first round only warms up.

        Raises:
            ConfigError: the machine is too busy for the little that is asked of it.
        """
        measures = self._measures()
        samples: list[tuple[list[float], list[float]]] = [([], []) for _ in measures]
        for number in range(self._config.num_rounds + 1):
            for measure, both in zip(measures, samples, strict=True):
                for values, generator in zip(both, (quire, transformers), strict=True):
                    seconds = measure.seconds(generator)
                    if number > 0:
                        values.append(seconds)
            on_round()
        return [
            Speed(
                measure=measure.name,
                quire=measure.speed(ours),
                transformers=measure.speed(theirs),
            )
            for measure, (ours, theirs) in zip(measures, samples, strict=True)
        ]

    def prefix_hit(self, quire: Generator) -> PrefixHit:
        """Measure the time to the first token of new prompts, and of the same ones again."""
        firsts, seconds = [], []
        for number in range(self._config.num_rounds + 1):
            prompts = self._prompts(1, self._config.prefix_len)
            first_s, second_s = (self._seconds(quire, prompts, 1) for _ in range(2))
            if number > 0:
                firsts.append(first_s)
                seconds.append(second_s)
        return PrefixHit(first_s=statistics.median(firsts), second_s=statistics.median(seconds))

    def _measures(self) -> list[_Measure]:
        prefill_len = self._config.prefill_len
        prefill = _Measure(
            name=f"prefill, {prefill_len} tokens",
            num_tokens=prefill_len,
            seconds=lambda generator: self._seconds(generator, self._prompts(1, prefill_len), 1),
        )
        return [prefill, self._decode(1), self._decode(self._config.decode_batch)]

    def _decode(self, batch: int) -> _Measure:
        return _Measure(
            name=f"decode, batch {batch}",
            num_tokens=batch * (self._config.decode_len - 1),
            seconds=lambda generator: self._decode_s(generator, batch),
        )

    def _decode_s(self, generator: Generator, batch: int) -> float:
        # Different prompts for the two, or the second would find the first one's prefix cached.
        one_s, all_s = (
            self._seconds(
                generator, self._prompts(batch, self._config.decode_prompt_len), num_tokens
            )
            for num_tokens in (1, self._config.decode_len)
        )
        return all_s - one_s

    def _prompts(self, batch: int, num_tokens: int) -> list[list[int]]:
        ids = self._rng.integers(0, self._vocabulary, (batch, num_tokens))
        return [[int(token) for token in row] for row in ids]

    def _seconds(self, generator: Generator, prompts: list[list[int]], num_tokens: int) -> float:
        started_at = self._clock()
        generator.generate(prompts, num_tokens)
        return self._clock() - started_at


def compare_json(
    speeds: Sequence[Speed], prefix: PrefixHit, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the result for a file."""
    lines = [asdict(speed) | {"ratio": speed.ratio} for speed in speeds]
    return {**about, "speeds": lines, "prefix_hit": asdict(prefix) | {"share": prefix.share}}


def format_comparison(speeds: Sequence[Speed], prefix: PrefixHit, prefix_len: int) -> str:
    """Return the table that is printed."""
    width = max(len(speed.measure) for speed in speeds) + 8
    lines = [f"{'tokens a second':<{width}}{'quire':>10}{'transformers':>14}{'ratio':>8}"]
    lines += [
        f"{s.measure:<{width}}{s.quire:>10.1f}{s.transformers:>14.1f}{s.ratio:>7.2f}x"
        for s in speeds
    ]
    lines.append(
        f"time to first token, {prefix_len} tokens: {prefix.first_s * 1000:.1f} ms new, "
        f"{prefix.second_s * 1000:.1f} ms cached ({prefix.share:.1%})"
    )
    return "\n".join(lines)
