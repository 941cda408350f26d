"""Ranks without a model, and without torch: some go wrong."""

import os
from typing import Any

from core_factories import HangingRunner
from core_support import BLOCK_SIZE
from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError
from quire_engine.runner.group.rank import Rank
from quire_engine.runner.plan import ModelRunner, PendingStep, StepPlan

FAILING_ID = 13
"""A sequence that the first rank fails to launch."""


class HalfFailingRunner(HangingRunner):
    def launch(self, plan: StepPlan) -> PendingStep:
        if FAILING_ID in plan.num_tokens:
            raise MemoryError("for the first rank alone")
        return super().launch(plan)


def build(_argument: Any, rank: Rank) -> ModelRunner:
    """Build a rank that computes without the others."""
    rank.reach("built")
    type_ = HangingRunner if rank.share.rank else HalfFailingRunner
    return type_(
        num_blocks=64,
        block_size=BLOCK_SIZE,
        max_model_len=500,
        vocab_size=50,
        max_num_batched_tokens=512,
    )


def refuse(_argument: Any, rank: Rank) -> ModelRunner:
    if rank.share.rank:
        raise ConfigError(f"rank {rank.share.rank} does not like it")
    return build(None, rank)


def crash(_argument: Any, rank: Rank) -> ModelRunner:
    if rank.share.rank:
        raise RuntimeError("no such GPU")
    return build(None, rank)


def die(_argument: Any, rank: Rank) -> ModelRunner:
    if rank.share.rank:
        os._exit(7)
    return build(None, rank)


def build_for_core(_config: EngineConfig) -> ModelRunner:
    """Build what a core process runs, with a short patience."""
    from quire_engine.runner.group import workers
    from quire_engine.runner.group.group_runner import build_group

    workers.GRACE_S = 0.5
    return build_group("rank_support:build", None, 2)
