"""Router, protection, monitoring, autoscaling, placement, and what people lay over pods."""

from typing import Any

import pytest

from plan_support import child, condition, engine, kinds, verdict
from quire_operator.plan import OperatorSettings, Plan
from quire_operator.plan.overlay import overlay
from simulated_cluster import SimulatedCluster, make_deployment

SCALING: dict[str, Any] = {
    "maxReplicas": 4,
    "metrics": [{"type": "queueDepth", "target": 4}, {"type": "kvCachePercent", "target": 80}],
}
KEDA: dict[str, Any] = SCALING | {"provider": "keda", "prometheusAddress": "http://prometheus:9090"}
KEDA_API = frozenset({("keda.sh/v1alpha1", "ScaledObject")})
METRICS_API = frozenset({("custom.metrics.k8s.io/v1beta1", "MetricValueList")})


def plan_of(
    *, settings: OperatorSettings | None = None, apis: frozenset[Any] = frozenset(), **spec: Any
) -> Plan:
    return SimulatedCluster(make_deployment(**spec), settings=settings, apis=apis).plan()


def pod_of(made: Plan) -> dict[str, Any]:
    found: dict[str, Any] = child(made, "StatefulSet")["spec"]["template"]["spec"]
    return found


def test_the_grace_period_covers_pre_stop_drain_and_a_margin() -> None:
    made = plan_of(drain={"preStopSeconds": 20, "timeoutSeconds": 300})

    assert pod_of(made)["terminationGracePeriodSeconds"] == 330
    assert engine(made)["lifecycle"]["preStop"] == {"sleep": {"seconds": 20}}
    assert "--shutdown-timeout=300" in engine(made)["args"]


def test_without_a_pre_stop_there_is_no_hook() -> None:
    assert "lifecycle" not in engine(plan_of(drain={"preStopSeconds": 0}))


def test_the_start_up_budget_is_apart_from_liveness() -> None:
    container = engine(plan_of(probes={"startupSeconds": 3600, "livenessFailureSeconds": 90}))

    startup, liveness = container["startupProbe"], container["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 3600
    assert liveness["periodSeconds"] * liveness["failureThreshold"] == 90
    assert liveness["grpc"]["service"] == "liveness"


def test_the_routers_rights_are_endpoint_slices_alone() -> None:
    made = plan_of()

    [rule] = child(made, "Role")["rules"]
    assert rule == {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["get", "list", "watch"],
    }
    [subject] = child(made, "RoleBinding")["subjects"]
    assert (
        subject["name"]
        == child(made, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    )


def test_api_keys_are_mounted_and_never_an_argument() -> None:
    made = plan_of(router={"apiKeysSecretRef": {"name": "clients", "key": "list"}})

    pod = child(made, "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert "--api-key-file=/etc/quire/api-keys/list" in container["args"]
    assert {"name": "api-keys", "secret": {"secretName": "clients"}} in pod["volumes"]


def test_a_deployment_without_a_router_has_no_front_door() -> None:
    made = plan_of(router={"enabled": False})

    assert not kinds(made) & {"Deployment", "Role", "RoleBinding", "ServiceAccount"}
    assert verdict(made, "RouterReady") == ("True", "Disabled")
    assert "url" not in made.status


def test_only_routers_may_call_engines() -> None:
    rules = child(plan_of(), "NetworkPolicy", "demo-engine")["spec"]["ingress"]

    [grpc] = [rule for rule in rules if rule["ports"][0]["port"] == 50051]
    assert grpc["from"] == [
        {
            "podSelector": {
                "matchLabels": {
                    "quire.dev/deployment": "demo",
                    "app.kubernetes.io/component": "router",
                }
            }
        }
    ]


def test_callers_of_the_router_can_be_named_and_prometheus_stays_one() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "a"}}}
    settings = OperatorSettings(metrics_namespaces=("monitoring",))

    made = plan_of(settings=settings, networkPolicy={"from": [peer]})

    [rule] = child(made, "NetworkPolicy", "demo-router")["spec"]["ingress"]
    assert rule["from"][0] == peer
    [scrape] = rule["from"][1]["namespaceSelector"]["matchExpressions"]
    assert scrape["values"] == ["monitoring"]


def test_network_policies_can_be_turned_off() -> None:
    assert "NetworkPolicy" not in kinds(plan_of(networkPolicy={"enabled": False}))
    off = OperatorSettings(network_policies=False)
    assert "NetworkPolicy" not in kinds(plan_of(settings=off))


