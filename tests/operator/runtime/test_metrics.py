"""What the operator exposes is what its catalogue declares, name by name."""

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from quire_operator.runtime.metric_catalogue import CATALOGUE
from quire_operator.runtime.metrics import OperatorMetrics
from quire_operator.runtime.schedule import Schedule

STATUS = {
    "conditions": [{"type": "Ready", "status": "True", "reason": "AllReplicasReady"}],
    "replicas": 2,
    "readyReplicas": 2,
    "updatedReplicas": 2,
    "availableReplicas": 2,
}


def exposed() -> dict[str, Metric]:
    metrics = OperatorMetrics()
    metrics.watch_queue(Schedule(), lambda: 0.0)
    metrics.watch_deployments(lambda: {("models", "chat"): {"status": STATUS}})
    metrics.requests.labels("200", "GET").inc()
    metrics.leader.labels("quire-operator").set(1)
    metrics.writes.labels("apply", "Service").inc()
    metrics.relists.labels("Pod", "gone").inc()
    metrics.watch_events.labels("Pod").inc()
    metrics.watch_silence.labels("Pod").set(1.0)
    metrics.objects.labels("Pod").set(3)
    families = text_string_to_metric_families(metrics.render().decode())
    return {family.name: family for family in families if not family.name.endswith("_created")}


def test_every_declared_metric_is_exposed_and_no_other() -> None:
    assert set(exposed()) == {declared.family for declared in CATALOGUE}


def test_metrics_are_exposed_as_they_are_declared() -> None:
    shown = exposed()
    for declared in CATALOGUE:
        family = shown[declared.family]
        assert family.type == declared.kind, declared.name
        assert family.documentation == declared.help, declared.name
        assert family.samples, declared.name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(declared.labels), declared.name
        if declared.values:
            values = {sample.labels[declared.labels[-1]] for sample in family.samples}
            assert values == set(declared.values), declared.name


def test_totals_are_counters() -> None:
    for declared in CATALOGUE:
        assert declared.name.endswith("_total") == (declared.kind == "counter"), declared.name
