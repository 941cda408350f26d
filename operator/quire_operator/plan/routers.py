"""The router: a Deployment, the Service that clients use, and the right to watch EndpointSlices."""

from typing import Any

from quire_operator.plan.context import Context
from quire_operator.plan.contract import Manifest
from quire_operator.plan.labels import ROUTER, selector_labels
from quire_operator.plan.placement import HOSTNAME
from quire_operator.plan.pod_parts import container_security, image_fields, pod_security

HTTP_PORT = 8000
SHUTDOWN_DELAY_SECONDS = 5
"""For load balancers and proxies to learn that a pod leaves; it still takes requests."""
KILL_MARGIN_SECONDS = 10
KEYS_FOLDER = "/etc/quire/api-keys"
MAX_WAIT_FOR_REPLICA_S = 600

_POLICIES = {"PrefixAware": "cost", "LeastLoaded": "least-requests"}

Json = dict[str, Any]


def router_objects(ctx: Context) -> list[Manifest]:
    """Return everything of the router, its rights before its pods."""
    if not ctx.spec.router.enabled:
        return []
    return [*_access(ctx), router_service(ctx), _deployment(ctx)]


def router_service(ctx: Context) -> Manifest:
    """Return the front door: it has the name of the deployment."""
    service = ctx.spec.router.service
    port = {"name": "http", "port": service.port, "targetPort": "http", "appProtocol": "http"}
    spec = {
        "type": service.type,
        "selector": selector_labels(ctx.name, ROUTER),
        "ports": [port],
    }
    return ctx.child("v1", "Service", ctx.name, ROUTER, annotations=service.annotations, spec=spec)


def router_flags(ctx: Context) -> list[str]:
    """Return the arguments of the router's container."""
    router = ctx.spec.router
    flags = [
        f"--replicas={discovery_target(ctx)}",
        f"--routing-policy={_POLICIES[router.policy]}",
        f"--port={HTTP_PORT}",
        f"--shutdown-delay={SHUTDOWN_DELAY_SECONDS}",
        f"--shutdown-timeout={ctx.spec.drain.timeout_seconds}",
    ]
    scaling = ctx.spec.autoscaling
    if scaling and scaling.min_replicas == 0 and not _names(router.args, "--replica-wait-s"):
        # With no replica up, a request has to wait for one to start.
        wait_s = min(ctx.spec.probes.startup_seconds, MAX_WAIT_FOR_REPLICA_S)
        flags.append(f"--replica-wait-s={wait_s}")
    if router.api_keys_secret_ref:
        flags.append(f"--api-key-file={KEYS_FOLDER}/{router.api_keys_secret_ref.key}")
    return [*flags, *router.args]


def discovery_target(ctx: Context) -> str:
    """Return what `--replicas` takes: the EndpointSlices of the engines' Service."""
    return f"kubernetes:///{ctx.engine_name}.{ctx.namespace}:grpc"


def service_url(ctx: Context) -> str:
    """Return the base URL for an OpenAI client inside the cluster."""
    port = ctx.spec.router.service.port
    host = f"{ctx.name}.{ctx.namespace}.svc.{ctx.settings.cluster_domain}"
    return f"http://{host}/v1" if port == 80 else f"http://{host}:{port}/v1"


def _names(arguments: tuple[str, ...], flag: str) -> bool:
    return any(argument.partition("=")[0] == flag for argument in arguments)


def _access(ctx: Context) -> list[Manifest]:
    """A router may read the EndpointSlices of its namespace, and nothing else."""
    name = ctx.router_name
    group = "rbac.authorization.k8s.io"
    rule = {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["get", "list", "watch"],
    }
    return [
        ctx.child("v1", "ServiceAccount", name, ROUTER, automountServiceAccountToken=False),
        ctx.child(f"{group}/v1", "Role", name, ROUTER, rules=[rule]),
        ctx.child(
            f"{group}/v1",
            "RoleBinding",
            name,
            ROUTER,
            roleRef={"apiGroup": group, "kind": "Role", "name": name},
            subjects=[{"kind": "ServiceAccount", "name": name, "namespace": ctx.namespace}],
        ),
    ]


def _deployment(ctx: Context) -> Manifest:
    selector = selector_labels(ctx.name, ROUTER)
    spec = {
        "replicas": 0 if ctx.spec.suspend else ctx.spec.router.replicas,
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": selector},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        },
        "template": {"metadata": {"labels": ctx.labels(ROUTER)}, "spec": _pod_spec(ctx)},
    }
    return ctx.child("apps/v1", "Deployment", ctx.router_name, ROUTER, spec=spec)


def _pod_spec(ctx: Context) -> Json:
    timeout = ctx.spec.drain.timeout_seconds
    volumes: list[Json] = [{"name": "tmp", "emptyDir": {}}]
    if keys := ctx.spec.router.api_keys_secret_ref:
        volumes.append({"name": "api-keys", "secret": {"secretName": keys.name}})
    spread = {
        "maxSkew": 1,
        "topologyKey": HOSTNAME,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector_labels(ctx.name, ROUTER)},
    }
    return {
        "serviceAccountName": ctx.router_name,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": SHUTDOWN_DELAY_SECONDS + timeout + KILL_MARGIN_SECONDS,
        "securityContext": pod_security(),
        "topologySpreadConstraints": [spread],
        "containers": [_container(ctx)],
        "volumes": volumes,
        **image_fields(ctx),
    }


def _container(ctx: Context) -> Json:
    wanted = ctx.spec.router.resources
    mounts: list[Json] = [{"name": "tmp", "mountPath": "/tmp"}]
    if ctx.spec.router.api_keys_secret_ref:
        mounts.append({"name": "api-keys", "mountPath": KEYS_FOLDER, "readOnly": True})
    return {
        "name": "router",
        "image": ctx.settings.router_image,
        "imagePullPolicy": ctx.settings.image_pull_policy,
        "command": ["quire", "router"],
        "args": router_flags(ctx),
        "ports": [{"name": "http", "containerPort": HTTP_PORT}],
        "resources": {
            "requests": {"cpu": str(wanted.cpu), "memory": str(wanted.memory)},
            "limits": {"memory": str(wanted.memory)},
        },
        "securityContext": container_security(is_read_only=True),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
        "startupProbe": _check("/health") | {"periodSeconds": 1, "failureThreshold": 300},
        # Ready means that it has read the endpoints, not that there are any: without engines it
        # answers 503, or holds requests until one is up, which no closed port can do.
        "readinessProbe": _check("/readyz") | {"periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": _check("/health") | {"periodSeconds": 10, "failureThreshold": 6},
    }


def _check(path: str) -> Json:
    return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 5}