def test_one_pod_alone_gets_no_budget_that_would_pin_its_node() -> None:
    made = plan_of(replicas=1, router={"replicas": 1})

    assert "PodDisruptionBudget" not in kinds(made)


def test_a_budget_does_not_protect_what_is_broken() -> None:
    made = plan_of(replicas=4, disruption={"maxUnavailable": "25%"})

    budget = child(made, "PodDisruptionBudget", "demo-engine")["spec"]
    assert budget["maxUnavailable"] == "25%"
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize(
    ("enabled", "has_api", "is_made", "is_accepted"),
    [
        ("Auto", True, True, True),
        ("Auto", False, False, True),
        ("Always", False, False, False),
        ("Never", True, False, True),
    ],
)
def test_a_pod_monitor_is_made_where_the_cluster_knows_it(
    enabled: str, *, has_api: bool, is_made: bool, is_accepted: bool
) -> None:
    apis = frozenset({("monitoring.coreos.com/v1", "PodMonitor")} if has_api else ())

    made = plan_of(apis=apis, observability={"podMonitor": {"enabled": enabled}})

    assert ("PodMonitor" in kinds(made)) is is_made
    assert (condition(made, "Accepted")["status"] == "True") is is_accepted


def test_a_pod_monitor_has_the_labels_that_prometheus_selects_by() -> None:
    apis = frozenset({("monitoring.coreos.com/v1", "PodMonitor")})
    settings = OperatorSettings(pod_monitor_labels={"release": "prometheus"})

    made = plan_of(settings=settings, apis=apis)

    assert child(made, "PodMonitor")["metadata"]["labels"]["release"] == "prometheus"


def test_an_hpa_scales_the_deployment_and_not_its_stateful_set() -> None:
    made = plan_of(apis=METRICS_API, autoscaling=SCALING)

    hpa = child(made, "HorizontalPodAutoscaler")["spec"]
    assert hpa["scaleTargetRef"]["kind"] == "LLMDeployment"
    targets = [metric["pods"]["target"]["averageValue"] for metric in hpa["metrics"]]
    assert targets == ["4", "800m"]
    assert verdict(made, "AutoscalerReady") == ("True", "Ready")


def test_an_hpa_without_metrics_is_reported() -> None:
    made = plan_of(autoscaling=SCALING)

    assert verdict(made, "AutoscalerReady") == ("False", "MetricsAPIMissing")
    assert "prometheus-adapter" in condition(made, "AutoscalerReady")["message"]


def test_without_keda_a_condition_says_so_and_replicas_stay() -> None:
    made = plan_of(autoscaling=KEDA)

    assert verdict(made, "AutoscalerReady") == ("False", "CRDNotInstalled")
    assert "ScaledObject" not in kinds(made)
    assert "StatefulSet" in kinds(made)


def test_keda_without_a_prometheus_to_ask_is_reported() -> None:
    scaling = {key: value for key, value in KEDA.items() if key != "prometheusAddress"}

    made = plan_of(apis=KEDA_API, autoscaling=scaling)
    helped = plan_of(
        apis=KEDA_API,
        autoscaling=scaling,
        settings=OperatorSettings(prometheus_address="http://prometheus:9090"),
    )

    assert verdict(made, "AutoscalerReady") == ("False", "PrometheusAddressMissing")
    assert verdict(helped, "AutoscalerReady") == ("True", "Ready")


