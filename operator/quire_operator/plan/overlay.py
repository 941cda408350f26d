"""Laying one pod template over another, in the spirit of kubectl's strategic merge."""

from collections.abc import Mapping, Sequence
from typing import Any

_MERGE_KEYS = ("name", "mountPath", "containerPort", "topologyKey")
"""What tells entries of a list apart, the first that all of them have."""
_REPLACED = ("args", "command", "tolerations")
"""Lists that are taken whole."""


def overlay(base: Any, top: Any, *, field: str = "") -> Any:
    """Return `top` laid over `base`.

    Maps are merged and a null removes a key; lists of named things are merged by name; everything
    else is replaced.
    """
    if isinstance(base, Mapping) and isinstance(top, Mapping):
        return _merged_maps(base, top)
    if isinstance(base, Sequence) and isinstance(top, Sequence) and not isinstance(top, str):
        key = None if field in _REPLACED else _merge_key([*base, *top])
        return list(top) if key is None else _merged_lists(base, top, key)
    return top


def _merged_maps(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = overlay(merged[key], value, field=key) if key in merged else value
    return merged


def _merged_lists(base: Sequence[Any], top: Sequence[Any], key: str) -> list[Any]:
    merged = {entry[key]: entry for entry in base}
    for entry in top:
        name = entry[key]
        merged[name] = overlay(merged[name], entry) if name in merged else entry
    return list(merged.values())


def _merge_key(entries: Sequence[Any]) -> str | None:
    if not entries or not all(isinstance(entry, Mapping) for entry in entries):
        return None
    for key in _MERGE_KEYS:
        if all(isinstance(entry.get(key), str | int) for entry in entries):
            return key
    return None
