"""From a configuration to a runner that is ready for its first request."""

import logging
from threading import Thread

import torch

from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError
from quire_engine.kernels.cpu.decoder import NativeDecoder
from quire_engine.kernels.cpu.library import Library
from quire_engine.model.decoder import Decoder, Weights
from quire_engine.model.families import read_spec
from quire_engine.model.loading import FoundWeights, WeightSource, load_weights
from quire_engine.model.quantization import dequantize
from quire_engine.model.share import check_size, share_of
from quire_engine.model.source import resolve
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weights import num_parameters
from quire_engine.runner.cpu_runner import CpuRunner
from quire_engine.runner.group.group import ALONE
from quire_engine.runner.group.rank import ONLY_RANK, Rank
from quire_engine.runner.group.wire import LOADED
from quire_engine.runner.memory import KvCache, block_bytes, resolve_limits
from quire_engine.runner.native_model import NativeModel, find_library
from quire_engine.runner.phases import Phases
from quire_engine.runner.plan import ModelRunner
from quire_engine.runner.profiling import profiled
from quire_engine.runner.roofline import bytes_read, make_roofline
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


def build_runner(config: EngineConfig) -> ModelRunner:
    """Resolve the model of a configuration, load it, size its cache and warm it up.

    Raises:
        ConfigError: the model, the device or a limit cannot work; the message says why.
    """
    phases = Phases()
    device = resolve_device(config)
    with phases.time("resolve"):
        source = resolve(config.model)
    runner: ModelRunner
    if device == "cuda":
        runner = build_gpu_runner(config, source, phases)
    else:
        runner = load_runner(config, source, phases)
    return profiled(runner, config.profiling)


def build_gpu_runner(config: EngineConfig, source: WeightSource, phases: Phases) -> ModelRunner:
    """Load a resolved model onto as many GPUs as are to share it."""
    size = config.device.tensor_parallel_size
    if size == 1:
        return load_gpu_runner(config, source, phases)
    # Imported here: it takes a moment, which one GPU need not wait for.
    from quire_engine.runner.group.group_runner import build_group

    check_size(read_spec(source.config), size)  # before processes are started for nothing
    if config.device.batch_invariant and size > 2:
        logger.warning(
            "batch_invariant holds for up to 2 GPUs: the order of longer sums depends on the batch "
            "tensor_parallel_size=%d",
            size,
        )
    argument = config, FoundWeights.of(source), phases
    return build_group(f"{__name__}:load_rank", argument, size)


def load_rank(argument: tuple[EngineConfig, WeightSource, Phases], rank: Rank) -> ModelRunner:
    """Load one rank's share of a resolved model onto its GPU; see `WorkerSpec.build`."""
    config, source, phases = argument
    return load_gpu_runner(config, source, phases, rank)


def load_gpu_runner(
    config: EngineConfig, source: WeightSource, phases: Phases, rank: Rank = ONLY_RANK
) -> ModelRunner:
    """Load a resolved model, or a rank's share of it, onto a GPU."""
    # Imported here: Triton is for GPUs alone.
    from quire_engine.kernels.gpu.compile_ahead import prepare_compiler
    from quire_engine.runner.gpu.build import GpuBuilder
    from quire_engine.runner.gpu.memory import used_bytes

    spec, device = read_spec(source.config), torch.device("cuda", rank.share.rank)
    dtype = resolve_gpu_dtype(config.model.dtype, spec)
    # Beside the loading of weights; a failure is met again, and told, when kernels are compiled.
    Thread(target=prepare_compiler, args=(device,), daemon=True).start()
    with phases.time("context"):
        torch.cuda.set_device(device)
        others_bytes = used_bytes(device)
    group, group_bytes = ALONE, 0
    if rank.share.size > 1:
        from quire_engine.runner.group.collectives import join

        rank.reach("context")
        with phases.time("group"):
            group = join(
                rank, device, uses_symmetric_memory=not config.device.disable_custom_all_reduce
            )
            group_bytes = used_bytes(device) - others_bytes
    with torch.inference_mode():
        with phases.time("weights"):
            weights = load_weights(config, source, spec, dtype, device, share=rank.share)
        rank.reach(LOADED)
        builder = GpuBuilder(
            config,
            share_of(spec, rank.share),
            eos_token_ids=source.eos_token_ids,
            others_bytes=others_bytes,
            device=device,
            group=group,
            group_bytes=group_bytes,
        )
        runner = builder.build(weights, phases)
    runner.load_report = phases.seconds
    _log_loaded(spec, dtype, runner)
    return runner


def load_runner(config: EngineConfig, source: WeightSource, phases: Phases) -> CpuRunner:
    """Load a resolved model onto the CPU."""
    spec, dtype = read_spec(source.config), resolve_dtype(config.model.dtype)
    limits, block_size = resolve_limits(config, spec, dtype), config.cache.block_size
    with torch.inference_mode():
        with phases.time("weights"):
            weights = load_weights(config, source, spec, dtype)
            dequantize(weights, dtype)
        weight_bytes = bytes_read(spec, weights)
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
    runner.roofline = make_roofline(
        spec, weight_bytes=weight_bytes, block_bytes=block_bytes(spec, block_size, dtype)
    )
    runner.load_report = phases.seconds
    _log_loaded(spec, dtype, runner)
    return runner


def _log_loaded(spec: ModelSpec, dtype: torch.dtype, runner: ModelRunner) -> None:
    logger.info(
        "model loaded architecture=%s num_parameters=%d dtype=%s num_blocks=%d max_model_len=%d",
        spec.architecture,
        num_parameters(spec),
        str(dtype).removeprefix("torch."),
        runner.num_blocks,
        runner.max_model_len,
    )


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


def resolve_gpu_dtype(name: str, spec: ModelSpec) -> torch.dtype:
    """Return the type to compute in; auto is the checkpoint's, if a GPU is fast at it."""
    if name != "auto":
        return DTYPES[name]
    return torch.float16 if spec.dtype in ("float16", "torch.float16") else torch.bfloat16


def resolve_device(config: EngineConfig) -> str:
    """Return the kind of device to run on; auto is a GPU if there is one.

    Raises:
        ConfigError: there is no such device, or not as many as asked for.
    """
    device = config.device
    num_gpus = 0 if device.device == "cpu" else torch.cuda.device_count()
    if device.device == "cuda" and not num_gpus:
        raise ConfigError(
            "device='cuda' is not possible: there is no CUDA device; use 'cpu' or 'auto'"
        )
    if not num_gpus and device.tensor_parallel_size != 1:
        raise ConfigError(
            f"tensor_parallel_size={device.tensor_parallel_size} needs as many GPUs; a CPU takes 1"
        )
    if device.tensor_parallel_size > max(num_gpus, 1):
        raise ConfigError(
            f"tensor_parallel_size={device.tensor_parallel_size} needs as many GPUs; "
            f"this machine has {num_gpus}"
        )
    return "cuda" if num_gpus else "cpu"
