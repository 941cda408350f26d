"""What the ranks that share a model do together: add, gather, agree.

Legend: S lines, V vocabulary, W a rank's part of it.
"""

import torch

from quire_engine.model.share import WHOLE, Share


class Group:
    """A rank that has the whole model: its sums are complete, and nobody disagrees."""

    share: Share = WHOLE

    def summable(
        self, num_rows: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Return memory for which `add_up` is fastest."""
        return torch.empty(num_rows, width, dtype=dtype, device=device)

    def add_up(self, rows: torch.Tensor) -> None:
        """Replace rows by their sum over all ranks, the same bits on each. Can be captured."""

    def gather(self, own_SW: torch.Tensor, out_SV: torch.Tensor) -> None:
        """Write the parts of all ranks side by side, without padding. Can be captured."""
        out_SV.copy_(own_SW[:, : out_SV.shape[1]])

    def least(self, value: int) -> int:
        """Return the smallest value of all ranks. Waits for them."""
        return value


ALONE = Group()
