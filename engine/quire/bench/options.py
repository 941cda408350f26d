"""Flags of the benchmarks; names and defaults are those of `vllm bench`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire_engine.config import option
from quire_engine.errors import ConfigError

DATASETS = ("random", "sharegpt", "custom", "prefix_repetition")
BACKENDS = ("openai", "openai-chat", "vllm")
METRICS = ("ttft", "tpot", "itl", "e2el")
RAMPS = ("linear", "exponential")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """What is asked: how many prompts, from where, how long."""

    dataset_name: str = option("random", "where prompts come from", choices=DATASETS)
    dataset_path: str | None = option(None, "file of the dataset: JSON for sharegpt, JSONL custom")
    num_prompts: int = option(1000, "number of requests")
    input_len: int | None = option(None, "prompt tokens; sets --random-input-len")
    output_len: int | None = option(None, "generated tokens; sets the --...-output-len of all")
    random_input_len: int = option(1024, "random: prompt tokens")
    random_output_len: int = option(128, "random: generated tokens")
    random_range_ratio: float = option(
        0.0, "random: lengths vary evenly by this share of themselves, in [0, 1)"
    )
    random_prefix_len: int = option(0, "random: tokens before the prompt that all requests share")
    sharegpt_output_len: int | None = option(None, "sharegpt: generated tokens; default: its own")
    custom_output_len: int = option(256, "custom: generated tokens where the file says nothing")
    prefix_repetition_prefix_len: int = option(256, "prefix_repetition: tokens of a shared prefix")
    prefix_repetition_suffix_len: int = option(256, "prefix_repetition: tokens after the prefix")
    prefix_repetition_num_prefixes: int = option(10, "prefix_repetition: different prefixes")
    prefix_repetition_output_len: int = option(128, "prefix_repetition: generated tokens")
    seed: int = option(0, "seed of prompts, lengths and arrival times")

    def __post_init__(self) -> None:
        for name in (
            *("num_prompts", "input_len", "output_len", "random_input_len", "random_output_len"),
            *("sharegpt_output_len", "custom_output_len", "prefix_repetition_suffix_len"),
            *("prefix_repetition_num_prefixes", "prefix_repetition_output_len"),
        ):
            check_at_least(name, getattr(self, name), 1)
        for name in ("random_prefix_len", "prefix_repetition_prefix_len"):
            check_at_least(name, getattr(self, name), 0)
        if not 0.0 <= self.random_range_ratio < 1.0:
            raise ConfigError(
                f"random_range_ratio must be in [0, 1), not {self.random_range_ratio}"
            )
        if self.dataset_name in ("sharegpt", "custom") and not self.dataset_path:
            raise ConfigError(f"--dataset-name {self.dataset_name} needs --dataset-path FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetConfig:
    """Which server is measured."""

    backend: str = option("openai", "API to use; openai and vllm: completions", choices=BACKENDS)
    base_url: str | None = option(None, "address of the server; default: http://HOST:PORT")
    host: str = option("127.0.0.1", "host of the server")
    port: int = option(8000, "port of the server")
    endpoint: str | None = option(None, "path of the API; default: by backend")
    model: str | None = option(None, "name of the model; default: the first that is served")
    served_model_name: str | None = option(None, "name to send, where it differs from --model")
    tokenizer: str | None = option(
        None, "tokenizer.json, its directory or a hub name; default: the server's /tokenize"
    )
    header: tuple[str, ...] = option((), "extra headers, NAME=VALUE")
    api_key: str | None = option(None, "key to send; default: QUIRE_API_KEY or OPENAI_API_KEY")
    ready_check_timeout_sec: int = option(
        0, "seconds to wait for the server to answer a first request; 0: do not ask"
    )

    def __post_init__(self) -> None:
        for item in self.header:
            if "=" not in item:
                raise ConfigError(f"--header takes NAME=VALUE, not {item!r}")

    @property
    def url(self) -> str:
        return (self.base_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def is_chat(self) -> bool:
        return self.backend == "openai-chat"

    @property
    def path(self) -> str:
        return self.endpoint or ("/v1/chat/completions" if self.is_chat else "/v1/completions")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """How requests arrive."""

    request_rate: float = option(math.inf, "requests a second; inf: all at once")
    burstiness: float = option(
        1.0, "1: Poisson arrivals; less: bursts; more: even; only with a --request-rate"
    )
    max_concurrency: int | None = option(None, "most requests in flight; default: no limit")
    num_warmups: int = option(0, "requests sent before the measurement")
    ramp_up_strategy: str | None = option(None, "how the request rate grows", choices=RAMPS)
    ramp_up_start_rps: float | None = option(None, "requests a second at the start of the ramp")
    ramp_up_end_rps: float | None = option(None, "requests a second at the end of the ramp")
    disable_tqdm: bool = option(False, "show no progress")

    def __post_init__(self) -> None:
        if not self.request_rate > 0:
            raise ConfigError(f"request_rate must be more than 0, not {self.request_rate}")
        if not self.burstiness > 0:
            raise ConfigError(f"burstiness must be more than 0, not {self.burstiness}")
        check_at_least("max_concurrency", self.max_concurrency, 1)
        check_at_least("num_warmups", self.num_warmups, 0)
        if self.ramp_up_strategy is not None:
            self._check_ramp()

    def _check_ramp(self) -> None:
        if self.request_rate != math.inf:
            raise ConfigError("--ramp-up-strategy replaces --request-rate; give one of them")
        if not (self.ramp_up_start_rps and self.ramp_up_end_rps):
            raise ConfigError("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps")
        if min(self.ramp_up_start_rps, self.ramp_up_end_rps) <= 0:
            raise ConfigError("--ramp-up-start-rps and --ramp-up-end-rps must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestConfig:
    """What every request carries."""

    ignore_eos: bool = option(False, "generate the full length, past end-of-sequence")
    temperature: float = option(0.0, "0 is greedy")
    top_p: float | None = option(None, "share of probability to sample from")
    top_k: int | None = option(None, "number of tokens to sample from")
    min_p: float | None = option(None, "least probability relative to the likeliest token")
    frequency_penalty: float | None = option(None, "penalty by count of a token so far")
    presence_penalty: float | None = option(None, "penalty of tokens that occurred")
    repetition_penalty: float | None = option(None, "factor on tokens that occurred")
    extra_body: dict[str, Any] | None = option(None, "JSON object merged into every request")

    def fields(self) -> dict[str, Any]:
        """Return the request's fields, without those left to the server."""
        penalties = ("frequency_penalty", "presence_penalty", "repetition_penalty")
        names = ("temperature", "top_p", "top_k", "min_p", *penalties)
        chosen = {name: value for name in names if (value := getattr(self, name)) is not None}
        eos = {"ignore_eos": True} if self.ignore_eos else {}
        return {**chosen, **eos, **(self.extra_body or {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """What is reported, and where it is kept."""

    percentile_metrics: str = option("ttft,tpot,itl", "what to report, of ttft,tpot,itl,e2el")
    metric_percentiles: str = option("99", "percentiles to report, such as 50,90,99.9")
    goodput: tuple[str, ...] = option(
        (), "limits in milliseconds, such as ttft:500 tpot:50 e2el:5000: count requests within all"
    )
    save_result: bool = option(False, "write the result to a JSON file")
    save_detailed: bool = option(False, "the file holds every request too")
    append_result: bool = option(False, "append to the file, one JSON object a line")
    result_dir: str | None = option(None, "folder of the file; default: here")
    result_filename: str | None = option(
        None, "name of the file; default: by label, rate, concurrency, model and date"
    )
    plot: str | None = option(
        None, "HTML file to write latencies and throughput over time to, as plots"
    )
    label: str | None = option(None, "label in the result; default: the backend")
    metadata: tuple[str, ...] = option((), "KEY=VALUE pairs for the result")

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if metric not in METRICS:
                raise ConfigError(
                    f"percentile_metrics must be of {','.join(METRICS)}; not {metric!r}"
                )
        if any(not 0 <= value <= 100 for value in self.percentiles):
            raise ConfigError(f"metric_percentiles must be in [0, 100]: {self.metric_percentiles}")
        _ = self.limits_ms
        # Told before the measurement, which may take an hour.
        if self.plot is not None and not Path(self.plot).absolute().parent.is_dir():
            raise ConfigError(f"--plot {self.plot}: its folder does not exist; create it")
        if self.plot is not None and Path(self.plot).is_dir():
            raise ConfigError(f"--plot {self.plot} is a folder; name a file in it")
        for item in self.metadata:
            if "=" not in item:
                raise ConfigError(f"--metadata takes KEY=VALUE, not {item!r}")

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.percentile_metrics.split(",") if name.strip())

    @property
    def percentiles(self) -> tuple[float, ...]:
        try:
            return tuple(float(item) for item in self.metric_percentiles.split(","))
        except ValueError:
            message = f"metric_percentiles must be numbers, not {self.metric_percentiles!r}"
            raise ConfigError(message) from None

    @property
    def limits_ms(self) -> dict[str, float]:
        """Return the goodput limit of each metric that has one."""
        limits = {}
        for item in self.goodput:
            name, _, value = item.partition(":")
            try:
                limits[name] = float(value)
            except ValueError:
                raise ConfigError(f"goodput takes NAME:MILLISECONDS, not {item!r}") from None
            if name not in ("ttft", "tpot", "e2el") or limits[name] < 0:
                raise ConfigError(f"goodput is of ttft, tpot and e2el, at least 0; not {item!r}")
        return limits


def check_at_least(name: str, value: float | None, limit: float) -> None:
    """Raise ConfigError when a given value is below its limit."""
    if value is not None and value < limit:
        raise ConfigError(f"{name} must be at least {limit}, not {value}")
