"""A member's decoder layers and their feed-forward modules, found in any of vLLM's models.

vLLM has no names for them that all models share. What cannot be found with certainty is an error that says so, for the
request that asks: a wrong state would look like a right one.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.linear import RowParallelLinear

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
        self._tried: dict[nn.Module, bool] = {}

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
        module = found.get_submodule(named[0])
        if any(_is_partial(child) for child in module.children()):
            raise ActivationError(
                f"vLLM's {self._named} adds its feed-forward modules up over ranks only behind them, so there is no "
                "site mlp with more than one"
            )
        return module

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

    def norms_after(self, layer: int) -> list[nn.Module]:
        """The norms that may be given a layer's output: the next layer's, or those behind the last."""
        if layer + 1 < self._count:
            return list(filter(_is_norm, self._layers[layer + 1].modules()))
        inside = set(self._layers.modules())
        return [module for module in self._model.modules() if module not in inside and _is_norm(module)]

    def parts(self, output: Any, site: str) -> tuple[torch.Tensor, ...]:
        """The tensors in a module's output: one, which is the state; or of a layer two, which may have to be added.

        Raises:
            ActivationError: the output has another form.
        """
        given = output if isinstance(output, tuple | list) else (output,)
        parts = tuple(part for part in given if part is not None)
        most = 2 if site == "residual" else 1
        if not 1 <= len(parts) <= most or not all(isinstance(part, torch.Tensor) for part in parts):
            raise self.unknown(site)
        return parts

    def taken(
        self, parts: Sequence[torch.Tensor], norm: nn.Module, given: Sequence[Any]
    ) -> Sequence[torch.Tensor]:
        """The part or parts of a layer's two that are its state, by what a norm behind it is given.

        Nearly all of vLLM's layers leave the last addition to the next norm, and some of them do not.

        Returns:
            None of them, if the norm is given something else or this is not certain.
        """
        others = [value for value in given[1:] if value is not None]
        if not given or given[0] is not parts[0]:
            return ()
        if not others:
            return parts[:1]
        return parts if len(others) == 1 and others[0] is parts[1] and self._adds(norm) else ()

    def state(self, parts: Sequence[torch.Tensor], site: str, rows: slice) -> torch.Tensor:
        """Rows of the sum of these parts: float32 (rows, H), in memory of its own.

        Raises:
            ActivationError: a part has another shape than states have.
        """
        own = [self._rows(part, site, rows) for part in parts]
        return own[0].clone() if len(own) == 1 else own[0] + own[1]

    def _rows(self, part: torch.Tensor, site: str, rows: slice) -> torch.Tensor:
        # Models of the Transformers library have a dimension of one batch.
        part_TH = part.squeeze(0) if part.dim() == 3 else part
        if part_TH.dim() != 2 or part_TH.shape[1] != self.width or len(part_TH) < rows.stop:
            raise self.unknown(site)
        return part_TH[rows].float()

    def unknown(self, site: str) -> ActivationError:
        """What is said where a state cannot be told with certainty."""
        return ActivationError(
            f"vLLM's {self._named} gives its states at the site {site} in a form that is not known"
        )

    def _adds(self, norm: nn.Module) -> bool:
        if norm not in self._tried:
            self._tried[norm] = _adds_residual(norm)
        return self._tried[norm]


def _is_partial(layer: nn.Module) -> bool:
    """Whether a linear layer is cut over ranks and leaves the sum over them to others (Cohere, Falcon)."""
    return isinstance(layer, RowParallelLinear) and layer.tp_size > 1 and not layer.reduce_results


def _attends(layer: nn.Module) -> bool:
    return any(isinstance(module, AttentionLayerBase) for module in layer.modules())


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _adds_residual(norm: nn.Module) -> bool:
    """Whether a norm passes on the sum of its two arguments: it is tried out."""
    weight = next((weight for weight in norm.parameters() if weight.dim() == 1), None)
    if weight is None:
        return False
    given = norm(weight.new_ones((1, len(weight))), weight.new_full((1, len(weight)), 2.0))
    return isinstance(given, tuple) and len(given) == 2 and bool((given[1] == 3).all())
