"""Whether this operator can do what the spec says: the condition Accepted."""

from quire_operator.api import Condition, Problem
from quire_operator.api.conditions import ACCEPTED, FALSE, TRUE
from quire_operator.plan.context import Context
from quire_operator.plan.contract import ObjectKey
from quire_operator.plan.gang import missing_gang_api
from quire_operator.plan.optional import missing_apis
from quire_operator.plan.references import claim_names, secret_names

_HINTS = {
    "Secret": "kubectl create secret generic {name} --namespace {namespace} --from-literal=KEY=...",
    "PersistentVolumeClaim": "create the claim, or name another one",
}


def unsupported(ctx: Context) -> Problem | None:
    """Return what the engine image of this installation cannot do, if the spec asks for it.

    Such a spec changes nothing that runs: half of it would be worse than none.
    """
    parallelism = ctx.spec.parallelism
    spans = max(parallelism.pipeline, parallelism.nodes_per_replica)
    if spans > 1 and not ctx.settings.pipeline_parallelism:
        return Problem(
            "UnsupportedFeature",
            f"spec.parallelism asks for pipeline {parallelism.pipeline} over "
            f"{parallelism.nodes_per_replica} nodes, and this engine runs a replica on the GPUs of "
            "one node: use tensor alone, up to the GPUs of a node",
        )
    if ctx.spec.model.adapters and not ctx.settings.adapters:
        return Problem(
            "UnsupportedFeature",
            f"spec.model.adapters has {len(ctx.spec.model.adapters)} entries, and this engine "
            "serves no adapters: remove them, or merge them into the model",
        )
    return None


def refused(problem: Problem) -> Condition:
    """Return the condition of a spec that is not carried out."""
    return Condition(
        ACCEPTED, FALSE, problem.reason, f"{problem.message}. What runs is left as it is"
    )


def accepted(ctx: Context) -> Condition:
    """Return the condition of a spec that is carried out, as far as its surroundings allow."""
    if missing := _missing_references(ctx):
        return Condition(ACCEPTED, FALSE, "ReferenceNotFound", "; ".join(missing))
    if missing := [*missing_apis(ctx), *missing_gang_api(ctx)]:
        return Condition(ACCEPTED, FALSE, "APINotInstalled", "; ".join(missing))
    return Condition(ACCEPTED, TRUE, "Valid", "the spec is carried out")


def _missing_references(ctx: Context) -> list[str]:
    wanted = [
        *(ctx.key("v1", "Secret", name) for name in secret_names(ctx.spec)),
        *(ctx.key("v1", "PersistentVolumeClaim", name) for name in claim_names(ctx.spec)),
    ]
    absent = [key for key in wanted if not ctx.observed.referenced.get(key, True)]
    return [_absence(key) for key in absent]


def _absence(key: ObjectKey) -> str:
    hint = _HINTS[key.kind].format(name=key.name, namespace=key.namespace)
    return f"{key.kind} {key.name} does not exist in namespace {key.namespace}: {hint}"
