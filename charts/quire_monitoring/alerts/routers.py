"""Alerts about routers: whom they can reach, and how well they spread the load."""

from quire_monitoring.recordings import threshold
from quire_monitoring.rules import Alert, Group, Severity

_ABOUT = "{{ $labels.namespace }}/{{ $labels.quire_dev_deployment }}"
_POD = "{{ $labels.namespace }}/{{ $labels.pod }}"
_ROUTER_LOGS = "`kubectl logs -n NAMESPACE deployment/NAME-router --tail=100`"

ROUTER_ALERTS = Group(
    "quire-alerts-routers",
    [
        Alert(
            name="QuireRouterNoReplicas",
            severity=Severity.CRITICAL,
            expr="(quire_router_requests_in_flight > 0 or quire_router_parked_requests > 0)"
            " unless on (namespace, quire_dev_deployment, pod, instance)"
            " quire_router_replica_up == 1",
            lasting="2m",
            summary=f"{_POD} has requests and no replica to send them to",
            meaning="Requests wait, then fail with 503. No replica is ready, or this router does "
            "not "
            "find or reach them.",
            look=(
                "`kubectl get pods -n NAMESPACE -l quire.dev/deployment=NAME`: is an engine ready? "
                "If none is, see QuireNoReadyReplicas.",
                "`kubectl get endpointslices -n NAMESPACE -l quire.dev/deployment=NAME`",
                _ROUTER_LOGS,
                "Scaled to zero: does the autoscaler bring one? See QuireAutoscalerFailing.",
            ),
        ),
        Alert(
            name="QuireDiscoveryStale",
            severity=Severity.WARNING,
            expr="quire_router_discovery_age_seconds > 600",
            lasting="5m",
            summary=f"{_POD} has not heard of {{{{ $labels.source }}}} for "
            "{{ $value | humanizeDuration }}",
            meaning="The router goes on with the replicas that it knows: new ones get no "
            "requests, and "
            "after a rollout none is left.",
            look=(
                "Board *Cache and routing*, *Lists and failures*: the reason of each failure.",
                "`kubectl auth can-i list endpointslices -n NAMESPACE "
                "--as=system:serviceaccount:NAMESPACE:NAME-router`",
                _ROUTER_LOGS,
            ),
        ),
        Alert(
            name="QuireBreakerOpen",
            severity=Severity.WARNING,
            expr="quire_router_replica_breaker_open == 1",
            lasting="5m",
            summary=f"{_POD} keeps requests away from {{{{ $labels.replica }}}}",
            meaning="The replica failed several requests in a row. The others carry its load.",
            look=(
                "Board *Cache and routing*, *Not served, by replica and reason*.",
                "Which pod it is: the table *Replicas and their pods* on the same board.",
                "`kubectl logs -n NAMESPACE POD --tail=100` of that engine.",
            ),
        ),
        Alert(
            name="QuireLoadSkewed",
            severity=Severity.WARNING,
            expr=f"quire:replica_load:skew > {threshold('loadSkew')}"
            " and on (namespace, quire_dev_deployment)"
            " max by (namespace, quire_dev_deployment) (quire:replica_load:requests) > 8",
            lasting="15m",
            summary=f"{_ABOUT}: the busiest replica has {{{{ $value | humanize }}}} times the mean",
            meaning="Some requests wait while other replicas are free. One prompt prefix has "
            "become "
            "very hot, a router does not see all replicas, or a replica is slow.",
            look=(
                "Board *Cache and routing*, *Requests by replica* and *Queued tokens by replica*.",
                "Same board, *State*: is a replica not ready for one of the routers?",
                "Board *Model*, *Decode step*: a slow replica collects requests.",
            ),
        ),
        Alert(
            name="QuirePrefixIndexDegraded",
            severity=Severity.WARNING,
            expr='quire_router_replica_prefix_index_mode{mode="degraded"} == 1'
            " and on (namespace, quire_dev_deployment, pod, instance, replica)"
            " quire_router_replica_up == 1",
            lasting="15m",
            summary=f"{_POD} guesses what {{{{ $labels.replica }}}} has cached",
            meaning="Cache events do not arrive, so decisions rest on what the router itself sent "
            "there; fewer prompts are found cached.",
            look=(
                "Board *Cache and routing*, *Subscriptions to cache events* and *Age of the "
                "knowledge*.",
                _ROUTER_LOGS,
                "Engines and routers of different versions? `kubectl get pods -n NAMESPACE "
                "-l quire.dev/deployment=NAME -o custom-columns=POD:.metadata.name,"
                "IMAGE:.spec.containers[0].image`",
            ),
        ),
        Alert(
            name="QuireRouterWorkersRestarting",
            severity=Severity.WARNING,
            expr="increase(quire_router_worker_restarts_total[30m]) > 2",
            lasting="0m",
            summary=f"{_POD} has restarted workers {{{{ $value | humanize }}}} times in half an "
            "hour",
            meaning="The streams of a worker end with it; its router goes on with the others. Out "
            "of memory, a crash, or an event loop that stood still for 30 s.",
            look=(
                "`kubectl logs -n NAMESPACE POD | grep 'worker ended'`: how each ended.",
                "`kubectl top pod -n NAMESPACE -l app.kubernetes.io/component=router`: is the "
                "memory near its limit? `spec.router.resources`, or fewer `--workers`.",
                "Board *Cache and routing*, *Workers restarted*: since when, and in which pods?",
            ),
        ),
        Alert(
            name="QuireRouterOverloaded",
            severity=Severity.WARNING,
            expr="histogram_quantile(0.99, sum by (le, namespace, quire_dev_deployment, pod)"
            " (rate(quire_router_event_loop_lag_seconds_bucket[5m]))) > 0.25",
            lasting="10m",
            summary=f"{_POD} does what is due {{{{ $value | humanizeDuration }}}} late",
            meaning="Every token that passes this router is late. It has too little CPU for its "
            "streams.",
            look=(
                "`kubectl top pod -n NAMESPACE -l app.kubernetes.io/component=router`",
                "More of them: `spec.router.replicas`; or more CPU: `spec.router.resources`.",
            ),
        ),
    ],
)
