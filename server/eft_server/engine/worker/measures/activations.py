"""Activations of scored requests, from hooks on the layers of the members that are asked for, while these run.

A hook takes the rows that are wanted as soon as a layer has run, or as the next norm is given its two tensors, which it
adds and overwrites; and pools them at once: what is kept is never more than what is sent. In a step in which nobody
asks for a member there is no hook on it; in one in which somebody does it runs in Python, without graphs and compiled
code, which would not call hooks.

Shape suffixes: C completion tokens, H a member's hidden size, N all numbers of a request.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from eft_server.engine.activations import ActivationError, problem_as_array
from eft_server.engine.message import Scoring
from eft_server.engine.worker.layers import MemberLayers
from eft_server.engine.worker.member_prompts import Layout, Step

__all__ = ["States", "Window", "watching", "windows"]


class States:
    """The activations of one request so far.

    Args:
        scoring: the request; it asks for some.
        widths: the hidden size of each member, by place.
        device: where they are kept.

    Attributes:
        asked: what it asks for.
        problem: why there will be none, if something stands against it.
    """

    def __init__(self, scoring: Scoring, widths: Sequence[int], device: torch.device) -> None:
        assert scoring.activations is not None
        self.asked = scoring.activations
        self.problem: str | None = None
        self._tokens = len(scoring.targets)
        self._first = scoring.first + 1
        self._stop = scoring.length
        rows = self.asked.rows(self._tokens)
        self._values = {
            member: torch.zeros((len(layers), rows, widths[member]), dtype=torch.float32, device=device)
            for member, layers in zip(self.asked.members, self.asked.layers, strict=True)
        }
        # The token of the completion that each layer is to take next.
        self._next = {member: [0] * len(values) for member, values in self._values.items()}

    def wanted(self, computed: int, scheduled: int) -> tuple[int, int]:
        """The positions whose states are wanted among those of a step: the first, and the one behind the last."""
        first = self._stop - 1 if self.asked.pool == "last" else self._first
        return max(first, computed), min(self._stop, computed + scheduled)

    def take(self, member: int, place: int, state_RH: torch.Tensor, position: int) -> None:
        """Keep consecutive states.

        After a preemption a completion is read from its first token again, and what was kept of it is replaced.

        Args:
            member: the member's place in the family.
            place: the layer's among those that are asked for.
            state_RH: float32.
            position: of the first of them.
        """
        token, values_RH = position - self._first, self._values[member][place]
        if self.asked.pool == "none":
            values_RH[token : token + len(state_RH)] = state_RH
        elif self.asked.pool == "last":
            values_RH[0] = state_RH[-1]
        elif token == 0:
            values_RH[0] = state_RH.sum(dim=0)
        else:
            values_RH[0] += state_RH.sum(dim=0)
        expected = self._tokens - 1 if self.asked.pool == "last" else self._next[member][place]
        if token not in (0, expected):
            self.problem = "states of some of the tokens were not computed"
        self._next[member][place] = token + len(state_RH)

    def ends(self, computed: int, scheduled: int) -> bool:
        """Whether a step reads the last token."""
        return computed < self._stop <= computed + scheduled

    def array(self) -> torch.Tensor | np.ndarray:
        """All numbers, (1, N) float32 as `Activations.split` takes them apart; or the problem on the host."""
        taken = {count for counts in self._next.values() for count in counts}
        if self.problem is None and taken != {self._tokens}:
            self.problem = "a member ran without its layers"
        if self.problem is not None:
            return problem_as_array(self.problem)
        scale = self._tokens if self.asked.pool == "mean" else 1
        return torch.cat([values.flatten() for values in self._values.values()]).div_(scale).unsqueeze(0)


@dataclass(frozen=True)
class Window:
    """The rows of a member's part of a step whose states a request wants.

    Attributes:
        states: the request's.
        member: the member's place.
        rows: in the member's part.
        position: the scheduler's position of the first of them.
    """

    states: States
    member: int
    rows: slice
    position: int

    @property
    def layers(self) -> tuple[int, ...]:
        """The member's layers that the request asks for."""
        asked = self.states.asked
        return asked.layers[asked.members.index(self.member)]


