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
        shape = (len(last_ids), tokens)
        self.ids_MT = torch.zeros(shape, dtype=torch.int32, device=device)
        self.positions_MT = torch.zeros(shape, dtype=torch.int64, device=device)
        self.padding_MT = torch.zeros(shape, dtype=torch.bool, device=device)

    def put(self, member: int, ids_T: torch.Tensor, positions_T: torch.Tensor) -> None:
        """Have a member read these."""
        own_ids_T, own_positions_T = self.of(member, len(ids_T))
        own_ids_T.copy_(ids_T).clamp_(max=self.last_ids[member])
        own_positions_T.copy_(positions_T)

    def pad(self, member: int, count: int, padded: int) -> None:
        """Have what is behind so many tokens read as padding."""
        self.padding_MT[member, :count] = False
        self.padding_MT[member, count:padded] = True

    def of(self, member: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A member's first ids and positions."""
        return self.ids_MT[member, :count], self.positions_MT[member, :count]
