"""The command line of `quire engine` that a spec asks for."""

from quire_operator.plan.context import Context

GRPC_PORT = 50051
METRICS_PORT = 9464
RENDEZVOUS_PORT = 29500
MODEL_FOLDER = "/models"
"""Where claims and image volumes with weights are mounted."""


def model_argument(ctx: Context) -> str:
    """Return what `--model` takes; empty is the demo model."""
    source = ctx.source
    match source.scheme:
        case "hf":
            return source.rest
        case "file":
            return source.rest
        case "pvc":
            return f"{MODEL_FOLDER}/{source.path}".rstrip("/")
        case "oci":
            return MODEL_FOLDER
    return ""


def engine_flags(ctx: Context, *, replica: int | None = None) -> list[str]:
    """Return the arguments of one engine's container; `replica` is the index of its group."""
    return [
        *_model_flags(ctx),
        *_cache_flags(ctx),
        *_parallel_flags(ctx, replica),
        *_server_flags(ctx),
        *ctx.spec.engine.args,
    ]


def _model_flags(ctx: Context) -> list[str]:
    model = ctx.spec.model
    flags = [f"--model={path}"] if (path := model_argument(ctx)) else []
    flags.append(f"--served-model-name={model.served_name or ctx.name}")
    if model.revision and ctx.source.scheme == "hf":
        flags.append(f"--revision={model.revision}")
    if model.dtype != "auto":
        flags.append(f"--dtype={model.dtype}")
    if model.max_model_len is not None:
        flags.append(f"--max-model-len={model.max_model_len}")
    return flags


def _cache_flags(ctx: Context) -> list[str]:
    engine = ctx.spec.engine
    flags = [
        f"--device={engine.device}",
        f"--block-size={engine.block_size}",
        f"--max-num-seqs={engine.max_num_seqs}",
    ]
    if engine.device == "cuda":
        flags.append(f"--gpu-memory-utilization={engine.gpu_memory_percent / 100:.2f}")
    if engine.max_batched_tokens is not None:
        flags.append(f"--max-num-batched-tokens={engine.max_batched_tokens}")
    if not engine.prefix_caching:
        flags.append("--no-enable-prefix-caching")
    if engine.kv_cache_dtype != "auto":
        flags.append(f"--kv-cache-dtype={engine.kv_cache_dtype}")
    return flags


def _parallel_flags(ctx: Context, replica: int | None) -> list[str]:
    parallelism = ctx.spec.parallelism
    flags = []
    if parallelism.tensor > 1:
        flags.append(f"--tensor-parallel-size={parallelism.tensor}")
    if parallelism.pipeline > 1:
        flags.append(f"--pipeline-parallel-size={parallelism.pipeline}")
    if replica is not None:
        group = ctx.group_name(replica)
        flags += [
            f"--nnodes={parallelism.nodes_per_replica}",
            "--node-rank=$(QUIRE_NODE_RANK)",
            f"--master-addr={group}-0.{group}.{ctx.namespace}.svc.{ctx.settings.cluster_domain}",
            f"--master-port={RENDEZVOUS_PORT}",
        ]
    return flags


def _server_flags(ctx: Context) -> list[str]:
    flags = [
        f"--port={GRPC_PORT}",
        f"--metrics-port={METRICS_PORT}",
        f"--shutdown-timeout={ctx.spec.drain.timeout_seconds}",
    ]
    if ctx.spec.observability.vllm_compat_metrics:
        flags.append("--metrics-compat=vllm")
    return flags
