"""What `quire plan` is asked, and the numbers that answer it."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.extras import MissingExtraError, is_installed
from quire_engine.config import ModelConfig, option
from quire_engine.errors import ConfigError
from quire_engine.model.families import FAMILIES
from quire_engine.model.source import resolve
from quire_operator.capacity import (
    GPUS,
    CapacityError,
    Demand,
    Fit,
    Footprint,
    Gpu,
    Link,
    MemoryPlan,
    NodeFacts,
    NvlinkMode,
    Workload,
    check_tensor_parallel,
    examine,
    find_gpu,
    footprint_of_config,
    footprint_of_name,
    plan_memory,
    tensor_parallel_sizes,
)
from quire_operator.capacity.quantization import DTYPE_BYTES, KV_DTYPE_BYTES, NAMED

MAX_GPUS_OF_NODE = 8
_SIZE_ALONE = re.compile(r"(\d+x)?\d+(\.\d+)?[bBmM]([-_].*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """The question: which model, on which GPUs, run how."""

    gpu: str | None = option(None, "product, as H200, H100-NVL or a node's label; default: all")
    tensor_parallel_size: int | None = option(
        None, "GPUs that share each layer; default: the smallest number that fits"
    )
    pipeline_parallel_size: int = option(1, "stages that share the layers", short="pp")
    gpu_memory_utilization: float = option(0.92, "share of the GPU's memory that may be used")
    max_model_len: int | None = option(
        None, "longest prompt and completion together, in tokens; 8k is 8192; default: the model's"
    )
    max_num_seqs: int = option(256, "most sequences that run at once")
    max_num_batched_tokens: int | None = option(
        None,
        "most tokens computed in one step; default: 8192 of prompts and one for each of "
        "max_num_seqs",
    )
    block_size: int = option(16, "tokens per block of the cache")
    dtype: str = option("auto", "type of weights and activations", choices=("auto", *DTYPE_BYTES))
    quantization: str = option(
        "", "format of the weights; default: as config or name say", choices=("", *NAMED)
    )
    kv_cache_dtype: str = option(
        "auto", "type of cached keys and values", choices=("auto", *KV_DTYPE_BYTES)
    )
    replicas: int = option(1, "replicas that are to run at once, for --nodes")
    nodes: str | None = option(
        None, "file with `kubectl get nodes -o json`, or - for standard input: judge every node"
    )
    revision: str | None = option(None, "branch, tag or commit of the model on the hub")
    download_dir: str | None = option(None, "where to keep downloads; default: the hub's cache")
    hf_token: str | None = option(None, "access token of the hub; default: HF_TOKEN or the login")
    json: bool = option(False, "print JSON, sizes in bytes")

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "replicas"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        self.workload(1)

    def workload(self, tensor_parallel_size: int) -> Workload:
        """Return the engine's flags for a tensor-parallel size.

        Raises:
            CapacityError: a value is out of range.
        """
        return Workload(
            tensor_parallel_size=tensor_parallel_size,
            pipeline_parallel_size=self.pipeline_parallel_size,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            block_size=self.block_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model that was asked about."""

    footprint: Footprint
    notes: tuple[str, ...] = ()
    """What the reader should know of the numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to run it."""

    gpu: Gpu
    tensor_parallel_size: int
    memory: MemoryPlan

    @property
    def has_link(self) -> bool:
        """Whether NVLink joins the GPUs of a group."""
        return self.gpu.link is not Link.NONE and self.gpu.link_size >= self.tensor_parallel_size


def find_model(name: str, config: PlanConfig) -> Model:
    """Return the size of a model: by its config where there is one, else by its name.

    Raises:
        ConfigError: it is neither found nor has its name a size.
        CapacityError: its config cannot be planned.
        MissingExtraError: a name on the hub, and what asks the hub is not installed.
    """
    if _SIZE_ALONE.fullmatch(name) and not Path(name).exists():
        return _estimated(name, config, "estimated from the size alone")
    try:
        return _resolved(name, config)
    except (ConfigError, MissingExtraError) as error:
        try:
            return _estimated(name, config, f"estimated from the name, since {error}")
        except ConfigError:
            raise error from None


def _estimated(name: str, config: PlanConfig, note: str) -> Model:
    footprint = footprint_of_name(
        name,
        dtype=config.dtype,
        quantization=config.quantization,
        kv_cache_dtype=config.kv_cache_dtype,
    )
    if footprint is None:
        raise ConfigError(f"there is no size in the name {name!r}")
    return Model(footprint=footprint, notes=(note,))