def windows(states_R: Mapping[int, States], step: Step) -> dict[int, list[Window]]:
    """The windows of a step, by the places of the members that are asked for.

    Args:
        states_R: of the requests that ask, by their place in the step.
        step: the step.
    """
    found: dict[int, list[Window]] = {}
    for member in {member for states in states_R.values() for member in states.asked.members}:
        kept_R = Layout(step, member).kept_R
        stops_R = kept_R.cumsum()
        for row, states in states_R.items():
            computed, scheduled = int(step.computed_R[row]), int(step.scheduled_R[row])
            first, stop = states.wanted(computed, scheduled)
            if member in states.asked.members and first < stop:
                assert first >= computed + scheduled - kept_R[row], "members read the completion together"
                # A member's rows of a request are its last ones.
                shift = int(stops_R[row]) - (computed + scheduled)
                rows = slice(first + shift, stop + shift)
                found.setdefault(member, []).append(Window(states, member, rows, first))
    return found


@contextmanager
def watching(layers: MemberLayers, wanted: Iterable[Window]) -> Iterator[None]:
    """While a member runs, its layers' states go to these windows."""
    sites: dict[tuple[int, str], _Site] = {}
    for window in wanted:
        site = window.states.asked.site
        for place, layer in enumerate(window.layers):
            sites.setdefault((layer, site), _Site(layers, layer, site)).takers.append((window, place))
    try:
        for one in sites.values():
            one.attach()
        yield
    finally:
        for one in sites.values():
            one.detach()


class _Site:
    """One place in a member, whose states go to some windows; a problem with them is those requests', and no other's.

    Attributes:
        takers: the windows, with the layer's place among those that each asks for.
    """

    def __init__(self, layers: MemberLayers, layer: int, site: str) -> None:
        self.takers: list[tuple[Window, int]] = []
        self._layers, self._layer, self._site = layers, layer, site
        self._handles: list[Any] = []
        self._open: tuple[torch.Tensor, ...] = ()

    def attach(self) -> None:
        """Set the hooks."""
        try:
            module = self._layers.module(self._layer, self._site)
            norms = self._layers.norms_after(self._layer) if self._site == "residual" else []
        except ActivationError as error:
            self._fail(error)
            return
        self._handles.append(module.register_forward_hook(self._ran))
        self._handles += [norm.register_forward_pre_hook(self._given, with_kwargs=True) for norm in norms]

    def detach(self) -> None:
        """Take the hooks off. Two tensors that no norm was given stay unclear."""
        for handle in self._handles:
            handle.remove()
        if self._open:
            self._fail(self._layers.unknown(self._site))

    def _ran(self, _module: Any, _inputs: Any, output: Any) -> None:
        with self._guarded():
            parts = self._layers.parts(output, self._site)
            if len(parts) == 1:
                self._take(parts)
            else:
                self._open = parts

    def _given(self, norm: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not self._open:
            return
        with self._guarded():
            # Before the norm has run, which may overwrite what it is given.
            if parts := self._layers.taken(self._open, norm, [*positional, *named.values()]):
                self._open = ()
                self._take(parts)

    def _take(self, parts: Sequence[torch.Tensor]) -> None:
        for window, place in self.takers:
            with self._guarded(window):
                state_RH = self._layers.state(parts, self._site, window.rows)
                window.states.take(window.member, place, state_RH, window.position)

    @contextmanager
    def _guarded(self, window: Window | None = None) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, TypeError, ValueError) as error:
            self._fail(error, window)

    def _fail(self, error: Exception, window: Window | None = None) -> None:
        for one, _ in self.takers:
            if window in (None, one):
                one.states.problem = str(error)
