"""The answer of `quire plan`, for people and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

from quire.planning import Model, PlanConfig, Row
from quire_operator.capacity import GIB, Fit, gib, tensor_parallel_sizes

KIB = 1 << 10
_COLUMNS = ("GPU", "TP", "memory", "weights", "overhead", "cache", "tokens", "requests", "")


def text_report(model: Model, rows: Sequence[Row], config: PlanConfig) -> str:
    """Return what people read: one plan in full, several as a table."""
    lines = [*_model_lines(model), ""]
    if len(rows) == 1 and config.gpu is not None:
        lines += _full(rows[0], config)
    else:
        lines += _overview(rows, is_of_one_gpu=config.gpu is not None)
    return "\n".join(lines) + "\n"


def node_report(model: Model, fit: Fit) -> str:
    """Return every node's verdict, and what they come to."""
    width = max((len(verdict.node) for verdict in fit.verdicts), default=0)
    nodes = [f"  {verdict.node:<{width}}  {verdict.message}" for verdict in fit.verdicts]
    return "\n".join([*_model_lines(model), "", *nodes, "", fit.message]) + "\n"


def json_report(model: Model, rows: Sequence[Row], fit: Fit | None) -> dict[str, Any]:
    """Return everything, sizes in bytes."""
    footprint = model.footprint
    report: dict[str, Any] = {
        "model": {
            "name": footprint.name,
            "origin": footprint.origin,
            "parameters": footprint.num_parameters,
            "weight_format": footprint.weight_format,
            "weight_bytes": footprint.weight_bytes,
            "kv_bytes_per_token": footprint.kv_bytes_per_token,
            "max_position": footprint.max_position,
            "tensor_parallel_sizes": list(tensor_parallel_sizes(footprint)),
            "notes": list(model.notes),
        },
        "plans": [_json_row(row) for row in rows],
    }
    if fit is not None:
        report["nodes"] = {
            "fits": fit.fits,
            "reason": fit.reason.value,
            "message": fit.message,
            "eligible": list(fit.eligible),
            "replicas": fit.num_slots,
            "verdicts": [
                {"node": item.node, "reason": item.reason.value, "message": item.message}
                for item in fit.verdicts
            ],
        }
    return report


def _json_row(row: Row) -> dict[str, Any]:
    memory = row.memory
    return {
        "gpu": row.gpu.product,
        "tensor_parallel_size": row.tensor_parallel_size,
        "nvlink": row.has_link,
        "fits": memory.fits,
        "gpu_bytes": memory.gpu_bytes,
        "budget_bytes": memory.budget_bytes,
        "weight_bytes": memory.weight_bytes,
        "context_bytes": memory.context_bytes,
        "activation_bytes": memory.activation_bytes,
        "table_bytes": memory.table_bytes,
        "graph_bytes": memory.graph_bytes,
        "kv_bytes": memory.kv_bytes,
        "kv_bytes_per_token": memory.kv_bytes_per_token,
        "max_model_len": memory.max_model_len,
        "tokens": memory.num_tokens,
        "full_length_requests": round(memory.num_full_requests, 2),
        "needed_gpu_bytes": memory.needed_gpu_bytes,
        "short_bytes": memory.short_bytes,
    }


def _model_lines(model: Model) -> Iterator[str]:
    footprint = model.footprint
    parameters = _billions(footprint.num_parameters)
    yield (
        f"{footprint.name}: {parameters} parameters, {footprint.weight_format}, "
        f"{gib(footprint.weight_bytes)} of weights ({footprint.weight_bytes / 1e9:.3g} GB), "
        f"{footprint.kv_bytes_per_token / KIB:g} KiB of cache a token"
    )
    sizes = ", ".join(map(str, tensor_parallel_sizes(footprint)))
    yield f"tensor-parallel sizes that divide its heads: {sizes}"
    yield from (f"note: {note}" for note in model.notes)


def _billions(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _full(row: Row, config: PlanConfig) -> Iterator[str]:
    memory = row.memory
    unused = memory.gpu_bytes - memory.weight_bytes - memory.overhead_bytes - memory.kv_bytes
    yield f"{_group(row)}, GiB on each:"
    for what, num_bytes, remark in (
        ("weights", memory.weight_bytes, ""),
        ("CUDA, libraries", memory.context_bytes, ""),
        ("activations", memory.activation_bytes, f"{config.workload(1).step_tokens} tokens a step"),
        ("tables, logits", memory.table_bytes, f"{config.max_num_seqs} sequences"),
        ("CUDA graphs", memory.graph_bytes, ""),
        ("KV cache", memory.kv_bytes, f"{memory.kv_bytes_per_token / KIB:g} KiB a token"),
        ("unused", max(0, unused), f"gpu_memory_utilization {config.gpu_memory_utilization:g}"),
    ):
        yield f"  {what:<16}{num_bytes / GIB:7.1f}  {remark}".rstrip()
    yield ""
    yield _outcome(row)
    if row.tensor_parallel_size > 1 and not row.has_link:
        joined = f"joins {row.gpu.link_size}" if row.gpu.link_size > 1 else "joins none"
        yield (
            f"warning: NVLink {joined} of {row.tensor_parallel_size} {row.gpu.alias}: "
            "every step waits for PCIe"
        )


def _group(row: Row) -> str:
    return f"{row.tensor_parallel_size}x {row.gpu.product} with {gib(row.gpu.memory_bytes)}"


def _outcome(row: Row) -> str:
    memory = row.memory
    if not memory.fits:
        each = "the GPU" if row.tensor_parallel_size == 1 else "each GPU"
        return (
            f"does not fit: needs {gib(memory.needed_gpu_bytes)} on {each}; "
            f"short {gib(memory.short_bytes)}"
        )
    return (
        f"fits: the cache holds {memory.num_tokens} tokens, "
        f"{memory.num_full_requests:.1f} requests of {memory.max_model_len} tokens"
    )


def _overview(rows: Sequence[Row], *, is_of_one_gpu: bool) -> list[str]:
    shown = [row for row in rows if is_of_one_gpu or row.memory.fits]
    lines = _table(shown) if shown else []
    if shown:
        lines += [
            "",
            "GiB on each GPU; requests are of the longest length that fits or is asked for",
        ]
    left_out = ", ".join(row.gpu.alias for row in rows if row not in shown)
    if left_out:
        most = max(row.tensor_parallel_size for row in rows if row not in shown)
        lines.append(f"too small, even {most} of them: {left_out}")
    return lines


def _table(rows: Sequence[Row]) -> list[str]:
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    return [
        "  ".join(
            text.ljust(width) if column in (0, len(widths) - 1) else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _cells(row: Row) -> tuple[str, ...]:
    memory = row.memory
    in_gib = (memory.gpu_bytes, memory.weight_bytes, memory.overhead_bytes, memory.kv_bytes)
    fitting = "" if row.tensor_parallel_size == 1 or row.has_link else "no NVLink"
    remark = fitting if memory.fits else f"short {gib(memory.short_bytes)}"
    return (
        row.gpu.alias,
        str(row.tensor_parallel_size),
        *(f"{num_bytes / GIB:.1f}" for num_bytes in in_gib),
        str(memory.num_tokens),
        f"{memory.num_full_requests:.1f}",
        remark,
    )
