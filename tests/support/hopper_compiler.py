"""Compiles kernels for a Hopper GPU on a machine that has none.

Wrappers run as they are, on tensors of the meta device; every launch is compiled and recorded
instead. Needs a process in which triton is not interpreted.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from quire_engine.kernels.gpu.attention_tiles import HOPPER_SHARED_BYTES

HOPPER = GPUTarget("cuda", 90, 32)


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler made of one launch."""

    name: str
    ptx: str
    num_registers: int
    spilled_bytes: int
    shared_bytes: int
    num_warps: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.num_registers} registers, {self.spilled_bytes} bytes spilled, "
            f"{self.shared_bytes} bytes shared, {self.num_warps} warps, "
            f"wgmma {self.ptx.count('wgmma.mma_async')}, mma {self.ptx.count('mma.sync')}, "
            f"16-byte copies {len(re.findall(r'cp.async.cg.shared.global[^;]*0x10', self.ptx))}"
        )


class _NoLauncher:
    """Stands in for what passes arguments on to a GPU."""

    def __init__(self, source: Any, metadata: Any) -> None:
        """Take what a launcher is made of."""


class _NoUtils:
    """Stands in for the calls that load a kernel onto a GPU."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": HOPPER_SHARED_BYTES}

    def load_binary(self, *binary: Any) -> tuple[None, None, int, int, int]:
        """Return no module and no function, its registers, its spills and its most threads."""
        return None, None, 0, 0, 1024


class _NoDevice(DriverBase):  # type: ignore[misc]
    """Stands in for the driver of a GPU that kernels are compiled for and never run on."""

    launcher_cls = _NoLauncher
    utils = _NoUtils()

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return HOPPER

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        raise NotImplementedError


@contextlib.contextmanager
def recorded_launches() -> Iterator[list[Compiled]]:
    """Compile what is launched inside, and list it."""
    launches: list[Compiled] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        launches.append(_describe(self.fn.__name__, kernel))
        return kernel

    previous = driver._active
    driver.set_active(_NoDevice())
    JITFunction.run = compile_only
    try:
        yield launches
    finally:
        JITFunction.run = run
        driver._active = previous


def _describe(name: str, kernel: Any) -> Compiled:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [str(tool), "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = (int(re.search(rf"{k}:(\d+)", usage)[1]) for k in ("REG", "STACK"))  # type: ignore[index]
    return Compiled(
        name=name,
        ptx=kernel.asm["ptx"],
        num_registers=registers,
        spilled_bytes=stack,
        shared_bytes=kernel.metadata.shared,
        num_warps=kernel.metadata.num_warps,
    )
