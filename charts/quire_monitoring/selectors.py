"""Pieces of PromQL that panels share.

Series carry the labels that a PodMonitor of the operator gives them: `namespace`, `pod` and
`quire_dev_deployment`. Where something else scrapes and a label is missing, "All" still matches.
"""

ENGINE = 'namespace=~"$namespace",quire_dev_deployment=~"$deployment",pod=~"$replica"'
"""Series of engines."""
ROUTER = 'namespace=~"$namespace",quire_dev_deployment=~"$deployment"'
"""Series of routers; also of rules that have one result for each deployment."""
TOWARDS = f'{ROUTER},replica=~"$replica"'
"""Series of routers about one replica, which is named by its address."""
DEPLOYMENT = 'namespace=~"$namespace",name=~"$deployment"'
"""Series of the operator about one deployment."""
OPERATOR = 'controller="llmdeployment"'
"""Series of the operator that any operator has."""

BY_DEPLOYMENT = "namespace, quire_dev_deployment"
BY_REPLICA = "namespace, quire_dev_deployment, pod"


def rate(counter: str, selector: str, by: str = "") -> str:
    """Return the rate of a counter over the panel's own window, summed."""
    inner = f"rate({counter}{{{selector}}}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def increase(counter: str, selector: str, by: str) -> str:
    """Return by how much a counter grew over the panel's own window, summed."""
    return f"sum by ({by}) (increase({counter}{{{selector}}}[$__rate_interval]))"


def quantile(histogram: str, selector: str, by: str = "", q: str = "$quantile") -> str:
    """Return a quantile of a histogram over the panel's own window."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', selector, labels)})"


def mean(histogram: str, selector: str, by: str = "") -> str:
    """Return the mean of a histogram over the panel's own window."""
    total = rate(f"{histogram}_sum", selector, by)
    return f"{total} / {rate(f'{histogram}_count', selector, by)}"


def share(part: str, whole: str) -> str:
    """Return a ratio that is absent, not NaN, where the whole is zero."""
    return f"{part} / ({whole} > 0)"
