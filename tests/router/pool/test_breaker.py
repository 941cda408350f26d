from quire_router.breaker import MAX_OPEN_S, Breaker


def broken(now: float = 0.0) -> Breaker:
    breaker = Breaker(max_failures=3, open_s=5.0)
    for _ in range(3):
        breaker.failed(now)
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    breaker = Breaker(max_failures=3, open_s=5.0)
    breaker.failed(0.0)
    breaker.failed(0.0)
    assert breaker.allows(0.0)
    breaker.failed(0.0)
    assert not breaker.allows(4.9)


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker(max_failures=3, open_s=5.0)
    for _ in range(10):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.allows(0.0)


def test_after_a_while_one_request_may_try() -> None:
    breaker = broken()
    assert breaker.allows(5.0)
    breaker.sent()
    assert not breaker.allows(5.0)
    breaker.succeeded()
    assert breaker.allows(5.0)
    assert not breaker.is_open


def test_a_failed_trial_waits_twice_as_long_up_to_a_minute() -> None:
    breaker = broken()
    breaker.sent()
    breaker.failed(5.0)
    assert not breaker.allows(14.9)
    assert breaker.allows(15.0)
    for _ in range(10):
        breaker.sent()
        breaker.failed(100.0)
    assert breaker.allows(100.0 + MAX_OPEN_S)


def test_a_trial_that_says_nothing_frees_the_way_for_the_next() -> None:
    breaker = broken()
    breaker.sent()
    breaker.ended()
    assert breaker.allows(5.0)
