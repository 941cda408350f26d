"""Everything that can be configured, parsed once, validated once, frozen.

Each field is also a command-line flag (`flags.py`) and a keyword of `LLM(...)`: names are vLLM's,
defaults and help are written here and nowhere else, and no name occurs in two classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from quire_engine.errors import ConfigError

BLOCK_SIZES = (16, 32, 64, 128, 256)
DTYPES = ("auto", "bfloat16", "float16", "float32", "half", "float")
PROMPT_TOKENS = {"cpu": 512, "cuda": 8192}
"""Prompt tokens of a step that suit a kind of device; decodes come on top."""
"""Enough to keep a device busy, few enough for decodes not to wait long for prefills."""
KV_CACHE_DTYPES = ("auto", "fp8", "fp8_e4m3")
QUANTIZATIONS = ("fp8", "compressed-tensors")
LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")


def option(default: Any, help_: str, *, choices: tuple[Any, ...] = (), short: str = "") -> Any:
    """Declare a configuration field with the help text and choices of its flag."""
    metadata = {"help": help_, "choices": choices, "short": short}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model to load, and how."""

    model: str = option("", "directory, .gguf file or hub name of the model; empty: the demo model")
    tokenizer: str = option("", "directory or hub name of the tokenizer; empty: the model's own")
    skip_tokenizer_init: bool = option(False, "load no tokenizer; prompts are token ids only")
    revision: str | None = option(None, "branch, tag or commit of the model on the hub")
    download_dir: str | None = option(None, "where to keep downloads; default: the hub's cache")
    hf_token: str | None = option(None, "access token of the hub; default: HF_TOKEN or the login")
    load_format: str = option(
        "auto", "format of the weights; dummy: random weights", choices=LOAD_FORMATS
    )
    dtype: str = option("auto", "type of weights and activations", choices=DTYPES)
    quantization: str | None = option(
        None,
        "fp8: weights of linears in 8 bits, made when loading if the model has none; "
        "default: as the model's config says",
        choices=QUANTIZATIONS,
        short="q",
    )
    max_model_len: int | None = option(
        None, "longest prompt and completion together, in tokens; 8k is 8192; default: the model's"
    )
    seed: int = option(0, "seed for sampling where a request brings none, and for dummy weights")
    served_model_name: tuple[str, ...] = option(
        (), "names that clients may use in `model`, the first is reported; default: as given"
    )
    chat_template: str | None = option(
        None, "file with a chat template, or the template itself; default: the model's"
    )
    generation_config: str = option(
        "auto",
        "sampling defaults of the model: auto takes its generation_config.json, vllm ignores it",
        choices=("auto", "vllm"),
    )
    hf_overrides: dict[str, Any] | None = option(None, "JSON merged into the model's config.json")
    max_logprobs: int = option(20, "most logprobs that a request may ask for; -1: no limit")
    enforce_eager: bool = option(False, "never use CUDA graphs")

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("load_format", self.load_format, LOAD_FORMATS)
        if self.quantization is not None:
            _check_choice("quantization", self.quantization, QUANTIZATIONS)
        _check_choice("generation_config", self.generation_config, ("auto", "vllm"))
        if self.max_model_len is not None and self.max_model_len < 1:
            raise ConfigError(f"max_model_len must be at least 1, not {self.max_model_len}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Shape of the paged KV cache."""

    block_size: int = option(
        16, "tokens per block; also the granularity of prefix sharing", choices=BLOCK_SIZES
    )
    enable_prefix_caching: bool = option(True, "reuse the blocks of prompts seen before")
    gpu_memory_utilization: float = option(
        0.92, "share of the GPU's memory that weights, activations and cache may use together"
    )
    kv_cache_memory_bytes: int | None = option(
        None, "size of the cache; 4G is 4 GiB; default: what is left on a GPU, 1 GiB on a CPU"
    )
    num_gpu_blocks_override: int | None = option(None, "number of blocks, whatever memory says")
    kv_cache_dtype: str = option(
        "auto", "type of cached keys and values; auto: as dtype; fp8: e4m3", choices=KV_CACHE_DTYPES
    )

    def __post_init__(self) -> None:
        _check_choice("block_size", self.block_size, BLOCK_SIZES)
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"gpu_memory_utilization must be in (0, 1], not {self.gpu_memory_utilization}"
            )
        for name in ("kv_cache_memory_bytes", "num_gpu_blocks_override"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one step and of the queue."""

    max_num_batched_tokens: int | None = option(
        None,
        "most tokens computed in one step; default: 8192 of prompts on a GPU, 512 on a CPU, and "
        "one for each of max_num_seqs",
    )
    max_num_seqs: int = option(256, "most sequences that run at once")
    long_prefill_token_threshold: int = option(
        0, "most prompt tokens of one sequence in one step; 0: all, or half while others wait"
    )
    watermark: float = option(
        0.01, "share of blocks that admitting a sequence must leave free, against preemption"
    )
    scheduling_policy: str = option(
        "priority",
        "priority: by priority, then arrival; fcfs: by arrival",
        choices=("priority", "fcfs"),
    )
    max_num_queued_reqs: int | None = option(
        None, "most requests that may wait; more are refused with 'try again'; default: no limit"
    )

    def __post_init__(self) -> None:
        _check_choice("scheduling_policy", self.scheduling_policy, ("priority", "fcfs"))
        if not 0.0 <= self.watermark < 1.0:
            raise ConfigError(f"watermark must be in [0, 1), not {self.watermark}")
        if self.long_prefill_token_threshold < 0:
            raise ConfigError(
                "long_prefill_token_threshold must be at least 0, "
                f"not {self.long_prefill_token_threshold}"
            )
        for name in ("max_num_batched_tokens", "max_num_seqs", "max_num_queued_reqs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")

    def token_budget(self, device: str) -> int:
        """Return the most tokens of a step: as configured, or of prompts and a decode of each."""
        return self.max_num_batched_tokens or self.prompt_budget(device) + self.max_num_seqs

    def prompt_budget(self, device: str) -> int:
        """Return the most prompt tokens of a step: as configured, or what suits the device.

        Of a configured budget decodes take their share; else a prompt that fills a step would
        leave as many tokens for the next as there are decodes.
        """
        kind = "cuda" if device.startswith("cuda") else "cpu"
        return self.max_num_batched_tokens or PROMPT_TOKENS[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """Where the model runs."""

    device: str = option("auto", "device to run on", choices=("auto", "cpu", "cuda"))
    tensor_parallel_size: int = option(1, "GPUs that share each layer", short="tp")
    disable_custom_all_reduce: bool = option(
        False, "several GPUs: sums through NCCL alone, never through symmetric memory"
    )
    batch_invariant: bool = option(
        False, "GPU: the same results for a sequence whatever else is in its batch; slower"
    )

    def __post_init__(self) -> None:
        _check_choice("device", self.device, ("auto", "cpu", "cuda"))
        if self.tensor_parallel_size < 1:
            raise ConfigError(
                f"tensor_parallel_size must be at least 1, not {self.tensor_parallel_size}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilingConfig:
    """Which steps to record with torch's profiler."""

    profile: str | None = option(
        None, "folder for a trace (Chrome's format) of some steps and a table of their kernels"
    )
    profile_steps: int = option(
        20, "steps to record; 0: only those between LLM.start_profile() and LLM.stop_profile()"
    )
    profile_skip: int = option(0, "steps to run before that")

    def __post_init__(self) -> None:
        for name in ("profile_steps", "profile_skip"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine: model, cache, scheduler, device, and what is recorded of it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    profiling: ProfilingConfig = field(default_factory=ProfilingConfig)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """Build from one flat mapping of field names to values.

        Raises:
            ConfigError: a name that is no field, or a value out of range.
        """
        known = option_names()
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"unknown configuration: {', '.join(unknown)}")
        parts: dict[str, dict[str, Any]] = {part.name: {} for part in fields(cls)}
        for name, value in values.items():
            parts[known[name]][name] = value
        return cls(
            **{part.name: _PART_TYPES[part.name](**parts[part.name]) for part in fields(cls)}
        )


_PART_TYPES: dict[str, type] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "device": DeviceConfig,
    "profiling": ProfilingConfig,
}


def option_names() -> dict[str, str]:
    """Return the part of EngineConfig that each option belongs to, by option name."""
    return {item.name: part for part, type_ in _PART_TYPES.items() for item in fields(type_)}


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}; not {value!r}")
