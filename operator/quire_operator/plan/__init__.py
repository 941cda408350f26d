"""The pure heart of the operator: what a deployment should look like, given what there is.

`plan()` maps a snapshot to intents. It reads no clock, opens no connection and never raises on a
bad spec: whatever an admin mistyped becomes a condition that says what to do next. Two calls with
equal arguments give equal plans, and everything that a decision needs is in the cluster, so a
restart at any point is harmless.
"""

from quire_operator.plan.contract import (
    Deletion,
    Event,
    Manifest,
    ObjectKey,
    Observed,
    Plan,
    object_key,
)
from quire_operator.plan.deployment import plan
from quire_operator.plan.labels import (
    DEPLOYMENT_LABEL,
    FIELD_MANAGER,
    MANAGED_BY,
    SPEC_HASH_ANNOTATION,
)
from quire_operator.plan.references import referenced_objects
from quire_operator.plan.settings import OperatorSettings

__all__ = [
    "DEPLOYMENT_LABEL",
    "FIELD_MANAGER",
    "MANAGED_BY",
    "SPEC_HASH_ANNOTATION",
    "Deletion",
    "Event",
    "Manifest",
    "ObjectKey",
    "Observed",
    "OperatorSettings",
    "Plan",
    "object_key",
    "plan",
    "referenced_objects",
]
