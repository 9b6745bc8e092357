"""A member's decoder layers and their feed-forward modules, found in any of vLLM's models.

vLLM has no names for them that all models share. What cannot be found with certainty is an error that says so, for the
request that asks: a wrong state would look like a right one.
"""

from collections.abc import Iterator
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from eft_server.engine.activations import ActivationError

__all__ = ["MemberLayers"]

_FEED_FORWARD = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "moe")
"""Names of feed-forward modules, a layer's only one of which is taken."""


class MemberLayers:
    """The layers of one member.

    Args:
        model: vLLM's model of the member.
        count: the number of its decoder layers.
        width: its hidden size.
    """

    def __init__(self, model: nn.Module, count: int, width: int) -> None:
        self._model, self._count, self.width = model, count, width

    def module(self, layer: int, site: str) -> nn.Module:
        """The module whose output is a layer's state at a site.

        Raises:
            ActivationError: there is no such module, or not one alone.
        """
        found = self._layers[layer]
        if site == "residual":
            return found
        named = [name for name in _FEED_FORWARD if isinstance(getattr(found, name, None), nn.Module)]
        if len(named) != 1:
            has = (
                f"{', '.join(named)} in one layer"
                if named
                else "no feed-forward module that has a known name"
            )
            raise ActivationError(f"vLLM's {self._named} has {has}, so there is no site mlp")
        return found.get_submodule(named[0])

    @cached_property
    def _layers(self) -> nn.ModuleList:
        lists = [(name, module) for name, module in self._model.named_modules() if self._fits(module)]
        outer = [
            (name, module)
            for name, module in lists
            if not any(name.startswith(f"{other}.") for other, _ in lists)
        ]
        if len(outer) > 1:  # Of several stacks, those that generate text have vLLM's attention layers.
            outer = [(name, module) for name, module in outer if all(map(_attends, module))]
        if len(outer) != 1:
            raise ActivationError(
                f"vLLM's {self._named} has {len(outer) or 'no'} lists of {self._count} layers where one is expected"
            )
        return outer[0][1]

    def _fits(self, module: nn.Module) -> bool:
        return isinstance(module, nn.ModuleList) and len(module) == self._count

    @property
    def _named(self) -> str:
        return type(self._model).__name__

    def state(self, output: Any, site: str, rows: slice) -> torch.Tensor:
        """Rows of a module's output as its state: float32 (rows, H), in memory of its own.

        vLLM's layers often give two tensors, of which the next layer's first norm makes the sum.

        Raises:
            ActivationError: the output has another form.
        """
        given = output if isinstance(output, tuple | list) else (output,)
        parts = [part for part in given if part is not None]
        if not parts or not all(isinstance(part, torch.Tensor) for part in parts):
            raise self._unknown(site)
        if len(parts) > 1 and (len(parts) > 2 or site != "residual" or not self._adds):
            raise self._unknown(site)
        own = [self._rows(part, site, rows) for part in parts]
        return own[0].clone() if len(own) == 1 else own[0] + own[1]

    def _rows(self, part: torch.Tensor, site: str, rows: slice) -> torch.Tensor:
        # Models of the Transformers library have a dimension of one batch.
        part_TH = part.squeeze(0) if part.dim() == 3 else part
        if part_TH.dim() != 2 or part_TH.shape[1] != self.width or len(part_TH) < rows.stop:
            raise self._unknown(site)
        return part_TH[rows].float()

    def _unknown(self, site: str) -> ActivationError:
        return ActivationError(
            f"vLLM's {self._named} gives its states at the site {site} in a form that is not known"
        )

    @cached_property
    def _adds(self) -> bool:
        """Whether the two tensors that a layer gives are to be added, which its norms tell."""
        norms = [norm for norm in self._layers[0].children() if len(_arguments(norm)) == 2]
        return bool(norms) and all(map(_adds_residual, norms))


def _attends(layer: nn.Module) -> bool:
    return any(isinstance(module, AttentionLayerBase) for module in layer.modules())


def _arguments(norm: nn.Module) -> list[str]:
    """The arguments of a norm that is also given what came before: the second's name says so."""
    # A custom operator's `forward` only chooses its implementation.
    names = list(signature(getattr(norm, "forward_native", norm.forward)).parameters)
    return names if len(names) == 2 and names[1].startswith("residual") else []


def _adds_residual(norm: nn.Module) -> bool:
    """Whether a norm passes on the sum of its two arguments: it is tried out."""
    weight = next(_weights(norm), None)
    if weight is None:
        return False
    one, two = weight.new_ones((1, len(weight))), weight.new_full((1, len(weight)), 2.0)
    with torch.inference_mode():
        given = norm(one, two)
    return isinstance(given, tuple) and len(given) == 2 and bool((given[1] == 3).all())


def _weights(norm: nn.Module) -> Iterator[torch.Tensor]:
    return (weight for weight in norm.parameters() if weight.dim() == 1)
