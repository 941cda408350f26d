from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire_operator.runtime.schedule import Backoff, Schedule

KEYS = st.sampled_from("abcd")


def test_a_key_added_many_times_is_taken_once() -> None:
    schedule: Schedule[str] = Schedule()
    for _ in range(3):
        schedule.add("a", now=0.0)

    assert schedule.take(now=1.0) == "a"
    assert schedule.take(now=1.0) is None


def test_a_key_added_while_it_is_worked_on_comes_back_when_it_is_done() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", now=0.0)
    schedule.take(now=0.0)
    schedule.add("a", now=1.0)

    assert schedule.take(now=1.0) is None
    schedule.done("a", now=2.0)
    assert schedule.take(now=2.0) == "a"


def test_the_earliest_of_several_delays_wins() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add_after("a", 10.0, now=0.0)
    schedule.add_after("a", 2.0, now=1.0)
    schedule.add_after("a", 30.0, now=1.0)

    assert schedule.next_due() == 3.0
    assert schedule.take(now=2.9) is None
    assert schedule.take(now=3.0) == "a"
    schedule.done("a", now=3.0)
    assert schedule.next_due() is None


def test_urgent_keys_come_first() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("resync", now=0.0)
    schedule.add("created", now=1.0, is_urgent=True)

    assert schedule.take(now=1.0) == "created"
    assert schedule.take(now=1.0) == "resync"


def test_a_ready_key_can_become_urgent() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", now=0.0)
    schedule.add("b", now=0.0)
    schedule.add("b", now=1.0, is_urgent=True)

    assert [schedule.take(now=1.0), schedule.take(now=1.0)] == ["b", "a"]
    assert schedule.num_adds == 2


def test_urgent_keys_do_not_starve_the_others() -> None:
    schedule: Schedule[int] = Schedule()
    schedule.add(-1, now=0.0)
    for key in range(100):
        schedule.add(key, now=0.0, is_urgent=True)

    assert -1 in [schedule.take(now=1.0) for _ in range(10)]


def test_failures_wait_twice_as_long_each_time_and_success_starts_over() -> None:
    schedule: Schedule[str] = Schedule(backoff=Backoff(first_s=1.0, max_s=5.0))

    assert [schedule.add_failed("a", now=0.0) for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert schedule.num_failures("a") == 5
    schedule.forget("a")
    assert schedule.add_failed("a", now=0.0) == 1.0


def test_a_failing_key_does_not_hold_up_the_others() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add_failed("a", now=0.0)
    schedule.add("b", now=0.0)

    assert schedule.take(now=0.0) == "b"


def test_a_change_does_not_wait_for_the_backoff() -> None:
    schedule: Schedule[str] = Schedule(backoff=Backoff(first_s=60.0))
    schedule.add_failed("a", now=0.0)
    schedule.add("a", now=1.0)

    assert schedule.take(now=1.0) == "a"


@given(st.integers(min_value=1, max_value=10_000))
def test_the_backoff_never_exceeds_its_maximum(num_failures: int) -> None:
    assert 0 < Backoff(first_s=0.05, max_s=60.0).delay_s(num_failures) <= 60.0


def test_replaced_delays_do_not_pile_up() -> None:
    schedule: Schedule[str] = Schedule()
    for step in range(10_000):
        schedule.add_after("a", 1000.0, now=float(step))
        schedule.add("a", now=float(step))
        schedule.take(now=float(step))
        schedule.done("a", now=float(step))

    assert len(schedule._heap) < 200


class ScheduleMachine(RuleBasedStateMachine):
    """Against a model that only knows, per key, when it was last wished for."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule: Schedule[str] = Schedule()
        self.now = 0.0
        self.wished: dict[str, float] = {}
        """Key -> when a run of it is due at the latest."""
        self.active: set[str] = set()

    def wish(self, key: str, due: float) -> None:
        self.wished[key] = min(due, self.wished.get(key, due))

    @rule(key=KEYS, is_urgent=st.booleans())
    def add(self, key: str, is_urgent: bool) -> None:
        self.schedule.add(key, now=self.now, is_urgent=is_urgent)
        self.wish(key, self.now)

    @rule(key=KEYS, delay_s=st.floats(0.0, 50.0))
    def add_after(self, key: str, delay_s: float) -> None:
        self.schedule.add_after(key, delay_s, now=self.now)
        self.wish(key, self.now + delay_s)

    @rule(key=KEYS)
    def fail(self, key: str) -> None:
        self.wish(key, self.now + self.schedule.add_failed(key, now=self.now))

    @rule(elapsed_s=st.floats(0.0, 100.0))
    def wait(self, elapsed_s: float) -> None:
        self.now += elapsed_s

    @rule()
    def take(self) -> None:
        key = self.schedule.take(now=self.now)
        due = {key for key, at in self.wished.items() if at <= self.now} - self.active
        if key is None:
            assert not due, "a wish that is due is not lost"
            return
        assert key not in self.active, "one worker per key"
        assert key in due, "nothing is taken that nobody wished for"
        del self.wished[key]
        self.active.add(key)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.active)))
        self.schedule.done(key, now=self.now)
        self.active.remove(key)

    @invariant()
    def holds(self) -> None:
        self.schedule.check()
        assert self.schedule.num_active == len(self.active)

    def teardown(self) -> None:
        for active in self.active:
            self.schedule.done(active, now=self.now)
        self.now += 10_000.0
        taken: set[str] = set()
        while (key := self.schedule.take(now=self.now)) is not None:
            taken.add(key)
        assert taken == set(self.wished), "every wish is served in the end"


TestScheduleMachine = ScheduleMachine.TestCase
TestScheduleMachine.settings = settings(max_examples=150, stateful_step_count=40)
