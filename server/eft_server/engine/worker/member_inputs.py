"""The inputs of each member of a composite, at fixed addresses.

CUDA graphs read from the addresses of their capture, and a member with fewer ids than the base cannot use the runner's
tensor: its clamped copy would be a new tensor in each step.
"""

from collections.abc import Sequence

import torch


class Inputs:
    """Token ids and positions of the members, and which of them are padding.

    Shape suffixes: M members, T tokens.

    Args:
        last_ids: by member, its last id. Higher ids are replaced by that one: a plain-base row may hold the base's
            padding ids.
        tokens: the most tokens in a step.
        device: the device.
    """

    def __init__(self, last_ids: Sequence[int], tokens: int, device: torch.device) -> None:
        self.last_ids = tuple(last_ids)
        # Separate tensors: in a larger one, a compiled model would take a tensor's offset for a dynamic size.
        self.ids_M = [torch.zeros(tokens, dtype=torch.int32, device=device) for _ in last_ids]
        self.positions_M = [torch.zeros(tokens, dtype=torch.int64, device=device) for _ in last_ids]
        self.padding_M = [torch.zeros(tokens, dtype=torch.bool, device=device) for _ in last_ids]

    @property
    def tokens(self) -> int:
        """The number of tokens for which there is room."""
        return len(self.ids_M[0])

    def put(self, member: int, ids_T: torch.Tensor, positions_T: torch.Tensor) -> None:
        """Set a member's ids and positions."""
        own_ids_T, own_positions_T = self.of(member, len(ids_T))
        own_ids_T.copy_(ids_T).clamp_(max=self.last_ids[member])
        own_positions_T.copy_(positions_T)

    def pad(self, member: int, count: int, padded: int) -> None:
        """Turn the inputs from `count` to `padded` into padding."""
        self.padding_M[member][:count] = False
        self.padding_M[member][count:padded] = True

    def of(self, member: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A member's first ids and positions."""
        return self.ids_M[member][:count], self.positions_M[member][:count]
