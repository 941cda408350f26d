from typing import Any

from hypothesis import given, strategies as st

from quire_operator.plan import ObjectKey
from quire_operator.runtime.resources import DEPLOYMENTS, NODES, PODS, Resource
from quire_operator.runtime.store import Change, Notice, Store

SETS = Resource("apps/v1", "StatefulSet", "statefulsets")


def deployment(version: int, *, generation: int = 1, status: Any = None) -> dict[str, Any]:
    metadata = {
        "name": "llm",
        "namespace": "default",
        "uid": "u",
        "resourceVersion": str(version),
        "generation": generation,
    }
    return {"metadata": metadata, "spec": {}, "status": status or {}}


def child(
    version: int, *, name: str = "llm", owner: str = "llm", status: Any = None, **meta: Any
) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "default",
        "uid": f"uid-{name}",
        "resourceVersion": str(version),
        "generation": 1,
        "labels": {"quire.dev/deployment": owner},
        "managedFields": [{"manager": "someone"}],
    }
    return {"metadata": metadata | meta, "spec": {}, "status": status or {}}


def node(version: int, *, heartbeat: str = "1", ready: str = "True") -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "resourceVersion": str(version), "labels": {}},
        "spec": {},
        "status": {
            "images": [{"names": ["x"]}],
            "allocatable": {"nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}],
        },
    }


def make() -> tuple[Store, list[Notice]]:
    notices: list[Notice] = []
    return Store(notices.append), notices


def test_children_and_pods_are_found_by_their_deployment() -> None:
    store, _ = make()
    store.put(SETS, child(1))
    store.put(PODS, child(2, name="llm-0"))
    store.put(SETS, child(3, name="other", owner="other"))

    assert list(store.children(("default", "llm"))) == [
        ObjectKey("apps/v1", "StatefulSet", "default", "llm")
    ]
    assert [pod["metadata"]["name"] for pod in store.pods(("default", "llm"))] == ["llm-0"]
    (live,) = store.children(("default", "llm")).values()
    assert "managedFields" not in live["metadata"]


def test_an_older_version_changes_nothing_and_tells_nobody() -> None:
    store, notices = make()
    store.put(DEPLOYMENTS, deployment(5))
    store.put(DEPLOYMENTS, deployment(4, generation=9))

    assert store.deployments["default", "llm"]["metadata"]["generation"] == 1
    assert len(notices) == 1


def test_status_and_spec_changes_are_told_apart() -> None:
    store, notices = make()
    store.put(DEPLOYMENTS, deployment(1))
    store.put(DEPLOYMENTS, deployment(2, status={"phase": "Ready"}))
    store.put(DEPLOYMENTS, deployment(3, generation=2, status={"phase": "Ready"}))
    store.put(DEPLOYMENTS, deployment(4, generation=2, status={"phase": "Ready"}))
    store.remove(DEPLOYMENTS, deployment(5))

    changes = [notice.change for notice in notices]
    assert changes == [Change.ADDED, Change.STATUS, Change.SPEC, Change.REMOVED]


def test_an_answer_is_known_before_the_watch_tells_it_and_is_not_told_twice() -> None:
    store, notices = make()
    store.put_answer(SETS, child(7))
    store.put(SETS, child(7))

    assert [notice.is_own for notice in notices] == [True]


def test_an_answer_that_the_watch_has_passed_does_not_raise_the_dead() -> None:
    store, _ = make()
    store.put(SETS, child(6))
    store.remove(SETS, child(8))
    store.put_answer(SETS, child(7))

    assert not store.children(("default", "llm"))


def test_a_bookmark_counts_as_passed() -> None:
    store, _ = make()
    store.bookmark(SETS, 9)
    store.put_answer(SETS, child(7))

    assert not store.children(("default", "llm"))


def test_a_list_takes_out_what_it_does_not_have_unless_that_is_newer() -> None:
    store, notices = make()
    store.put(SETS, child(1, name="gone"))
    store.put(SETS, child(2, name="kept"))
    store.put_answer(SETS, child(50, name="just-made"))

    store.replace(SETS, "", [child(2, name="kept")], 10)

    names = sorted(key.name for key in store.children(("default", "llm")))
    assert names == ["just-made", "kept"]
    assert notices[-1].change is Change.REMOVED


def test_a_list_of_one_namespace_leaves_the_others_alone() -> None:
    store, _ = make()
    store.put(SETS, child(1, namespace="elsewhere"))

    store.replace(SETS, "default", [], 10)

    assert store.children(("elsewhere", "llm"))


def test_a_child_that_changes_its_label_changes_its_deployment() -> None:
    store, _ = make()
    store.put(SETS, child(1))
    store.put(SETS, child(2, owner="other"))

    assert not store.children(("default", "llm"))
    assert store.children(("default", "other"))


def test_heartbeats_of_nodes_are_no_news() -> None:
    store, notices = make()
    store.put(NODES, node(1))
    known = store.nodes
    store.put(NODES, node(2, heartbeat="2"))
    assert store.nodes is known
    store.put(NODES, node(3, heartbeat="3", ready="Unknown"))

    assert [notice.change for notice in notices] == [Change.ADDED, Change.SPEC]
    assert "images" not in next(iter(known))["status"]
    assert store.nodes is not known


def test_only_the_object_that_was_meant_is_discarded() -> None:
    store, _ = make()
    store.put(SETS, child(1))
    key = ObjectKey("apps/v1", "StatefulSet", "default", "llm")

    store.discard(SETS, key, "another-uid")
    assert store.children(("default", "llm"))
    store.discard(SETS, key, "uid-llm")
    assert not store.children(("default", "llm"))


@given(
    st.lists(
        st.tuples(st.sampled_from(["watch", "answer"]), st.sampled_from("xy"), st.booleans()),
        max_size=30,
    ),
    st.data(),
)
def test_the_store_ends_as_the_server_whatever_comes_late(
    writes: list[tuple[str, str, bool]], data: st.DataObject
) -> None:
    """Writes happen in order; the watch tells all of them in order, answers come at any time."""
    store, _ = make()
    live: dict[str, int] = {}
    watch, answers = [], []
    for version, (source, name, is_deletion) in enumerate(writes, start=1):
        if is_deletion and name in live:
            del live[name]
            watch.append(("remove", name, version))
            continue
        live[name] = version
        watch.append(("put", name, version))
        if source == "answer":
            answers.append((name, version))

    while watch or answers:
        if answers and (not watch or data.draw(st.booleans())):
            # An answer can be early or late, but never from the future of its own watch's end.
            name, version = answers.pop(0)
            store.put_answer(SETS, child(version, name=name))
        else:
            verb, name, version = watch.pop(0)
            (store.put if verb == "put" else store.remove)(SETS, child(version, name=name))

    held = store.children(("default", "llm"))
    assert {key.name: int(m["metadata"]["resourceVersion"]) for key, m in held.items()} == live
