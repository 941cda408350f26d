"""A random mix of requests for minutes: answers are right, invariants hold, memory does not grow.

QUIRE_SOAK_MINUTES says how long it runs in all; a minute without it.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from random_load import RandomLoad
from random_models import QWEN3_06B, TINY, new_core

MINUTES = float(os.environ.get("QUIRE_SOAK_MINUTES", "1"))
MIB = 1 << 20
MOST_GROWTH = 128 * MIB
"""Of what allocators keep for later; a leak of one request's tables is more in a minute."""
ROUNDS = 5
MODELS = {"tiny": TINY, "qwen3-0.6b": QWEN3_06B}
EOS = frozenset({7})

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(int(60 * MINUTES) + 300),
]


@dataclass(frozen=True)
class Memory:
    """What this process holds, in bytes, while its engine is idle."""

    allocated: int
    reserved: int
    resident: int

    @classmethod
    def now(cls) -> Self:
        torch.cuda.synchronize()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            torch.cuda.memory_allocated(),
            torch.cuda.memory_reserved(),
            pages * os.sysconf("SC_PAGE_SIZE"),
        )

    def __str__(self) -> str:
        return (
            f"allocated {self.allocated / MIB:.1f} MiB, reserved {self.reserved / MIB:.1f}, "
            f"resident {self.resident / MIB:.1f}"
        )


@pytest.mark.parametrize("name", MODELS)
def test_a_random_mix_is_answered_and_memory_does_not_grow(name: str, tmp_path: Path) -> None:
    model: dict[str, Any] = MODELS[name]
    core = new_core(
        tmp_path,
        model,
        eos_token_ids=EOS,
        num_gpu_blocks_override=2500,
        watermark=0.0,  # nothing is kept back to avoid preemption
        max_model_len=8192,
        max_num_seqs=128,
    )
    load = RandomLoad(
        core=core,
        vocab_size=model["vocab_size"],
        longest_prompt=6000,
        longest_output=300,
        seed=int(time.time()),
        max_num_live=160,
        eos_token_ids=EOS,
    )
    idle: list[Memory] = []

    for number in range(ROUNDS):
        ends_at = time.monotonic() + 60 * MINUTES / len(MODELS) / ROUNDS
        while time.monotonic() < ends_at:
            load.turn()
        load.finish()
        idle.append(Memory.now())
        sys.stdout.write(f"\n{name} round {number} seed {load.seed}: {idle[-1]}")
    sys.stdout.write(f"\n{dict(load.counts)}\n{core.stats}\n")

    # The first round meets most shapes; libraries and allocators keep what they took for them.
    first, last = idle[1], idle[-1]
    assert last.allocated - first.allocated <= MIB
    assert last.reserved - first.reserved <= MOST_GROWTH
    assert last.resident - first.resident <= MOST_GROWTH
    assert load.counts["aborted"] > 0
    assert core.stats.num_preemptions > 0
    assert core.stats.num_compiles_after_ready == 0
