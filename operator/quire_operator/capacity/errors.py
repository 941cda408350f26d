"""Errors of capacity planning.

CapacityError    a value that no plan can be made of; the message names it and what would do
"""


class CapacityError(ValueError):
    """A value that no plan can be made of."""
