"""What each member of a composite reads, at addresses that stay the same.

Captured CUDA graphs read from the addresses of their capture, and a member with fewer ids than the base cannot read
the runner's own tensor: it would be a new one in each step.
"""

from collections.abc import Sequence

import torch


class Inputs:
    """Token ids and positions of the members, and which of them are padding.

    Shape suffixes: M members, T tokens.

    Args:
        last_ids: by member, the last id that it knows. Ids above are read as that one: a plain-base row may hold the
            base's own padding ids.
        tokens: how many tokens are read at once, at most.
        device: where.
    """

    def __init__(self, last_ids: Sequence[int], tokens: int, device: torch.device) -> None:
        self.last_ids = tuple(last_ids)
        # Each a tensor by itself: a compiled model would take its place in a larger one for a size that may change.
        self.ids_M = [torch.zeros(tokens, dtype=torch.int32, device=device) for _ in last_ids]
        self.positions_M = [torch.zeros(tokens, dtype=torch.int64, device=device) for _ in last_ids]
        self.padding_M = [torch.zeros(tokens, dtype=torch.bool, device=device) for _ in last_ids]

    @property
    def tokens(self) -> int:
        """How many tokens there is room for."""
        return len(self.ids_M[0])

    def put(self, member: int, ids_T: torch.Tensor, positions_T: torch.Tensor) -> None:
        """Have a member read these."""
        own_ids_T, own_positions_T = self.of(member, len(ids_T))
        own_ids_T.copy_(ids_T).clamp_(max=self.last_ids[member])
        own_positions_T.copy_(positions_T)

    def pad(self, member: int, count: int, padded: int) -> None:
        """Have what is behind so many tokens read as padding."""
        self.padding_M[member][:count] = False
        self.padding_M[member][count:padded] = True

    def of(self, member: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A member's first ids and positions."""
        return self.ids_M[member][:count], self.positions_M[member][:count]
