"""Compiles kernels side by side before they are launched: one after the other they take a minute.

What would be launched is run through once with every launch only noted down; meanwhile several
threads compile each different one, build what launches it and load it onto the GPU.
"""

import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.runtime.jit import JITFunction

MAX_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Launch:
    """One launch that was noted down."""

    kernel: "JITFunction[Any]"
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    run: Callable[..., Any]

    @property
    def key(self) -> Hashable:
        """What the compiler may look at; launches with equal keys share a compiled kernel."""
        options = tuple(sorted((name, repr(value)) for name, value in self.options.items()))
        return id(self.kernel), tuple(map(_kind, self.arguments)), options

    def compile(self) -> Callable[..., Any]:
        """Compile the kernel, or read it from the cache on disk; return what launches it."""
        compiled = self.run(self.kernel, *self.arguments, grid=(1,), warmup=True, **self.options)
        # Left to the first launch, a C compiler would run for each kind of arguments in turn.
        launcher: Callable[..., Any] = compiled.run
        return launcher


def prepare_compiler(device: torch.device) -> None:
    """Do once what a process's first compile takes a second more for: it hashes the compiler."""
    with _on(device):
        _nothing_kernel.warmup(grid=(1,))


def compile_ahead(run: Callable[[], object], device: torch.device) -> int:
    """Compile all kernels that `run` launches on a device, without launching one; return how many.

    Results of kernels that `run` looks at are whatever was in their memory.
    """
    prepare_compiler(device)  # not by every thread for itself

    def compile_one(launch: Launch) -> None:
        with _on(device):
            launch.compile()

    compiles: dict[Hashable, Future[None]] = {}

    def note(launch: Launch) -> None:
        # Others are forgotten at once, and their tensors: a long step has gigabytes of them.
        key = launch.key
        if key not in compiles:
            compiles[key] = pool.submit(compile_one, launch)

    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        with _noted(note):
            run()
        for compiled in compiles.values():
            compiled.result()
    return len(compiles)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _noted(note: Callable[[Launch], None]) -> Iterator[None]:
    """Note every launch down in place of launching it."""
    run: Callable[..., Any] = JITFunction.run

    def note_launch(
        kernel: "JITFunction[Any]", *arguments: Any, grid: Any, warmup: bool, **options: Any
    ) -> None:
        note(Launch(kernel=kernel, arguments=arguments, options=options, run=run))

    with mock.patch.object(JITFunction, "run", note_launch):
        yield


def _kind(argument: Any) -> Hashable:
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int) and not isinstance(argument, bool):
        return "int", argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return type(argument).__name__, argument is None


@triton.jit
def _nothing_kernel():
    """Compute nothing: what compiling it takes, every compiler's first kernel takes."""
