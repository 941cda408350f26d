from quire_router.discovery_status import DiscoveryStatus, Endpoint
from quire_router.workers.memory import Status, WorkerMemory
from quire_router.workers.share import WorkerShare
from quire_router.workers.sources import SourceFacts, going_on, merged
from quire_router.workers.views import WorkerView

NAME = "kubernetes:///engines"


def facts(**fields: object) -> SourceFacts:
    return SourceFacts(source=NAME, **fields)  # type: ignore[arg-type]


def test_counts_add_up_and_the_worker_that_heard_nothing_for_longest_gives_the_age() -> None:
    live = [
        [facts(heard_at=5.0, num_lists=3, failures={"timeout": 1}, num_endpoints={"ready": 2})],
        [facts(heard_at=9.0, num_lists=2, failures={"timeout": 2, "410": 1})],
    ]
    ended = [[facts(heard_at=99.0, num_lists=10, num_endpoints={"ready": 7})]]

    [status] = merged(live, ended)

    assert (status.num_lists, status.failures) == (15, {"timeout": 3, "410": 1})
    assert status.heard_at == 5.0
    assert status.num_endpoints == {}


def test_a_source_is_synced_once_every_worker_has_heard_it() -> None:
    [status] = merged([[facts(heard_at=5.0)], [facts(started_at=2.0)]], [])

    assert status.heard_at is None
    assert status.started_at == 0.0


def test_a_source_that_only_ended_workers_knew_is_not_shown() -> None:
    assert merged([], [[facts(num_lists=3)]]) == []


def test_a_worker_goes_on_with_the_counts_of_the_one_before_it() -> None:
    own, ended = [facts(heard_at=1.0, num_lists=1)], [facts(num_lists=4, failures={"410": 2})]

    assert going_on(own, ended) == [facts(heard_at=1.0, num_lists=5, failures={"410": 2})]
    assert going_on([], ended) == ended


def test_counts_of_sources_survive_a_worker() -> None:
    memory = WorkerMemory(2)
    status = DiscoveryStatus(source=NAME)
    status.num_lists = 3
    shown = []
    for _ in range(3):
        share = WorkerShare(memory, 0)
        view = WorkerView(sources=[SourceFacts.of(status)])
        share.publish(view, is_synced=True, num_ready=0)
        [found] = share.survey.sources()
        shown.append(found.num_lists)
        memory.slots[0].words[Status.PID] = 0

    assert shown == [3, 6, 9]


def test_what_a_source_tells_of_a_replica_is_shown() -> None:
    share = WorkerShare(WorkerMemory(2), 1)
    status = DiscoveryStatus(source=NAME, endpoints={"10.0.0.1:1": Endpoint(pod="engine-0")})
    view = WorkerView(sources=[SourceFacts.of(status)])
    share.publish(view, is_synced=True, num_ready=0)

    [found] = share.survey.sources()

    assert found.endpoints["10.0.0.1:1"].pod == "engine-0"
