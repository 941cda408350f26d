"""From a configuration to a runner that is ready for its first request."""

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError
from quire_engine.kernels.cpu.decoder import NativeDecoder
from quire_engine.kernels.cpu.library import Library
from quire_engine.model.decoder import Decoder, Weights
from quire_engine.model.dummy_weights import make_dummy
from quire_engine.model.families import read_spec
from quire_engine.model.safetensors_weights import read_safetensors
from quire_engine.model.source import resolve
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weights import NamedTensors, assemble, num_parameters
from quire_engine.runner.cpu_runner import CpuRunner
from quire_engine.runner.memory import KvCache, resolve_limits
from quire_engine.runner.native_model import NativeModel, find_library
from quire_engine.runner.sampling.sampler import Sampler
from quire_engine.runner.torch_model import StepModel, TorchModel
from quire_engine.runner.warm_up import warm_up

logger = logging.getLogger(__name__)

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
    "float": torch.float32,
}


class WeightSource(Protocol):
    """What loading needs to know of a model; `model/source.py` resolves it."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def format(self) -> str: ...

    @property
    def weight_files(self) -> Sequence[Path]: ...

    @property
    def eos_token_ids(self) -> Collection[int]: ...


class Phases:
    """Times the phases of loading, and says so in the log."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time what runs inside, under a name."""
        started_at = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started_at
        logger.info("loading phase=%s duration_s=%.3f", name, self.seconds[name])


def build_runner(config: EngineConfig) -> CpuRunner:
    """Resolve the model of a configuration, load it, size its cache and warm it up.

    Raises:
        ConfigError: the model, the device or a limit cannot work; the message says why.
    """
    phases = Phases()
    _check_device(config)
    with phases.time("resolve"):
        source = resolve(config.model)
    return load_runner(config, source, phases)


def load_runner(config: EngineConfig, source: WeightSource, phases: Phases) -> CpuRunner:
    """Load a resolved model; `build_runner` without looking for the model."""
    spec, dtype = read_spec(source.config), resolve_dtype(config.model.dtype)
    limits, block_size = resolve_limits(config, spec, dtype), config.cache.block_size
    with torch.inference_mode():
        with phases.time("weights"):
            weights = assemble(spec, _tensors(config, source, spec, dtype), dtype)
        with phases.time("kernels"):
            library = find_library(spec, dtype, block_size)
        cache = KvCache(spec, num_blocks=limits.num_blocks, block_size=block_size, dtype=dtype)
        with phases.time("layout"):
            model = make_model(spec, weights, cache, library, max_len=limits.max_model_len)
        sampler = Sampler(
            vocab_size=spec.vocab_size,
            eos_token_ids=source.eos_token_ids,
            seed=config.model.seed,
        )
    runner = CpuRunner(
        model,
        sampler,
        limits,
        max_num_seqs=config.scheduler.max_num_seqs,
        block_size=block_size,
    )
    with phases.time("warm_up"):
        warm_up(runner, block_size=block_size)
    runner.load_report = phases.seconds
    logger.info(
        "model loaded architecture=%s num_parameters=%d dtype=%s num_blocks=%d max_model_len=%d",
        spec.architecture,
        num_parameters(spec),
        str(dtype).removeprefix("torch."),
        limits.num_blocks,
        limits.max_model_len,
    )
    return runner


def make_model(
    spec: ModelSpec,
    weights: Weights,
    cache: KvCache,
    library: Library | None,
    *,
    max_len: int,
) -> StepModel:
    """Build a model in C if there is a library for it, else in torch. Consumes `weights`."""
    if library is not None:
        return NativeModel(NativeDecoder(spec, weights, cache, library, max_len=max_len))
    return TorchModel(Decoder(spec, weights, max_len=max_len), cache)


def resolve_dtype(name: str) -> torch.dtype:
    """Return the type to compute in; auto is bfloat16 where the processor has it natively."""
    if name == "auto":
        return torch.bfloat16 if _has_native_bfloat16() else torch.float32
    return DTYPES[name]


def _has_native_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _check_device(config: EngineConfig) -> None:
    device = config.device
    if device.device == "cuda":
        reason = "there is no CUDA device" if not torch.cuda.is_available() else "it cannot use one"
        raise ConfigError(f"device='cuda' is not possible: {reason}; use 'cpu' or 'auto'")
    if device.tensor_parallel_size != 1:
        raise ConfigError(
            f"tensor_parallel_size={device.tensor_parallel_size} needs as many GPUs; a CPU takes 1"
        )


def _tensors(
    config: EngineConfig, source: WeightSource, spec: ModelSpec, dtype: torch.dtype
) -> NamedTensors:
    if source.format == "dummy":
        return make_dummy(spec, dtype, config.model.seed)
    if source.format == "gguf":
        # Imported here: the gguf package is not needed for anything else.
        from quire_engine.model.gguf_weights import read_gguf

        return read_gguf(source.weight_files[0], spec)
    return read_safetensors(source.weight_files)
