"""Every alert, in groups by what it is about."""

from collections.abc import Sequence

from quire_monitoring.alerts.deployments import DEPLOYMENT_ALERTS
from quire_monitoring.alerts.engines import ENGINE_ALERTS
from quire_monitoring.alerts.operator import OPERATOR_ALERTS
from quire_monitoring.alerts.requests import REQUEST_ALERTS
from quire_monitoring.alerts.routers import ROUTER_ALERTS
from quire_monitoring.rules import Group

ALERT_GROUPS: Sequence[Group] = (
    REQUEST_ALERTS,
    DEPLOYMENT_ALERTS,
    ENGINE_ALERTS,
    ROUTER_ALERTS,
    OPERATOR_ALERTS,
)