def _resolved(name: str, config: PlanConfig) -> Model:
    is_of_hub = bool(name) and not Path(name).expanduser().exists() and "/" in name
    if is_of_hub and not is_installed("huggingface_hub"):
        raise MissingExtraError("not installed: huggingface_hub; run: pip install 'quire[engine]'")
    source = resolve(
        ModelConfig(
            model=name,
            load_format="dummy",  # finds everything but the weights
            skip_tokenizer_init=True,
            revision=config.revision,
            download_dir=config.download_dir,
            hf_token=config.hf_token,
        )
    )
    footprint = footprint_of_config(
        source.config,
        name=source.name,
        dtype=config.dtype,
        quantization=config.quantization,
        kv_cache_dtype=config.kv_cache_dtype,
    )
    return Model(footprint=footprint, notes=tuple(_notes(source.config)))


def _notes(config: Mapping[str, Any]) -> Iterator[str]:
    """Say what of a model the engine does not run, however much memory there is."""
    architectures = config.get("architectures") or []
    if not any(architecture in FAMILIES for architecture in architectures):
        named = ", ".join(architectures) or "this architecture"
        yield f"the engine does not run {named}; it runs {', '.join(sorted(FAMILIES))}"
    if config.get("quantization_config") and is_installed("torch"):
        # Not above: it imports torch, which no other model needs for its plan.
        from quire_engine.model.quantization import read_quantization

        try:
            read_quantization(config)
        except ConfigError as error:
            yield f"the engine does not run it: {error}"


def plan_rows(model: Model, config: PlanConfig) -> list[Row]:
    """Return the ways to run a model that were asked for.

    With a GPU and a tensor-parallel size that is one; with a GPU alone one for each legal size;
    without a GPU one for each product, with the smallest size that fits or else the largest.

    Raises:
        CapacityError: an unknown GPU, or a size that the model cannot have.
    """
    sizes = _sizes(model.footprint, config)
    if config.gpu is not None:
        gpu = find_gpu(config.gpu)
        return [_row(model, config, gpu, size) for size in sizes]
    return [_smallest(model, config, gpu, sizes) for gpu in GPUS]


def _sizes(footprint: Footprint, config: PlanConfig) -> tuple[int, ...]:
    size = config.tensor_parallel_size
    if size is None:
        return tensor_parallel_sizes(footprint, at_most=MAX_GPUS_OF_NODE)
    if problem := check_tensor_parallel(footprint, size):
        raise CapacityError(problem)
    return (size,)


def _smallest(model: Model, config: PlanConfig, gpu: Gpu, sizes: Sequence[int]) -> Row:
    rows = [_row(model, config, gpu, size) for size in sizes]
    return next((row for row in rows if row.memory.fits), rows[-1])


def _row(model: Model, config: PlanConfig, gpu: Gpu, size: int) -> Row:
    memory = plan_memory(model.footprint, config.workload(size), gpu.memory_bytes)
    return Row(gpu=gpu, tensor_parallel_size=size, memory=memory)


def judge_nodes(model: Model, config: PlanConfig) -> Fit:
    """Judge the nodes of a cluster.

    Raises:
        ConfigError: the file cannot be read or holds no nodes.
        CapacityError: an unknown GPU, or a size that the model cannot have.
    """
    nodes = [NodeFacts.from_manifest(node) for node in read_nodes(config.nodes or "-")]
    size = config.tensor_parallel_size or 1
    _sizes(model.footprint, config)
    demand = Demand(
        num_gpus=size * config.pipeline_parallel_size,
        tensor_parallel_size=size,
        num_replicas=config.replicas,
        nvlink=NvlinkMode.REQUIRED,
        products=(find_gpu(config.gpu).product,) if config.gpu else (),
    )
    return examine(demand, nodes, model.footprint, config.workload(size))


def read_nodes(path: str) -> list[dict[str, Any]]:
    """Return the Node manifests of a file, or of standard input for "-".

    Raises:
        ConfigError: it cannot be read, or is not what kubectl prints.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read nodes from {path}: {error}") from error
    items = value.get("items", [value]) if isinstance(value, dict) else None
    if not isinstance(items, list) or any(item.get("kind") != "Node" for item in items):
        raise ConfigError(f"{path} holds no nodes; write it with: kubectl get nodes -o json")
    return items
