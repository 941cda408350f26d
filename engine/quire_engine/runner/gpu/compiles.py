"""Counts the kernels that Triton compiles once an engine is ready: requests would wait for each.

Loading a compiled kernel from disk counts too, since it means a variant that warming up did not
meet: on another machine the same request would wait for the compiler.
"""

import logging
import weakref
from typing import Any

import triton

logger = logging.getLogger(__name__)


class CompileCounter:
    """Counts the compiles of this process, from its construction on."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """The kernels that were compiled, in order."""
        _watch(weakref.WeakMethod(self._note))

    def __len__(self) -> int:
        return len(self.names)

    def _note(self, name: str) -> None:
        self.names.append(name)
        logger.warning("kernel compiled after ready name=%s num_compiles=%d", name, len(self))


def _watch(listener: "weakref.WeakMethod[Any]") -> None:
    """Tell a listener of every compile, as long as it lives, and whoever was told before."""
    runtime = triton.knobs.runtime
    told_before = runtime.jit_post_compile_hook

    def tell(**compiled: Any) -> Any:
        if (note := listener()) is not None:
            note(compiled["fn"].name)
        return None if told_before is None else told_before(**compiled)

    runtime.jit_post_compile_hook = tell
