from hypothesis import given, strategies as st

from quire_engine.core.chunking import PrefillDemand, divide


@given(st.data())
def test_all_progress_and_no_token_is_wasted(data: st.DataObject) -> None:
    wants = data.draw(st.lists(st.integers(1, 300), max_size=12))
    is_long = [data.draw(st.booleans()) for _ in wants]
    num_tokens = data.draw(st.integers(len(wants), 600))
    grants = divide(wants, is_long, num_tokens)
    assert all(1 <= grant <= want for grant, want in zip(grants, wants, strict=True))
    assert sum(grants) == min(num_tokens, sum(wants))


def test_short_prefills_are_served_in_order_as_many_as_fit() -> None:
    assert divide([100, 100, 100], [False] * 3, 250) == [100, 100, 50]


def test_a_lone_long_prefill_takes_the_whole_step() -> None:
    assert divide([5000], [True], 512) == [512]


def test_a_long_prefill_leaves_half_a_step_to_short_ones_behind_it() -> None:
    assert divide([5000, 200], [True, False], 512) == [312, 200]
    assert divide([5000, 400, 400], [True, False, False], 512)[1:] == [256, 1]


def test_short_prefills_leave_half_a_step_to_a_long_one_behind_them() -> None:
    assert divide([400, 400, 5000], [False, False, True], 512)[2] >= 250


def test_the_first_of_many_long_prefills_is_hardly_slowed_by_the_others() -> None:
    grants = divide([5000] * 8, [True] * 8, 512)
    assert grants[0] >= 512 // 2 - 8
    assert grants == sorted(grants, reverse=True) or grants[-1] <= grants[-3]


def test_there_is_room_for_another_prefill_until_short_ones_fill_their_part() -> None:
    demand = PrefillDemand(512, long_above=512, max_chunk=512)
    assert demand.has_room
    demand.add(10_000)
    assert demand.has_room
    demand.add(255)
    assert demand.has_room
    demand.add(1)
    assert not demand.has_room


def test_a_configured_threshold_bounds_every_chunk() -> None:
    demand = PrefillDemand(512, long_above=64, max_chunk=64)
    assert demand.divide([1000, 50]) == [64, 50]
