"""A group of processes: NCCL, gloo, and sums through symmetric memory.

Legend: S lines, V vocabulary, W a rank's part of it.
"""

import logging
import os
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from quire_engine.model.share import Share
from quire_engine.runner.group.group import ALONE, Group
from quire_engine.runner.group.rank import Rank
from quire_engine.runner.group.wire import TIMEOUT

logger = logging.getLogger(__name__)

NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""Sums do not need NVLink multicast, which has put whole hosts out of service."""
SYMMETRIC_DTYPES = (torch.bfloat16, torch.float32)
"""Types that torch's sums over symmetric memory know."""


class ProcessGroup(Group):
    """A rank among several, each in a process of its own: NCCL on GPUs, gloo on CPUs."""

    def __init__(
        self, share: Share, store: TCPStore, device: torch.device, *, uses_symmetric_memory: bool
    ) -> None:
        for name, value in NO_MULTICAST.items():
            os.environ.setdefault(name, value)
        self.share, self._device = share, device
        self._is_cuda = device.type == "cuda"
        # The group's name: what torch remembers by a name, it remembers after the group is gone.
        dist.distributed_c10d._world.group_count = store.port
        dist.init_process_group(
            "nccl" if self._is_cuda else "gloo",
            store=store,
            rank=share.rank,
            world_size=share.size,
            timeout=TIMEOUT,
            device_id=device if self._is_cuda else None,
        )
        self._uses_symmetric_memory = uses_symmetric_memory and self._is_cuda
        self._symmetric: torch.Tensor | None = None
        # NCCL allocates with the first sum: before memory is measured, not in a step.
        dist.all_reduce(torch.zeros(1, device=device))

    def summable(
        self, num_rows: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        if self._uses_symmetric_memory:
            self._symmetric = self._shared(num_rows, width, dtype)
            if self._symmetric is not None:
                return self._symmetric
        return super().summable(num_rows, width, dtype, device)

    def add_up(self, rows: torch.Tensor) -> None:
        """Sum through symmetric memory if the rows lie at its beginning, else through NCCL."""
        shared = self._symmetric
        if shared is not None and rows.data_ptr() == shared.data_ptr():
            torch.ops.symm_mem.two_shot_all_reduce_(rows, "sum", _world().group_name)
        else:
            dist.all_reduce(rows)

    def gather(self, own_SW: torch.Tensor, out_SV: torch.Tensor) -> None:
        num_lines, width = own_SW.shape
        parts = own_SW.new_empty((self.share.size * num_lines, width))
        dist.all_gather_into_tensor(parts, own_SW)
        for rank, part_SW in enumerate(torch.split(parts, num_lines)):
            mine = Share(rank, self.share.size).part(out_SV.shape[1])
            out_SV[:, mine].copy_(part_SW[:, : mine.stop - mine.start])

    def least(self, value: int) -> int:
        number = torch.tensor(value, dtype=torch.int64, device=self._device)
        dist.all_reduce(number, dist.ReduceOp.MIN)
        return int(number)

    def _shared(self, num_rows: int, width: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Return memory that all ranks see; None, on all of them, if one cannot have it."""
        problem, memory = self._obstacle(width, dtype), None
        if not problem:
            try:
                memory = symmetric_memory.empty(num_rows, width, dtype=dtype, device=self._device)
            except RuntimeError as error:
                problem = str(error)
        # No rank may go where another cannot follow, so they agree before each step of this.
        if memory is not None and self.least(int(not problem)):
            try:
                symmetric_memory.rendezvous(memory, _world())
            except RuntimeError as error:
                problem = str(error)
            if self.least(int(not problem)):
                return memory
        elif memory is None:
            self.least(0)
        logger.warning("sums go through NCCL, which is slower reason=%s", problem or "another rank")
        return None

    def _obstacle(self, width: int, dtype: torch.dtype) -> str:
        if dtype not in SYMMETRIC_DTYPES:
            return f"there are no sums of {dtype} in symmetric memory"
        if width * dtype.itemsize % 16:
            return f"rows of {width} numbers are no multiple of 16 bytes"
        others = [rank for rank in range(self.share.size) if rank != self.share.rank]
        blind = [
            rank for rank in others if not torch.cuda.can_device_access_peer(self._device, rank)
        ]
        return f"GPU {self.share.rank} cannot access GPU {blind[0]}" if blind else ""


def join(rank: Rank, device: torch.device, *, uses_symmetric_memory: bool = True) -> Group:
    """Meet the other ranks, if there are any; returns when all are there."""
    if rank.share.size == 1:
        return ALONE
    return ProcessGroup(
        rank.share, rank.store(), device, uses_symmetric_memory=uses_symmetric_memory
    )


def leave() -> None:
    """Forget the others, who may be gone: nothing is waited for."""
    if not dist.is_initialized():
        return
    if dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()


def _world() -> Any:
    return dist.group.WORLD
