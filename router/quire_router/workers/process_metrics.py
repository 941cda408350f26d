"""Metrics of a router's processes: what one process shows of itself, for all of them together."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire_router import metric_catalogue as catalogue
from quire_router.workers.memory import Common, Flag, Status, WorkerMemory

CPU = "process_cpu_seconds"
STARTED = "process_start_time_seconds"


class WorkersCollector(Collector):
    """The processes of a router that has workers: how many, and what they use."""

    def __init__(self, memory: WorkerMemory) -> None:
        self._memory = memory

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not collect to learn our names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        common, live = self._memory.common, self._memory.live
        num_serving = sum(Flag.SERVING in slot.flags for slot in live)
        yield from worker_families(num_serving, common[Common.NUM_RESTARTS])
        pids = [common[Common.SUPERVISOR], *(slot.words[Status.PID] for slot in live)]
        families = [list(_of_process(pid)) for pid in pids if pid]
        for family in families[0] if families else ():
            values = [
                sample.value
                for others in families
                for other in others
                for sample in other.samples
                if other.name == family.name
            ]
            total = min(values) if family.name == STARTED else sum(values)
            yield _like(family, self._cpu_s(total) if family.name == CPU else total)

    def _cpu_s(self, living_s: float) -> float:
        """Return the processor time with that of workers that have ended; it never falls.

        For a moment a worker that has just ended is counted in neither.
        """
        numbers = self._memory.common_numbers
        total_s = max(living_s + numbers[Common.ENDED_CPU_S], numbers[Common.SHOWN_CPU_S])
        numbers[Common.SHOWN_CPU_S] = total_s
        return total_s


class LoneProcessCollector(Collector):
    """The same of a router that is one process, besides what that shows of itself anyway."""

    def describe(self) -> Iterable[Metric]:
        """Return nothing, as above."""
        return ()

    def collect(self) -> Iterator[Metric]:
        return worker_families(1, 0)


def worker_families(num_serving: int, num_restarts: int) -> Iterator[Metric]:
    """Yield the metrics that tell of workers."""
    yield GaugeMetricFamily(catalogue.WORKERS.name, catalogue.WORKERS.help, value=num_serving)
    restarts = catalogue.WORKER_RESTARTS
    yield CounterMetricFamily(restarts.family, restarts.help, value=num_restarts)


def _of_process(pid: int) -> Iterable[Metric]:
    read: Callable[[], int] = partial(int, pid)
    own = "self" if pid == os.getpid() else None
    collector = ProcessCollector(pid=(lambda: own) if own else read, registry=None)
    return collector.collect()


def _like(family: Metric, value: float) -> Metric:
    type_ = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
    return type_(family.name, family.documentation, value=value)
