from quire_operator.runtime.health import Health, limit


def test_a_stuck_queue_fails_liveness_and_is_named() -> None:
    health = Health()
    health.require_alive("watch", lambda: "")
    health.require_alive("queue", limit("a key was ready", lambda: 400.0, 300.0))

    report = health.alive()

    assert not report.is_well
    assert report.render() == (
        "[+]watch ok\n[-]queue failed: a key was ready for 400 s; at most 300 s\n"
        "healthz check failed\n"
    )


def test_readiness_needs_more_than_liveness() -> None:
    health = Health()
    health.require_alive("watch", lambda: "")
    health.require_ready("caches", lambda: "waiting for Pod")

    assert health.alive().is_well
    assert not health.ready().is_well


def test_readiness_includes_liveness() -> None:
    health = Health()
    health.require_alive("watch", lambda: "stuck")

    assert not health.ready().is_well
