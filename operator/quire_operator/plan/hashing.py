"""Hashes of intents: whether what is wanted differs from what was applied last."""

import hashlib
import json
from typing import Any

from quire_operator.plan.contract import Manifest
from quire_operator.plan.labels import SPEC_HASH_ANNOTATION

HASH_LENGTH = 16


def hash_of(value: Any) -> str:
    """Return a short hash of a JSON value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def sealed(manifest: Manifest) -> Manifest:
    """Return the intent with its own hash as an annotation."""
    metadata = manifest["metadata"]
    annotations = metadata.get("annotations", {}) | {SPEC_HASH_ANNOTATION: hash_of(manifest)}
    return manifest | {"metadata": metadata | {"annotations": annotations}}
