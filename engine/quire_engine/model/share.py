"""One rank's share of a model whose layers several devices compute together (tensor parallelism).

Each rank has some of the attention heads and as much of the MLP's width, so that a layer needs two
sums over the ranks: of what attention and MLP add to the residual.
"""

from dataclasses import dataclass, replace

from quire_engine.errors import ConfigError
from quire_engine.model.spec import ModelSpec

MAX_SIZE = 16
"""Largest size that an error message proposes."""


@dataclass(frozen=True, slots=True)
class Share:
    """The part that one of `size` ranks has."""

    rank: int = 0
    size: int = 1

    def width(self, num: int) -> int:
        """Return how many of `num` things a rank has, padding included."""
        return -(-num // self.size)

    def part(self, num: int) -> slice:
        """Return which of `num` things this rank has; the last may have fewer than the others."""
        width = self.width(num)
        return slice(min(self.rank * width, num), min((self.rank + 1) * width, num))


WHOLE = Share()


def share_of(spec: ModelSpec, share: Share) -> ModelSpec:
    """Return what the layers of one rank look like. Embedding and norms are those of the whole.

    Raises:
        ConfigError: the model's layers cannot be divided so; the message says which sizes would do.
    """
    check_size(spec, share.size)
    return replace(
        spec,
        num_heads=spec.num_heads // share.size,
        num_kv_heads=spec.num_kv_heads // share.size,
        intermediate_size=spec.intermediate_size // share.size,
    )


def check_size(spec: ModelSpec, size: int) -> None:
    """Check that the layers of a model can be divided among `size` ranks.

    Raises:
        ConfigError: they cannot; the message says which sizes would do.
    """
    if _divides(spec, size):
        return
    *others, last = (str(legal) for legal in range(1, MAX_SIZE + 1) if _divides(spec, legal))
    advice = f"{', '.join(others)} and {last} do" if others else f"only {last} does"
    raise ConfigError(
        f"tensor_parallel_size={size} does not divide {spec.num_heads} attention heads, "
        f"{spec.num_kv_heads} key/value heads and an intermediate size of "
        f"{spec.intermediate_size}; {advice}"
    )


def _divides(spec: ModelSpec, size: int) -> bool:
    counts = spec.num_heads, spec.num_kv_heads, spec.intermediate_size
    return not any(count % size for count in counts)