def test_keda_wakes_a_deployment_by_requests_at_its_router() -> None:
    scaling = KEDA | {"minReplicas": 0, "scaleToZero": {"idleSeconds": 600}}

    made = plan_of(apis=KEDA_API, autoscaling=scaling, replicas=0)

    spec = child(made, "ScaledObject")["spec"]
    assert spec["minReplicaCount"] == 0
    assert spec["cooldownPeriod"] == 600
    wake = spec["triggers"][-1]["metadata"]
    assert wake["query"].startswith("sum(quire_router_requests_in_flight{")
    router = child(made, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert "--replica-wait-s=600" in router["args"]


def test_a_suspended_deployment_has_no_autoscaler_that_would_wake_it() -> None:
    made = plan_of(apis=METRICS_API, autoscaling=SCALING, suspend=True)

    assert "HorizontalPodAutoscaler" not in kinds(made)


def test_a_tensor_parallel_replica_goes_to_nvlink_nodes_only() -> None:
    node = pod_of(plan_of(parallelism={"tensor": 8}))["affinity"]["nodeAffinity"]

    terms = node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    rules = {rule["key"]: rule for rule in terms[0]["matchExpressions"]}
    assert "NVIDIA-H200" in rules["nvidia.com/gpu.product"]["values"]
    assert "NVIDIA-L40S" not in rules["nvidia.com/gpu.product"]["values"]
    assert rules["nvidia.com/gpu.count"] == {
        "key": "nvidia.com/gpu.count",
        "operator": "Gt",
        "values": ["7"],
    }
    assert rules["nvidia.com/gpu.slices.gi"]["operator"] == "DoesNotExist"


def test_preferred_nvlink_forbids_no_node() -> None:
    placement = {"nvlink": {"mode": "Preferred"}}

    node = pod_of(plan_of(parallelism={"tensor": 2}, placement=placement))["affinity"]

    assert "preferredDuringSchedulingIgnoredDuringExecution" in node["nodeAffinity"]


def test_what_the_user_says_of_nodes_is_passed_on() -> None:
    placement = {
        "nodeSelector": {"pool": "llm"},
        "tolerations": [{"key": "llm", "operator": "Exists"}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "schedulerName": "other",
        "topologySpread": "None",
    }

    pod = pod_of(plan_of(placement=placement))

    assert pod["nodeSelector"] == {"pool": "llm"}
    assert {"key": "llm", "operator": "Exists"} in pod["tolerations"]
    assert (pod["priorityClassName"], pod["runtimeClassName"]) == ("high", "nvidia")
    assert pod["schedulerName"] == "other"
    assert "topologySpreadConstraints" not in pod


def test_a_cpu_replica_asks_for_no_gpu_and_goes_anywhere() -> None:
    made = plan_of(engine={"device": "cpu"}, model={"source": "demo://SmolLM2-135M-Instruct"})

    pod = pod_of(made)
    assert "affinity" not in pod
    assert "tolerations" not in pod
    assert "nvidia.com/gpu" not in engine(made)["resources"]["limits"]
    assert "--device=cpu" in engine(made)["args"]
    assert not any(argument.startswith("--model=") for argument in engine(made)["args"])


def test_claimed_gpus_are_not_asked_for_twice() -> None:
    apis = frozenset({("resource.k8s.io/v1", "ResourceClaimTemplate")})
    dra = {"deviceClassName": "gpu.nvidia.com", "selectors": ["true"]}

    made = plan_of(apis=apis, resources={"dra": dra}, parallelism={"tensor": 2})

    [request] = child(made, "ResourceClaimTemplate")["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["count"] == 2
    assert engine(made)["resources"]["claims"] == [{"name": "gpus"}]
    assert "nvidia.com/gpu" not in engine(made)["resources"]["limits"]


def test_variables_of_the_spec_win_over_ours() -> None:
    env = [{"name": "HF_HUB_OFFLINE", "value": "0"}, {"name": "A", "value": "b"}]
    cache = {"type": "HostPath", "hostPath": "/models"}

    container = engine(plan_of(engine={"env": env}, cache=cache))

    names = [entry["name"] for entry in container["env"]]
    assert len(names) == len(set(names))
    assert {"name": "HF_HUB_OFFLINE", "value": "0"} in container["env"]


def test_a_pod_template_is_laid_over_by_name() -> None:
    template = {
        "metadata": {"labels": {"team": "a", "quire.dev/deployment": "stolen"}},
        "spec": {
            "containers": [
                {"name": "engine", "resources": {"limits": {"memory": "64Gi"}}},
                {"name": "sidecar", "image": "example.com/sidecar:1"},
            ],
            "hostNetwork": True,
        },
    }

    made = plan_of(podTemplate=template)

    pod = pod_of(made)
    assert [container["name"] for container in pod["containers"]] == ["engine", "sidecar"]
    limits = engine(made)["resources"]["limits"]
    assert limits == {"memory": "64Gi", "nvidia.com/gpu": "1"}
    labels = child(made, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert labels["team"] == "a"
    assert labels["quire.dev/deployment"] == "demo"


@pytest.mark.parametrize(
    ("base", "top", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"a": 1}, {"a": None}, {}),
        ({"args": ["x"]}, {"args": ["y"]}, {"args": ["y"]}),
        (
            {"c": [{"name": "x", "v": 1}]},
            {"c": [{"name": "x", "w": 2}]},
            {"c": [{"name": "x", "v": 1, "w": 2}]},
        ),
        ({"c": [1]}, {"c": [2]}, {"c": [2]}),
        ({"c": [{"name": "x"}]}, {"c": "text"}, {"c": "text"}),
    ],
)
def test_overlay_merges_maps_and_named_lists(base: Any, top: Any, merged: Any) -> None:
    assert overlay(base, top) == merged
