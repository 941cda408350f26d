from typing import Any

import pytest
from hypothesis import given, strategies as st

from quire_router.discovery_status import Endpoint
from quire_router.endpoint_slices import EndpointSlices, ServiceName
from quire_router.errors import ConfigError
from scripted_api_server import endpoint, slice_of


def targets(*slices: dict[str, Any], port: str = "grpc") -> set[str]:
    known = EndpointSlices(port)
    known.replace(slices)
    return set(known.targets())


def test_serving_endpoints_are_targets_under_the_port_of_that_name() -> None:
    one = slice_of("a", endpoint("10.0.0.1"), endpoint("10.0.0.2"))

    assert targets(one) == {"10.0.0.1:50051", "10.0.0.2:50051"}
    assert targets(one, port="metrics") == {"10.0.0.1:9464", "10.0.0.2:9464"}
    assert targets(one, port="7777") == {"10.0.0.1:7777", "10.0.0.2:7777"}
    assert targets(one, port="http") == set()


def test_an_endpoint_that_is_not_serving_gets_nothing() -> None:
    assert targets(slice_of("a", endpoint("10.0.0.1", ready=False))) == set()


@pytest.mark.parametrize("serving", [True, False])
def test_a_terminating_endpoint_gets_nothing_new_serving_or_not(serving: bool) -> None:
    leaving = endpoint("10.0.0.1", terminating=True, serving=serving)

    assert targets(slice_of("a", leaving)) == set()


def test_ready_says_nothing_where_the_service_publishes_all_addresses() -> None:
    loading = endpoint("10.0.0.1", ready=True, serving=False)
    leaving = endpoint("10.0.0.2", ready=True, serving=True)
    leaving["conditions"] |= {"ready": True, "terminating": True}

    assert targets(slice_of("a", loading, leaving)) == set()


@pytest.mark.parametrize(
    "conditions", [{}, {"ready": None, "serving": None, "terminating": None}, {"ready": True}]
)
def test_conditions_that_nobody_states_mean_ready(conditions: dict[str, Any]) -> None:
    silent = {"addresses": ["10.0.0.1"], "conditions": conditions}

    assert targets(slice_of("a", silent)) == {"10.0.0.1:50051"}


def test_a_pod_of_two_families_is_one_replica_by_its_ipv4_address() -> None:
    four = slice_of("a", endpoint("10.0.0.1", pod="pod-1"))
    six = slice_of("b", endpoint("fd00::1", pod="pod-1"), kind="IPv6")

    assert targets(four, six) == targets(six, four) == {"10.0.0.1:50051"}
    assert targets(six) == {"[fd00::1]:50051"}


def test_a_pod_that_is_in_two_slices_for_a_while_terminates_in_both() -> None:
    old = slice_of("a", endpoint("10.0.0.1", pod="pod-1"))
    new = slice_of("b", endpoint("10.0.0.1", pod="pod-1", terminating=True))

    assert targets(old, new) == targets(new, old) == set()


def test_external_names_are_no_replicas() -> None:
    assert targets(slice_of("a", endpoint("engine.example.com"), kind="FQDN")) == set()


def test_a_slice_without_endpoints_or_ports_is_empty() -> None:
    assert targets({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": None}) == set()


def test_targets_know_their_pods_and_states_are_counted() -> None:
    known = EndpointSlices("grpc")
    known.replace(
        [
            slice_of(
                "a",
                endpoint("10.0.0.1", pod="engine-0"),
                endpoint("10.0.0.2", ready=False),
                endpoint("10.0.0.3", terminating=True),
            )
        ]
    )

    assert known.targets() == {"10.0.0.1:50051": Endpoint(pod="engine-0", node="node-1")}
    assert known.num_by_state() == {"ready": 1, "not_ready": 1, "terminating": 1}


slices = st.builds(
    slice_of,
    st.sampled_from(["a", "b", "c"]),
    st.integers(1, 5).map(lambda number: endpoint(f"10.0.0.{number}")),
    st.booleans().map(lambda leaving: endpoint("10.0.1.1", terminating=leaving)),
)
events = st.tuples(st.sampled_from(["ADDED", "MODIFIED", "DELETED"]), slices)


@given(st.lists(events, max_size=12))
def test_events_come_to_what_a_list_of_the_same_slices_says(
    history: list[tuple[str, dict[str, Any]]],
) -> None:
    watched, held = EndpointSlices("grpc"), dict[str, dict[str, Any]]()
    for kind, slice_ in history:
        watched.apply(kind, slice_)
        held.pop(slice_["metadata"]["name"], None)
        if kind != "DELETED":
            held[slice_["metadata"]["name"]] = slice_

    assert set(watched.targets()) == targets(*held.values())


def test_services_are_named_with_or_without_a_namespace() -> None:
    assert ServiceName.parse("engines.llm:50051") == ServiceName(
        name="engines", namespace="llm", port="50051"
    )
    assert ServiceName.parse("engines:grpc") == ServiceName(
        name="engines", namespace="", port="grpc"
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", "engines", "engines:", "engines:0", "engines:70000", ":50051", "a.b.c:1", "a.:1"),
        *("A:1", "a_b:1", "-a:1", "a:-1", "engines.llm/x:1", "a:GRPC"),
    ],
)
def test_what_names_no_service_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be kubernetes:///SERVICE\.NAMESPACE:PORT"):
        ServiceName.parse(text)


def test_endpoints_without_a_pod_are_told_apart_by_their_ports() -> None:
    def bare(*, terminating: bool) -> dict[str, Any]:
        return endpoint("10.0.0.1", terminating=terminating) | {"targetRef": None}

    leaving = slice_of("a", bare(terminating=True), port=1)

    assert targets(leaving, slice_of("b", bare(terminating=False), port=2)) == {"10.0.0.1:2"}
