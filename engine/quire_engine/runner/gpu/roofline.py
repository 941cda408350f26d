"""What a step on a GPU must do, and how fast the GPU could: for the metric that compares them."""

from collections.abc import Mapping
from math import prod
from typing import Protocol

import torch

from quire_engine.core.messages import Roofline
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weights import parameters

TENSOR_FLOPS = {(8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192}
"""Dense 16-bit operations per clock and multiprocessor, by compute capability (NVIDIA's
architecture white papers; an addition and a multiplication are two)."""


class DeviceProperties(Protocol):
    """Of `torch.cuda.get_device_properties`, what is needed here."""

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
    spec: ModelSpec, *, weight_bytes: int, block_bytes: int, device: DeviceProperties
) -> Roofline:
    """Return the bounds of a model on a device."""
    per_clock = TENSOR_FLOPS.get((device.major, device.minor), 0) * device.multi_processor_count
    return Roofline(
        weight_bytes=weight_bytes,
        block_bytes=block_bytes,
        num_parameters=num_layer_parameters(spec),
        # Clocks are in kHz, the bus in bits; memory transfers twice per clock.
        peak_bytes_per_s=2 * device.memory_clock_rate * 1e3 * device.memory_bus_width / 8,
        peak_flops=per_clock * device.clock_rate * 1e3,
    )


def bytes_read(spec: ModelSpec, weights: Mapping[str, torch.Tensor]) -> int:
    """Return the bytes of weights that a step reads: of an embedding alone, next to nothing."""
    return sum(
        tensor.nbytes
        for name, tensor in weights.items()
        if spec.tie_word_embeddings or not name.startswith("embedding")
    )


def num_layer_parameters(spec: ModelSpec) -> int:
    """Return the parameters that each token of a prompt is multiplied with."""
    return sum(
        prod(parameter.shape)
        for parameter in parameters(spec)
        if parameter.name.startswith("layers.")
    )
