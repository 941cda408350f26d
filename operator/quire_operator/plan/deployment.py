"""The plan of one deployment."""

from quire_operator.plan.contract import Manifest, Observed, Plan
from quire_operator.plan.settings import OperatorSettings


def plan(deployment: Manifest, observed: Observed, settings: OperatorSettings) -> Plan:
    """Decide what should exist, what should go, and what to tell the user.

    Args:
        deployment: the LLMDeployment as the server holds it, status included.
        observed: the cluster at this moment.
        settings: the administrator's defaults.
    """
    return Plan(status=dict(deployment.get("status", {})))
