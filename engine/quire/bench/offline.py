"""`quire bench latency` and `throughput`: the engine in this process, without HTTP."""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quire.bench.datasets import IdPool, synthetic_requests
from quire.bench.options import DatasetConfig, check_at_least
from quire.bench.progress import progress
from quire.bench.request import BenchRequest
from quire.bench.serve import text_requests
from quire_engine.config import EngineConfig, option
from quire_engine.errors import ConfigError
from quire_engine.model.source import resolve
from quire_engine.outputs import RequestOutput
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
    disable_detokenize: bool = option(False, "leave out turning tokens into text")
    output_json: str | None = option(None, "file for the result")

    def __post_init__(self) -> None:
        check_at_least("n", self.n, 1)


class OfflineEngine(Protocol):
    """What is used of `quire.LLM`."""

    def generate(
        self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True
    ) -> list[RequestOutput]: ...

    def get_tokenizer(self) -> Any: ...

    def close(self) -> None: ...


def measure_latency(
    options: Mapping[str, Any], config: LatencyConfig, *, out: Any = sys.stdout
) -> dict[str, Any]:
    """Run the batch again and again; print and return the distribution of its duration."""
    rng = np.random.default_rng(options.get("seed", 0))
    pool = IdPool(vocabulary(options))
    params = SamplingParams(
        n=config.n,
        ignore_eos=True,
        max_tokens=config.output_len,
        detokenize=not config.disable_detokenize,
    )
    batch = [_tokens(pool.draw(config.input_len, rng)) for _ in range(config.batch_size)]
    # The same prompts come every time: with prefix caching only the first would be measured.
    llm = make_llm({"enable_prefix_caching": False, **options})
    try:
        for _ in range(config.num_iters_warmup):
            llm.generate(batch, params, use_tqdm=False)
        latencies = []
        with progress("batches", config.num_iters) as advance:
            for _ in range(config.num_iters):
                started_at = time.perf_counter()
                llm.generate(batch, params, use_tqdm=False)
                latencies.append(time.perf_counter() - started_at)
                advance()
    finally:
        llm.close()
    result = latency_result(latencies, model_id(options))
    out.write(f"Avg latency: {result['avg_latency']} seconds\n")
    for percent, value in result["percentiles"].items():
        out.write(f"{percent}% percentile latency: {value} seconds\n")
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
    llm = make_llm(options)
    try:
        requests = _requests(llm, options, dataset)
        prompts = [_prompt(request) for request in requests]
        params = [
            SamplingParams(
                n=config.n,
                ignore_eos=True,
                max_tokens=request.output_len,
                detokenize=not config.disable_detokenize,
            )
            for request in requests
        ]
        started_at = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=sys.stderr.isatty())
        elapsed_s = time.perf_counter() - started_at
    finally:
        llm.close()
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
    }
    write_json(config.output_json, result)
    return result


class _EngineCounter:
    """Counts tokens with the engine's own tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    async def count(self, text: str, *, add_special_tokens: bool) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    async def ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _requests(
    llm: OfflineEngine, options: Mapping[str, Any], dataset: DatasetConfig
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


def make_llm(options: Mapping[str, Any]) -> OfflineEngine:
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
