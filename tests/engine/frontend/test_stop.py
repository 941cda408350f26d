import pytest
from hypothesis import given, settings, strategies as st

from quire_engine.frontend.stop import StopStrings

texts = st.text("abc", max_size=12)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


def _split(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _reference(text: str, stops: list[str], gate: int) -> tuple[int, int, str] | None:
    """Return end, start and string of the first match that ends beyond `gate`, else None."""
    matches = [
        (end, end - len(stop), stop)
        for end in range(gate + 1, len(text) + 1)
        for stop in stops
        if text[:end].endswith(stop)
    ]
    return min(matches, default=None)


@settings(max_examples=250)
@given(texts, stop_lists, st.booleans(), st.data())
def test_the_text_is_cut_at_the_first_match_however_it_is_split(
    text: str, stops: list[str], includes: bool, data: st.DataObject
) -> None:
    expected = _reference(text, stops, 0)
    watch = StopStrings(stops, include_in_output=includes)
    given_out = ""

    for part in _split(text, data):
        given_out += watch.push(part)
        if watch.matched is not None:
            break
    given_out += watch.finish()

    if expected is None:
        assert (given_out, watch.matched) == (text, None)
    else:
        end, start, stop = expected
        assert (given_out, watch.matched) == (text[: end if includes else start], stop)


@settings(max_examples=250)
@given(texts, stop_lists, st.data())
def test_what_is_held_back_is_exactly_what_may_become_a_stop_string(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    watch = StopStrings(stops)
    seen = given_out = ""

    for part in _split(text, data):
        given_out += watch.push(part)
        seen += part
        if watch.matched is not None:
            return
        begun = [
            length
            for stop in stops
            for length in range(1, min(len(stop), len(seen) + 1))
            if seen.endswith(stop[:length])
        ]
        assert seen == given_out + seen[len(given_out) :]
        assert len(seen) - len(given_out) == max(begun, default=0)


@settings(max_examples=300)
@given(texts, texts, stop_lists, st.data())
def test_a_match_that_ends_before_the_gate_does_not_count(
    before: str, after: str, stops: list[str], data: st.DataObject
) -> None:
    expected = _reference(before + after, stops, len(before))
    watch = StopStrings(stops)

    given_out = "".join(watch.push(part, may_stop=False) for part in _split(before, data))
    for part in _split(after, data):
        given_out += watch.push(part)
        if watch.matched is not None:
            break
    given_out += watch.finish()

    if expected is None:
        assert (given_out, watch.matched) == (before + after, None)
    else:
        assert (given_out, watch.matched) == ((before + after)[: expected[1]], expected[2])


@pytest.mark.parametrize(
    ("stops", "text", "given_out", "matched"),
    [
        (["abc", "b"], "xabc", "xa", "b"),
        (["b", "ab"], "xab", "x", "ab"),
        (["\n\n"], "one\ntwo\n\nthree", "one\ntwo", "\n\n"),
    ],
)
def test_the_match_completed_first_wins_and_then_the_longer(
    stops: list[str], text: str, given_out: str, matched: str
) -> None:
    watch = StopStrings(stops)

    assert watch.push(text) == given_out
    assert watch.matched == matched
