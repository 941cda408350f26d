"""Model sources: `hf://Qwen/Qwen3-8B`, `pvc://claim/path` and the other schemes."""

from dataclasses import dataclass
from typing import Self

DEMO_MODEL = "SmolLM2-135M-Instruct"
UNSUPPORTED_SCHEMES = ("s3", "gs")
"""Schemes that the API has and no engine image can read yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source, taken apart."""

    scheme: str
    rest: str
    """What follows `://`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        scheme, _, rest = text.partition("://")
        return cls(scheme=scheme, rest=rest)

    @property
    def claim(self) -> str:
        """Name of the claim of a pvc:// source."""
        return self.rest.partition("/")[0]

    @property
    def path(self) -> str:
        """Path inside the claim of a pvc:// source, without a slash at its ends."""
        return self.rest.partition("/")[2].strip("/")

    @property
    def default_cache(self) -> str:
        """Cache type where the spec names none."""
        return {"hf": "Ephemeral", "oci": "Image"}.get(self.scheme, "None")

    @property
    def model_name(self) -> str:
        """What people would call the model: the last part of the path."""
        return self.rest.partition(":")[0].rstrip("/").rpartition("/")[2] or self.rest
