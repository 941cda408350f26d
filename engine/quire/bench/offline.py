"""`quire bench latency` and `throughput`: the engine in this process, without HTTP."""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quire.bench.ceilings import ceilings_at_start
from quire.bench.counted_requests import text_requests
from quire.bench.datasets import IdPool, synthetic_requests
from quire.bench.metering import Run, RunFigures, metered, summarize_runs
from quire.bench.options import DatasetConfig, check_at_least
from quire.bench.progress import progress
from quire.bench.request import BenchRequest
from quire.offline import OfflineEngine
from quire_engine.config import EngineConfig, option
from quire_engine.core.messages import Roofline
from quire_engine.errors import ConfigError
from quire_engine.model.source import resolve
from quire_engine.outputs import RequestOutput
from quire_engine.runner.roofline import Ceilings, under
from quire_engine.sampling_params import SamplingParams

PERCENTILES = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyConfig:
    """The batch to run, and how often."""

    input_len: int = option(32, "prompt tokens")
    output_len: int = option(128, "generated tokens")
    batch_size: int = option(8, "prompts in the batch")
    n: int = option(1, "completions per prompt")
    num_iters_warmup: int = option(10, "batches before the measurement")
    num_iters: int = option(30, "batches measured")
    temperature: float = option(1.0, "0 is greedy")
    top_p: float = option(1.0, "share of probability to sample from")
    disable_detokenize: bool = option(False, "leave out turning tokens into text")
    output_json: str | None = option(None, "file for the result")

    def __post_init__(self) -> None:
        for name in ("input_len", "output_len", "batch_size", "n", "num_iters"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("num_iters_warmup", self.num_iters_warmup, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputConfig:
    """How each prompt is sampled, and where the result goes."""

    n: int = option(1, "completions per prompt")
    temperature: float = option(1.0, "0 is greedy")
    top_p: float = option(1.0, "share of probability to sample from")
    disable_detokenize: bool = option(False, "leave out turning tokens into text")
    output_json: str | None = option(None, "file for the result")

    def __post_init__(self) -> None:
        check_at_least("n", self.n, 1)


class MeasuredLLM(Protocol):
    """What is used of `quire.LLM`."""

    @property
    def llm_engine(self) -> OfflineEngine: ...

    def generate(
        self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True
    ) -> list[RequestOutput]: ...

    def get_tokenizer(self) -> Any: ...

    def close(self) -> None: ...


def measure_latency(
    options: Mapping[str, Any], config: LatencyConfig, *, out: Any = sys.stdout
) -> dict[str, Any]:
    """Run the batch again and again; print and return how long it takes, and its tokens."""
    rng = np.random.default_rng(options.get("seed", 0))
    pool = IdPool(vocabulary(options))
    params = sampling_params(config, config.output_len)
    batch = [_tokens(pool.draw(config.input_len, rng)) for _ in range(config.batch_size)]
    # The same prompts come every time: with prefix caching only the first would be measured.
    ceilings = ceilings_at_start(EngineConfig.from_flat(options))
    llm = make_llm({"enable_prefix_caching": False, **options})
    runs: list[Run] = []
    outputs: list[list[RequestOutput]] = []
    try:
        for _ in range(config.num_iters_warmup):
            llm.generate(batch, params, use_tqdm=False)
        with progress("batches", config.num_iters) as advance:
            for _ in range(config.num_iters):
                with metered(llm.llm_engine) as run:
                    outputs.append(llm.generate(batch, params, use_tqdm=False))
                runs.append(run)
                advance()
        figures = summarize_runs(runs, outputs, roofline_of(llm, ceilings))
    finally:
        llm.close()
    result = latency_result([run.elapsed_s for run in runs], model_id(options))
    out.write(f"Avg latency: {result['avg_latency']} seconds\n")
    for percent, value in result["percentiles"].items():
        out.write(f"{percent}% percentile latency: {value} seconds\n")
    rate = config.n * config.batch_size * config.output_len / result["avg_latency"]
    out.write(f"Throughput: {rate:.2f} output tokens/s\n")
    result |= {"output_tokens_per_second": rate, **_reported(figures, ceilings, out)}
    write_json(config.output_json, result)
    return result


def latency_result(latencies: Sequence[float], model: str) -> dict[str, Any]:
    """Return the fields of the result, named as vLLM's."""
    values = np.percentile(latencies, PERCENTILES)
    return {
        "model_id": model,
        "avg_latency": float(np.mean(latencies)),
        "latencies": list(latencies),
        "percentiles": {str(p): float(v) for p, v in zip(PERCENTILES, values, strict=True)},
    }


def measure_throughput(
    options: Mapping[str, Any],
    dataset: DatasetConfig,
    config: ThroughputConfig,
    *,
    out: Any = sys.stdout,
) -> dict[str, Any]:
    """Run all prompts as fast as the engine can; print and return tokens a second."""
    ceilings = ceilings_at_start(EngineConfig.from_flat(options))
    llm = make_llm(options)
    try:
        requests = _requests(llm, options, dataset)
        prompts = [_prompt(request) for request in requests]
        params = [sampling_params(config, request.output_len) for request in requests]
        with metered(llm.llm_engine) as run:
            outputs = llm.generate(prompts, params)
        figures = summarize_runs([run], [outputs], roofline_of(llm, ceilings))
    finally:
        llm.close()
    elapsed_s = run.elapsed_s
    num_prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    num_output_tokens = sum(len(c.token_ids) for output in outputs for c in output.outputs)
    total = num_prompt_tokens + num_output_tokens
    out.write(
        f"Throughput: {len(requests) / elapsed_s:.2f} requests/s, "
        f"{total / elapsed_s:.2f} total tokens/s, "
        f"{num_output_tokens / elapsed_s:.2f} output tokens/s\n"
        f"Total num prompt tokens:  {num_prompt_tokens}\n"
        f"Total num output tokens:  {num_output_tokens}\n"
    )
    result = {
        "model_id": model_id(options),
        "elapsed_time": elapsed_s,
        "num_requests": len(requests),
        "total_num_tokens": total,
        "requests_per_second": len(requests) / elapsed_s,
        "tokens_per_second": total / elapsed_s,
        "output_tokens_per_second": num_output_tokens / elapsed_s,
        **_reported(figures, ceilings, out),
    }
    write_json(config.output_json, result)
    return result


def sampling_params(config: LatencyConfig | ThroughputConfig, num_tokens: int) -> SamplingParams:
    """Return parameters that generate exactly so many tokens."""
    return SamplingParams(
        n=config.n,
        temperature=config.temperature,
        top_p=config.top_p,
        ignore_eos=True,
        max_tokens=num_tokens,
        detokenize=not config.disable_detokenize,
    )


def roofline_of(llm: MeasuredLLM, ceilings: Ceilings) -> Roofline | None:
    """Return what bounds the model's steps on its device; None if its runner does not tell."""
    roofline = llm.llm_engine.core.describe().roofline
    return None if roofline is None else under(roofline, ceilings)


def _reported(figures: RunFigures, ceilings: Ceilings, out: Any) -> dict[str, Any]:
    """Print the figures of runs and return them."""
    out.write("".join(f"{line}\n" for line in figures.lines(ceilings.source)))
    return figures.to_json()


class _EngineCounter:
    """Counts tokens with the engine's own tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    async def count(self, text: str, *, add_special_tokens: bool) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    async def ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _requests(
    llm: MeasuredLLM, options: Mapping[str, Any], dataset: DatasetConfig
) -> list[BenchRequest]:
    rng = np.random.default_rng(dataset.seed)
    if dataset.dataset_name in ("sharegpt", "custom"):
        counter = _EngineCounter(llm.get_tokenizer())
        return asyncio.run(text_requests(dataset, counter, rng))
    return synthetic_requests(dataset, IdPool(vocabulary(options)), rng)


def _prompt(request: BenchRequest) -> Any:
    return request.prompt if isinstance(request.prompt, str) else _tokens(request.prompt)


def _tokens(token_ids: list[int]) -> dict[str, list[int]]:
    return {"prompt_token_ids": token_ids}


def make_llm(options: Mapping[str, Any]) -> MeasuredLLM:
    """Start the engine in this process."""
    from quire import LLM

    return LLM(**options)


def model_id(options: Mapping[str, Any]) -> str:
    """Return the name of the model that the options choose."""
    return resolve(EngineConfig.from_flat(options).model).name


def vocabulary(options: Mapping[str, Any]) -> int:
    """Return the number of token ids of the model that the options choose."""
    source = resolve(EngineConfig.from_flat(options).model)
    return int(source.config["vocab_size"])


def write_json(path: str | None, result: Mapping[str, Any]) -> None:
    """Write a result where it is wanted.

    Raises:
        ConfigError: the file cannot be written.
    """
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(result, indent=4) + "\n")
    except OSError as error:
        raise ConfigError(f"output_json {path}: {error.strerror}") from None
