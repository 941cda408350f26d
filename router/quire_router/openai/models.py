"""The list of models, as OpenAI and vLLM show it."""

from typing import Any

from quire_engine.rpc.engine_pb2 import ModelInfo

OWNER = "quire"


def model_cards(model: ModelInfo) -> list[dict[str, Any]]:
    """Return a card for every name that clients may use."""
    return [
        {
            "id": name,
            "object": "model",
            "created": model.created,
            "owned_by": OWNER,
            "root": model.model,
            "parent": None,
            "max_model_len": model.max_model_len,
            "permission": [_permission(name, model.created)],
        }
        for name in model.served_model_names
    ]


def _permission(name: str, created: int) -> dict[str, Any]:
    allowed = ("create_engine", "search_indices", "fine_tuning")
    return {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": created,
        **{f"allow_{what}": False for what in allowed},
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_view": True,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
