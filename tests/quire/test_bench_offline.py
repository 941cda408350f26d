"""The benchmarks that run in this process: figures by hand, then on a tiny random model."""

import io
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quire.bench.compare import (
    CompareConfig,
    Comparison,
    PrefixHit,
    Speed,
    compare_json,
    format_comparison,
)
from quire.bench.comparing import run_comparison
from quire.bench.offline import (
    LatencyConfig,
    ThroughputConfig,
    latency_result,
    measure_latency,
    measure_throughput,
)
from quire.bench.options import DatasetConfig
from quire.bench.transformers_generator import TransformersGenerator
from quire_engine.config import ModelConfig
from quire_engine.errors import ConfigError
from quire_engine.model.source import resolve

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    """Options of an engine with a model that a test can afford."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return {
        "model": str(tmp_path),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "kv_cache_memory_bytes": 1 << 22,
        "max_num_seqs": 8,
    }


class TimedGenerator:
    """Takes known times: prefill and decode at given speeds, prompts seen before for less."""

    def __init__(self, prefill: float, decode: float, *, hit_share: float = 1.0) -> None:
        self.now = 0.0
        self.batches: list[tuple[int, int, int]] = []
        self._prefill, self._decode, self._hit_share = prefill, decode, hit_share
        self._seen: set[tuple[int, ...]] = set()

    def generate(self, prompts: Sequence[list[int]], num_tokens: int) -> None:
        self.batches.append((len(prompts), len(prompts[0]), num_tokens))
        for prompt in prompts:
            is_hit = tuple(prompt) in self._seen
            self._seen.add(tuple(prompt))
            share = self._hit_share if is_hit else 1.0
            self.now += len(prompt) / self._prefill * share
        self.now += len(prompts) * (num_tokens - 1) / self._decode


def clock_of(*generators: TimedGenerator) -> Callable[[], float]:
    return lambda: sum(generator.now for generator in generators)


def test_speeds_are_those_of_the_generators_whatever_else_takes_time() -> None:
    fast, slow = TimedGenerator(1000, 80), TimedGenerator(500, 20)
    config = CompareConfig(num_rounds=3, decode_batch=4)
    comparison = Comparison(config, 1000, clock=clock_of(fast, slow))

    speeds = comparison.speeds(fast, slow)

    assert [speed.measure for speed in speeds] == [
        "prefill, 512 tokens",
        "decode, batch 1",
        "decode, batch 4",
    ]
    assert [speed.quire for speed in speeds] == pytest.approx([1000, 80, 80])
    assert [speed.transformers for speed in speeds] == pytest.approx([500, 20, 20])
    assert [speed.ratio for speed in speeds] == pytest.approx([2, 4, 4])


def test_both_do_the_same_work_and_no_prompt_comes_twice() -> None:
    ours, theirs = TimedGenerator(1000, 80), TimedGenerator(500, 20)
    config = CompareConfig(num_rounds=2, decode_batch=4, decode_len=8)

    Comparison(config, 1000, clock=clock_of(ours, theirs)).speeds(ours, theirs)

    assert ours.batches == theirs.batches
    assert ours.batches[:5] == [(1, 512, 1), (1, 32, 1), (1, 32, 8), (4, 32, 1), (4, 32, 8)]
    assert len(ours._seen) == sum(batch for batch, _, _ in ours.batches)


def test_a_cached_prefix_is_measured_on_new_prompts_each_round() -> None:
    generator = TimedGenerator(1000, 80, hit_share=0.05)
    config = CompareConfig(num_rounds=3)

    prefix = Comparison(config, 1000, clock=clock_of(generator)).prefix_hit(generator)

    assert prefix.first_s == pytest.approx(1.024)
    assert prefix.share == pytest.approx(0.05)


def test_the_table_shows_ratios_and_the_share_of_a_cached_prefix() -> None:
    speeds = [Speed(measure="decode, batch 1", quire=60.0, transformers=24.0)]
    prefix = PrefixHit(first_s=1.0, second_s=0.1)

    table = format_comparison(speeds, prefix, 1024)

    assert re.search(r"decode, batch 1 +60\.0 +24\.0 +2\.50x", table)
    assert "1024 tokens: 1000.0 ms new, 100.0 ms cached (10.0%)" in table
    assert compare_json(speeds, prefix, {"dtype": "bfloat16"}) == {
        "dtype": "bfloat16",
        "speeds": [
            {"measure": "decode, batch 1", "quire": 60.0, "transformers": 24.0, "ratio": 2.5}
        ],
        "prefix_hit": {"first_s": 1.0, "second_s": 0.1, "share": 0.1},
    }


def test_latency_percentiles_are_those_of_the_iterations() -> None:
    result = latency_result([1.0, 2.0, 3.0, 4.0, 5.0], "m")

    assert list(result) == ["model_id", "avg_latency", "latencies", "percentiles"]
    assert result["avg_latency"] == 3.0
    assert result["percentiles"] == pytest.approx(
        {"10": 1.4, "25": 2.0, "50": 3.0, "75": 4.0, "90": 4.6, "99": 4.96}
    )


def test_latency_runs_every_iteration_and_keeps_the_result(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    out, path = io.StringIO(), tmp_path / "latency.json"
    config = LatencyConfig(
        input_len=8,
        output_len=4,
        batch_size=2,
        num_iters_warmup=1,
        num_iters=3,
        disable_detokenize=True,
        output_json=str(path),
    )

    result = measure_latency(tiny, config, out=out)

    assert json.loads(path.read_text()) == result
    assert len(result["latencies"]) == 3
    assert min(result["latencies"]) > 0
    assert result["roofline"]["num_decode_steps"] == 3 * 3
    assert out.getvalue().startswith("Avg latency: ")
    assert "\n99% percentile latency: " in out.getvalue()
    assert result["output_tokens_per_second"] == pytest.approx(2 * 4 / result["avg_latency"])
    assert f"\nThroughput: {result['output_tokens_per_second']:.2f} output" in out.getvalue()


def test_throughput_counts_all_tokens(tiny: dict[str, Any], tmp_path: Path) -> None:
    out, path = io.StringIO(), tmp_path / "throughput.json"
    dataset = DatasetConfig(num_prompts=5, input_len=12, output_len=6)
    config = ThroughputConfig(n=2, disable_detokenize=True, output_json=str(path))

    result = measure_throughput(tiny, dataset, config, out=out)

    assert json.loads(path.read_text()) == result
    assert list(result)[:7] == [
        *("model_id", "elapsed_time", "num_requests"),
        *("total_num_tokens", "requests_per_second", "tokens_per_second"),
        "output_tokens_per_second",
    ]
    assert result["num_requests"] == 5
    assert result["total_num_tokens"] == 5 * (12 + 2 * 6)
    assert result["tokens_per_second"] == pytest.approx(120 / result["elapsed_time"])
    assert "Total num prompt tokens:  60\nTotal num output tokens:  60\n" in out.getvalue()


def test_a_benchmark_tells_when_tokens_came_and_how_near_the_device_was_to_its_limits(
    tiny: dict[str, Any],
) -> None:
    out = io.StringIO()
    dataset = DatasetConfig(num_prompts=3, input_len=12, output_len=6)
    config = ThroughputConfig(temperature=0.0, disable_detokenize=True)

    result = measure_throughput(tiny, dataset, config, out=out)

    names = [line.split(":")[0] for line in out.getvalue().splitlines()[3:]]
    assert names == [
        *("Time to first token (ms)", "Time per output token (ms)", "Inter-token latency (ms)"),
        *("Roofline, decode", "Roofline, prefill", "Roofline, all"),
    ]
    assert out.getvalue().endswith("limits measured on this CPU at the start\n")
    assert 0.0 < result["mean_ttft_ms"] < result["elapsed_time"] * 1000
    assert 0.0 < result["mean_tpot_ms"] <= result["p99_itl_ms"]
    roofline = result["roofline"]
    assert roofline["num_prefill_steps"] >= 1
    assert roofline["num_decode_steps"] == 5
    assert 0.0 < roofline["share"] < 1.0


def test_a_result_that_cannot_be_written_is_a_clear_error(tiny: dict[str, Any]) -> None:
    config = LatencyConfig(
        input_len=4,
        output_len=1,
        batch_size=1,
        num_iters_warmup=0,
        num_iters=1,
        disable_detokenize=True,
        output_json="/no/such/folder/x.json",
    )

    with pytest.raises(ConfigError, match=r"output_json /no/such/folder/x\.json"):
        measure_latency(tiny, config, out=io.StringIO())


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_a_comparison_runs_both_on_the_same_model(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CompareConfig(
        prefill_len=64,
        decode_prompt_len=8,
        decode_len=32,
        decode_batch=3,
        prefix_len=96,
        num_rounds=3,
        output_json=str(tmp_path / "compare.json"),
    )

    # Of this process alone: on a busy machine two times' difference can be less than nothing.
    result = run_comparison(tiny, config, clock=time.process_time)

    assert json.loads((tmp_path / "compare.json").read_text()) == result
    assert [line["measure"] for line in result["speeds"]] == [
        "prefill, 64 tokens",
        "decode, batch 1",
        "decode, batch 3",
    ]
    assert all(line["quire"] > 0 and line["transformers"] > 0 for line in result["speeds"])
    assert result["prefix_hit"]["share"] > 0
    assert result["dtype"] == "float32"
    assert "prefill, 64 tokens" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_transformers_generates_exactly_as_many_tokens_as_asked(tiny: dict[str, Any]) -> None:
    source = resolve(
        ModelConfig(model=tiny["model"], load_format="dummy", skip_tokenizer_init=True)
    )
    generator = TransformersGenerator.load(source, "float32", "cpu")
    lengths: list[int] = []
    inner = generator._model.generate

    def generate(**options: Any) -> Any:
        output = inner(**options)
        lengths.append(output.shape[1] - options["input_ids"].shape[1])
        return output

    generator._model.generate = generate
    rng = np.random.default_rng(0)
    for num_tokens in (1, 30):
        generator.generate(rng.integers(0, 160, (2, 5)).tolist(), num_tokens)

    assert lengths == [1, 30]
