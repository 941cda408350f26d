"""What each of the four dashboards shows."""

from collections.abc import Sequence

from quire_monitoring.boards.model import MODEL
from quire_monitoring.boards.operator import OPERATOR_BOARD
from quire_monitoring.boards.overview import OVERVIEW
from quire_monitoring.boards.routing import ROUTING
from quire_monitoring.panels import Board

BOARDS: Sequence[Board] = (OVERVIEW, MODEL, ROUTING, OPERATOR_BOARD)
"""In the order in which one reads them."""
