"""Compiles kernels side by side before they are launched: one after the other they take a minute.

What would be launched is run through once with every launch only noted down; then each different
one is compiled, by several threads. The compiler holds Python's lock for a small part of its time.
"""

import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
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

    def compile(self) -> None:
        """Compile the kernel, or load it from the cache on disk."""
        self.run(self.kernel, *self.arguments, grid=(1,), warmup=True, **self.options)


def compile_ahead(run: Callable[[], object], device: torch.device) -> int:
    """Compile all kernels that `run` launches on a device, without launching one; return how many.

    Results of kernels that `run` looks at are whatever was in their memory.
    """
    with _noted() as launches:
        run()
    different = {launch.key: launch for launch in launches}

    def compile_one(launch: Launch) -> None:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            launch.compile()

    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        list(pool.map(compile_one, different.values()))
    return len(different)


@contextmanager
def _noted() -> Iterator[list[Launch]]:
    """Note every launch down in place of launching it."""
    launches: list[Launch] = []
    run: Callable[..., Any] = JITFunction.run

    def note(
        kernel: "JITFunction[Any]", *arguments: Any, grid: Any, warmup: bool, **options: Any
    ) -> None:
        launches.append(Launch(kernel=kernel, arguments=arguments, options=options, run=run))

    with mock.patch.object(JITFunction, "run", note):
        yield launches


def _kind(argument: Any) -> Hashable:
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int) and not isinstance(argument, bool):
        return "int", argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return type(argument).__name__, argument is None
