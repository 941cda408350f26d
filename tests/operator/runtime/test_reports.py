import copy
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, strategies as st

from quire_operator.errors import ForbiddenError, InvalidError, KubeError
from quire_operator.plan import ObjectKey
from quire_operator.runtime.reports import status_patch, with_apply_errors

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SET = ObjectKey("apps/v1", "StatefulSet", "default", "llm")

statuses = st.dictionaries(
    st.text("abc", max_size=2),
    st.integers() | st.text(max_size=2) | st.dictionaries(st.text("xy", max_size=1), st.integers()),
    max_size=4,
)


def merged(live: Any, patch: Any) -> Any:
    """RFC 7386, as the server does it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(live) if isinstance(live, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


@given(statuses, statuses)
def test_the_patch_turns_the_live_status_into_the_wanted_one(live: Any, wanted: Any) -> None:
    assert merged(copy.deepcopy(live), status_patch(live, wanted)) == wanted


@given(statuses)
def test_equal_statuses_need_no_write(status: Any) -> None:
    assert status_patch(status, copy.deepcopy(status)) == {}


def deployment(status: Any = None) -> dict[str, Any]:
    return {"metadata": {"name": "llm", "generation": 3}, "status": status or {}}


def test_a_refused_object_becomes_a_condition_with_the_next_step() -> None:
    error = InvalidError("spec: Forbidden: updates to statefulset spec for fields other than")

    status = with_apply_errors({"conditions": []}, deployment(), {SET: error}, NOW)

    (condition,) = status["conditions"]
    assert condition["type"] == "Applied"
    assert condition["status"] == "False"
    assert condition["reason"] == "ImmutableFieldChanged"
    assert "StatefulSet llm" in condition["message"]
    assert "Delete the named object" in condition["message"]
    assert condition["observedGeneration"] == 3
    assert condition["lastTransitionTime"] == "2026-01-02T03:04:05Z"


def test_the_condition_keeps_the_time_of_its_start() -> None:
    before = with_apply_errors({}, deployment(), {SET: KubeError("range is full")}, NOW)
    later = datetime(2026, 1, 3, tzinfo=UTC)

    status = with_apply_errors({}, deployment(before), {SET: KubeError("range is full")}, later)

    assert status == before


def test_the_condition_goes_away_with_the_error() -> None:
    before = with_apply_errors({"phase": "x"}, deployment(), {SET: ForbiddenError("quota")}, NOW)

    assert with_apply_errors(before, deployment(before), {}, NOW) == {
        "phase": "x",
        "conditions": [],
    }


def test_without_errors_the_status_is_the_plans_own() -> None:
    status = {"conditions": [{"type": "Ready", "status": "True"}]}

    assert with_apply_errors(status, deployment(), {}, NOW) is status
