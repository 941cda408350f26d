"""The spec of an LLMDeployment, as the CRD describes it: fields, types and defaults.

Meanings are in the CRD and on the page that is generated from it; a test keeps the two alike. A
field that is None has no default there: whoever reads it decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

IntOrString = int | str
JsonObject = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKey:
    """One key of a Secret in the deployment's namespace."""

    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSecretRef(SecretKey):
    """Where the hub's token is."""

    key: str = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeysSecretRef(SecretKey):
    """Where the router's API keys are."""

    key: str = "keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalReference:
    """An object of the deployment's namespace, by name."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One LoRA adapter."""

    name: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """The model's size, as the user states it."""

    weights: IntOrString
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Which model to serve."""

    source: str
    served_name: str | None = None
    revision: str | None = None
    token_secret_ref: TokenSecretRef | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: int | None = None
    adapters: tuple[Adapter, ...] = ()
    sizing: Sizing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvVar:
    """One environment variable."""

    name: str
    value: str | None = None
    value_from: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """How the engine runs."""

    image: str | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: tuple[LocalReference, ...] = ()
    device: Literal["cuda", "cpu"] = "cuda"
    gpu_memory_percent: int = 90
    max_num_seqs: int = 256
    max_batched_tokens: int | None = None
    block_size: Literal[16, 32, 64, 128, 256] = 16
    prefix_caching: bool = True
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """How one replica divides the model."""

    tensor: int = 1
    pipeline: int = 1
    nodes_per_replica: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingMetric:
    """One measure of load."""

    type: Literal["queueDepth", "kvCachePercent", "runningRequests", "tokensPerSecond", "external"]
    target: int
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleUp:
    """Adding replicas."""

    stabilization_seconds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleDown:
    """Removing replicas."""

    stabilization_seconds: int = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingBehavior:
    """How fast to follow the load."""

    up: ScaleUp = field(default_factory=ScaleUp)
    down: ScaleDown = field(default_factory=ScaleDown)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleToZero:
    """When the last replica goes."""

    idle_seconds: int = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """Replicas by load."""

    provider: Literal["hpa", "keda"] = "hpa"
    min_replicas: int = 1
    max_replicas: int
    metrics: tuple[AutoscalingMetric, ...]
    behavior: ScalingBehavior = field(default_factory=ScalingBehavior)
    scale_to_zero: ScaleToZero | None = None
    prometheus_address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClaim:
    """GPUs by dynamic resource allocation."""

    device_class_name: str
    selectors: tuple[str, ...] = ()
    count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one engine pod asks for."""

    gpu_resource_name: str | None = None
    cpu: IntOrString = "8"
    memory: IntOrString = "32Gi"
    ephemeral_storage: IntOrString | None = None
    shm: IntOrString = "8Gi"
    dra: DeviceClaim | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLabel:
    """A label of nodes."""

    key: str
    value: str = "true"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeDomain:
    """Memory export between the nodes of a replica."""

    create: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvlink:
    """How the GPUs of one replica must be joined."""

    mode: Literal["Required", "Preferred", "Ignored"] | None = None
    node_label: NodeLabel | None = None
    domain_key: str = "nvidia.com/gpu.clique"
    compute_domain: ComputeDomain | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TolerationSpec:
    """A toleration, as in a pod."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which nodes may run engine pods."""

    gpu_products: tuple[str, ...] = ()
    min_gpu_memory: IntOrString | None = None
    nvlink: Nvlink | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[TolerationSpec, ...] = ()
    priority_class_name: str | None = None
    runtime_class_name: str | None = None
    scheduler_name: str | None = None
    topology_spread: Literal["Soft", "None"] = "Soft"
    gang: Literal["Auto", "None", "PodGroup", "Volcano", "Coscheduling"] = "Auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Where downloaded weights are kept."""

    type: Literal["PVC", "HostPath", "Image", "Ephemeral", "None"] | None = None
    existing_claim: str | None = None
    size: IntOrString | None = None
    storage_class_name: str | None = None
    access_modes: tuple[
        Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"], ...
    ] = ()
    host_path: str | None = None
    prefetch: Literal["Job", "InitContainer", "None"] | None = None
    retain: Literal["Retain", "Delete"] = "Retain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How a change reaches running replicas."""

    strategy: Literal["RollingUpdate", "Recreate"] = "RollingUpdate"
    max_unavailable: IntOrString = 1
    partition: int = 0
    progress_deadline_seconds: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """How a replica leaves without losing requests."""

    pre_stop_seconds: int = 15
    timeout_seconds: int = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """When Kubernetes gives a replica up."""

    startup_seconds: int = 1800
    liveness_failure_seconds: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Disruption:
    """How many replicas node maintenance may take."""

    max_unavailable: IntOrString = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterService:
    """The Service that clients use."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    port: int = 80
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterResources:
    """What one router pod asks for."""

    cpu: IntOrString = "500m"
    memory: IntOrString = "1Gi"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """The OpenAI endpoint in front of the replicas."""

    enabled: bool = True
    replicas: int = 2
    policy: Literal["PrefixAware", "LeastLoaded"] = "PrefixAware"
    args: tuple[str, ...] = ()
    service: RouterService = field(default_factory=RouterService)
    resources: RouterResources = field(default_factory=RouterResources)
    api_keys_secret_ref: ApiKeysSecretRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodMonitorSpec:
    """The PodMonitor."""

    enabled: Literal["Auto", "Always", "Never"] = "Auto"
    interval: str = "15s"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observability:
    """What monitoring gets."""

    pod_monitor: PodMonitorSpec = field(default_factory=PodMonitorSpec)
    vllm_compat_metrics: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicySpec:
    """Who may open connections."""

    enabled: bool = True
    from_: tuple[JsonObject, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTemplate:
    """What is laid over the engine's pod template."""

    metadata: JsonObject | None = None
    spec: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """What should be served, and how."""

    model: ModelSpec
    engine: EngineSpec = field(default_factory=EngineSpec)
    parallelism: Parallelism = field(default_factory=Parallelism)
    replicas: int = 1
    suspend: bool = False
    autoscaling: Autoscaling | None = None
    resources: Resources = field(default_factory=Resources)
    placement: Placement = field(default_factory=Placement)
    cache: Cache = field(default_factory=Cache)
    rollout: Rollout = field(default_factory=Rollout)
    drain: Drain = field(default_factory=Drain)
    probes: Probes = field(default_factory=Probes)
    disruption: Disruption = field(default_factory=Disruption)
    router: RouterSpec = field(default_factory=RouterSpec)
    observability: Observability = field(default_factory=Observability)
    network_policy: NetworkPolicySpec = field(default_factory=NetworkPolicySpec)
    pod_template: PodTemplate | None = None
