"""What a step must do, and how fast its device could: for what compares the two.

`Roofline` (core/messages.py) has the arithmetic, `measure_ceilings` what a device does of it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

import torch

from quire_engine.core.messages import Roofline
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weights import parameters

TENSOR_FLOPS = {(8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192}
"""Dense 16-bit operations per clock and multiprocessor, by compute capability (NVIDIA's
architecture white papers; an addition and a multiplication are two)."""

PROBE_RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The most that a device was seen to do, or is said to."""

    bytes_per_s: float
    """Read from memory."""
    flops: float
    """Of 16-bit products."""
    source: str


MEASURED = {
    "NVIDIA H200": Ceilings(bytes_per_s=4.46e12, flops=773e12, source="measured on NVIDIA H200s"),
}
"""By the name of the device: a read of several GB, and bfloat16 products of 8192^3."""

NOTHING_KNOWN = Ceilings(bytes_per_s=0.0, flops=0.0, source="")


class DeviceProperties(Protocol):
    """Of `torch.cuda.get_device_properties`, what is needed here."""

    @property
    def name(self) -> str: ...
    @property
    def major(self) -> int: ...
    @property
    def minor(self) -> int: ...
    @property
    def multi_processor_count(self) -> int: ...
    @property
    def clock_rate(self) -> int: ...
    @property
    def memory_clock_rate(self) -> int: ...
    @property
    def memory_bus_width(self) -> int: ...


def make_roofline(
    spec: ModelSpec,
    *,
    weight_bytes: int,
    block_bytes: int,
    device: DeviceProperties | None = None,
    is_8_bit: bool = False,
) -> Roofline:
    """Return the bounds of a model on a GPU; without one, the peaks are unknown."""
    ceilings = NOTHING_KNOWN if device is None else ceilings_of(device)
    roofline = Roofline(
        weight_bytes=weight_bytes,
        block_bytes=block_bytes,
        num_parameters=num_layer_parameters(spec),
        attention_width=spec.num_layers * spec.num_heads * spec.head_dim,
        is_8_bit=is_8_bit,
    )
    return under(roofline, ceilings)


def under(roofline: Roofline, ceilings: Ceilings) -> Roofline:
    """Return a model's bounds on a device with these ceilings."""
    return replace(
        roofline,
        peak_bytes_per_s=ceilings.bytes_per_s,
        peak_flops=ceilings.flops * (2 if roofline.is_8_bit else 1),
    )


def ceilings_of(device: DeviceProperties) -> Ceilings:
    """Return what was measured on such a GPU, else what its clocks and units come to."""
    if device.name in MEASURED:
        return MEASURED[device.name]
    per_clock = TENSOR_FLOPS.get((device.major, device.minor), 0) * device.multi_processor_count
    return Ceilings(
        # Clocks are in kHz, the bus in bits; memory transfers twice per clock.
        bytes_per_s=2 * device.memory_clock_rate * 1e3 * device.memory_bus_width / 8,
        flops=per_clock * device.clock_rate * 1e3,
        source=f"from the clocks of {device.name}",
    )


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure a device, in about a second: reading memory, and products of large matrices."""
    is_cuda = device.type == "cuda"
    num_bytes, size = (4 << 30, 8192) if is_cuda else (1 << 28, 1024)
    memory = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    left = torch.rand(size, size, device=device).to(dtype)
    read_s = _shortest_s(memory.sum, device)
    # What reads and writes at once may move more.
    copy_s = _shortest_s(
        lambda: memory[: len(memory) // 2].copy_(memory[len(memory) // 2 :]), device
    )
    product_s = _shortest_s(lambda: left @ left, device)
    return Ceilings(
        bytes_per_s=num_bytes / min(read_s, copy_s),
        flops=2 * size**3 / product_s,
        source=f"measured on this {'GPU' if is_cuda else 'CPU'} at the start",
    )


def _shortest_s(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of some runs."""
    times = []
    for _ in range(1 + PROBE_RUNS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started_at = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started_at)
    return min(times[1:])  # the first one loads what it needs


def bytes_read(spec: ModelSpec, weights: Mapping[str, torch.Tensor]) -> int:
    """Return the bytes of weights that a step reads: of an embedding alone, next to nothing."""
    return sum(
        tensor.nbytes
        for name, tensor in weights.items()
        if spec.tie_word_embeddings or not name.startswith("embedding")
    )


def has_8_bit_linears(weights: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether weights are multiplied as 8-bit numbers."""
    return any(tensor.dtype.itemsize == 1 for tensor in weights.values())


def num_layer_parameters(spec: ModelSpec) -> int:
    """Return the parameters that each token of a prompt is multiplied with."""
    return sum(
        prod(parameter.shape)
        for parameter in parameters(spec)
        if parameter.name.startswith("layers.")
    )
