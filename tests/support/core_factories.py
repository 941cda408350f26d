"""Runner factories for core processes under test: ones that fail, and one that can hang."""

import os
import time
from typing import ClassVar

from core_support import BLOCK_SIZE
from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError
from quire_engine.runner.plan import StepPlan, StepResult
from quire_engine.testing.hash_runner import HashRunner

HANG_TOKEN = 666
"""A prompt that begins with it hangs its step for longer than any test runs."""


class HangingRunner(HashRunner):
    load_report: ClassVar = {"weights": 1.5, "cache": 0.5}

    def execute(self, plan: StepPlan) -> StepResult:
        if any(new.token_ids[0] == HANG_TOKEN for new in plan.admitted):
            time.sleep(300)
        return super().execute(plan)


def build(config: EngineConfig) -> HangingRunner:
    return HangingRunner(
        num_blocks=64,
        block_size=BLOCK_SIZE,
        max_model_len=500,
        vocab_size=50,
        max_num_batched_tokens=config.scheduler.token_budget("cpu"),
    )


def refuse(config: EngineConfig) -> HangingRunner:
    raise ConfigError(f"block_size={config.cache.block_size} is not to my taste")


def crash(config: EngineConfig) -> HangingRunner:
    raise RuntimeError("no such device")


def die(config: EngineConfig) -> HangingRunner:
    os._exit(7)
