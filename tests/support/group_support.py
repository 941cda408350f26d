"""Ranks of small models on the CPU, and ranks that go wrong."""

from gpu_runner_support import Setting
from quire_engine.runner.gpu.runner import GpuRunner
from quire_engine.runner.group.rank import Rank


def build_family(family: str, rank: Rank) -> GpuRunner:
    return Setting(family).gpu_runner(rank)
