"""PodDisruptionBudgets and NetworkPolicies."""

from typing import Any

from quire_operator.plan.context import Context
from quire_operator.plan.contract import Manifest
from quire_operator.plan.engine_flags import GRPC_PORT, METRICS_PORT
from quire_operator.plan.labels import ENGINE, LEADER_LABEL, ROUTER, selector_labels
from quire_operator.plan.routers import HTTP_PORT

NAMESPACE_LABEL = "kubernetes.io/metadata.name"

Json = dict[str, Any]


def disruption_budgets(ctx: Context) -> list[Manifest]:
    """Return the budgets, for what has several pods: one alone could never be moved."""
    budgets = []
    if ctx.num_replicas > 1:
        selector = selector_labels(ctx.name, ENGINE)
        if ctx.is_grouped:
            # A group is down when one of its pods is: its first pod stands for all.
            selector[LEADER_LABEL] = "0"
        most = ctx.spec.disruption.max_unavailable
        budgets.append(_budget(ctx, ctx.engine_name, ENGINE, selector, most))
    if ctx.spec.router.enabled and ctx.spec.router.replicas > 1 and not ctx.spec.suspend:
        selector = selector_labels(ctx.name, ROUTER)
        budgets.append(_budget(ctx, ctx.router_name, ROUTER, selector, 1))
    return budgets


def network_policies(ctx: Context) -> list[Manifest]:
    """Return who may connect: routers and Prometheus to engines, `from` to routers."""
    if not (ctx.spec.network_policy.enabled and ctx.settings.network_policies):
        return []
    policies = [_policy(ctx, ctx.engine_name, ENGINE, _engine_rules(ctx))]
    if ctx.spec.router.enabled:
        policies.append(_policy(ctx, ctx.router_name, ROUTER, _router_rules(ctx)))
    return policies


def _budget(
    ctx: Context, name: str, component: str, selector: dict[str, str], most: int | str
) -> Manifest:
    spec = {
        "maxUnavailable": most,
        "selector": {"matchLabels": selector},
        # Pods that are not ready serve nobody: a drain must not wait for them.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return ctx.child("policy/v1", "PodDisruptionBudget", name, component, spec=spec)


def _policy(ctx: Context, name: str, component: str, rules: list[Json]) -> Manifest:
    spec = {
        "podSelector": {"matchLabels": selector_labels(ctx.name, component)},
        "policyTypes": ["Ingress"],
        "ingress": rules,
    }
    return ctx.child("networking.k8s.io/v1", "NetworkPolicy", name, component, spec=spec)


def _engine_rules(ctx: Context) -> list[Json]:
    rules = [{"ports": _ports(METRICS_PORT)} | _from(_scrapers(ctx))]
    if ctx.spec.router.enabled:
        routers = {"podSelector": {"matchLabels": selector_labels(ctx.name, ROUTER)}}
        rules.append({"from": [routers], "ports": _ports(GRPC_PORT)})
    else:
        # Without a router, whoever may call the deployment calls its engines.
        rules.append(_from(_callers(ctx)) | {"ports": _ports(GRPC_PORT)})
    if ctx.is_grouped:
        members = {"podSelector": {"matchLabels": selector_labels(ctx.name, ENGINE)}}
        rules.append({"from": [members]})
    return rules


def _router_rules(ctx: Context) -> list[Json]:
    callers = _callers(ctx)
    return [_from([*callers, *_scrapers(ctx)] if callers else []) | {"ports": _ports(HTTP_PORT)}]


def _callers(ctx: Context) -> list[Json]:
    return [dict(peer) for peer in ctx.spec.network_policy.from_]


def _scrapers(ctx: Context) -> list[Json]:
    names = ctx.settings.metrics_namespaces
    if not names:
        return []
    expression = {"key": NAMESPACE_LABEL, "operator": "In", "values": list(names)}
    return [{"namespaceSelector": {"matchExpressions": [expression]}}]


def _from(peers: list[Json]) -> Json:
    """No peers is everyone: a rule without `from`."""
    return {"from": peers} if peers else {}


def _ports(*numbers: int) -> list[Json]:
    return [{"protocol": "TCP", "port": number} for number in numbers]
