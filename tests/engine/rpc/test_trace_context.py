import pytest
from hypothesis import given, strategies as st

from quire_engine.rpc.trace_context import NO_TRACE_CONTEXT, TraceContext, trace_id_of

PARENT = f"00-{'a1' * 16}-{'b2' * 8}-01"


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "hello",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "\n",
        PARENT.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-{'b2' * 8}-01",
        f"00-{'a1' * 16}-{'0' * 16}-01",
        PARENT + "-" + "x" * 65,
    ],
)
def test_what_names_no_span_is_dropped_with_its_state(parent: str) -> None:
    assert TraceContext.checked(parent, "vendor=1") == NO_TRACE_CONTEXT
    assert trace_id_of(parent) == ""


def test_a_well_formed_context_is_kept_whoever_will_read_it() -> None:
    later_version = PARENT.replace("00-", "01-", 1) + "-more"

    assert TraceContext.checked(PARENT, "vendor=1") == TraceContext(PARENT, "vendor=1")
    assert TraceContext.checked(later_version).traceparent == later_version
    assert trace_id_of(PARENT) == "a1" * 16


@pytest.mark.parametrize("state", ["x" * 513, "a=b\nfake: header", "a=\u00e9"])
def test_a_state_that_does_not_fit_a_header_is_dropped_alone(state: str) -> None:
    assert TraceContext.checked(PARENT, state) == TraceContext(PARENT, "")


@given(st.text(max_size=80))
def test_no_text_passes_for_a_context_by_chance(text: str) -> None:
    assert TraceContext.checked(text).traceparent in ("", text)
    assert set(trace_id_of(text)) <= set("0123456789abcdef")
