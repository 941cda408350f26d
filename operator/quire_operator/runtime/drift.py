"""Does the live object still say what was applied? Without asking the server.

The server fills in defaults, other managers add fields, and quantities come back in another
spelling; none of that is drift. Drift is a field of the intent whose live value means something
else, or is gone.
"""

from decimal import Decimal, InvalidOperation
from typing import Any

from quire_operator.plan import SPEC_HASH_ANNOTATION, Manifest

_IDENTITIES = ("name", "key", "type", "topologyKey", "containerPort", "port", "ip", "uid")
_SUFFIXES = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def is_current(live: Manifest, intent: Manifest) -> bool:
    """Whether applying the intent would change nothing: same hash, and nothing of it drifted."""
    hashes = [
        (manifest["metadata"].get("annotations") or {}).get(SPEC_HASH_ANNOTATION)
        for manifest in (live, intent)
    ]
    return hashes[0] == hashes[1] and covers(live, intent)


def covers(live: Any, intent: Any) -> bool:
    """Whether every field of the intent has its meaning in the live value.

    Lists of objects match by their identifying field in any order, as the server merges them;
    other lists match item by item.
    """
    if isinstance(intent, dict):
        if not isinstance(live, dict):
            return _is_empty(intent) and live is None
        return all(covers(live.get(name), value) for name, value in intent.items())
    if isinstance(intent, list | tuple):
        return _covers_list(live, intent)
    if live == intent and type(live) is type(intent):
        return True
    return (_is_empty(intent) and live is None) or _same_scalar(live, intent)


def _covers_list(live: Any, intent: Any) -> bool:
    if not intent or not isinstance(live, list):
        # An empty list is a statement too: a policy that allows nothing, say.
        return not intent and not live
    if len(live) == len(intent) and all(map(covers, live, intent)):
        return True
    identity = _identity(intent)
    if not identity:
        return False
    by_identity = {item.get(identity): item for item in live if isinstance(item, dict)}
    return all(covers(by_identity.get(item[identity]), item) for item in intent)


def _identity(items: Any) -> str:
    """Return the field that tells the items of a list apart; "" if there is none."""
    for name in _IDENTITIES:
        if all(isinstance(item, dict) and item.get(name) is not None for item in items):
            return name if len({item[name] for item in items}) == len(items) else ""
    return ""


def _is_empty(value: Any) -> bool:
    """Whether the server may leave a value out: it drops zero values on the way in."""
    return value is None or value == {} or value == [] or value == "" or value is False


def _same_scalar(live: Any, intent: Any) -> bool:
    if isinstance(live, bool) or isinstance(intent, bool) or live is None or intent is None:
        return False
    one, other = _quantity(live), _quantity(intent)
    return one is not None and one == other


def _quantity(value: Any) -> Decimal | None:
    """Read a number or a Kubernetes quantity: `1500m`, `2Gi`, `1e3`."""
    text = str(value)
    digits = text.rstrip("numkMGTPEi")
    # An exponent ends in a digit, so what was stripped is a suffix or nothing.
    factor = _SUFFIXES.get(text[len(digits) :])
    if factor is None:
        return None
    try:
        return Decimal(digits) * factor
    except InvalidOperation:
        return None
