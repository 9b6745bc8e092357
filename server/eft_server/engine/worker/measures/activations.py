"""Activations of scored requests, from hooks on the layers of the members that are asked for, while these run.

A hook takes the rows that are wanted as soon as a layer has run, since the next one overwrites the residual, and pools
them at once: what is kept is never more than what is sent. In a step in which nobody asks for a member there is no hook
on it; in one in which somebody does it runs in Python, without graphs and compiled code, which would not call hooks.

Shape suffixes: C completion tokens, H a member's hidden size, N all numbers of a request.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

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

    def take(self, layers: MemberLayers, place: int, output: Any) -> None:
        """Take the rows from a module's output; a problem with them is the request's, and no other's."""
        try:
            state_RH = layers.state(output, self.states.asked.site, self.rows)
            self.states.take(self.member, place, state_RH, self.position)
        except (RuntimeError, TypeError, ValueError) as error:
            self.states.problem = str(error)


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
    handles = []
    try:
        for window in wanted:
            asked = window.states.asked
            own = asked.layers[asked.members.index(window.member)]
            try:
                modules = [layers.module(layer, asked.site) for layer in own]
            except ActivationError as error:
                window.states.problem = str(error)
                continue
            handles += [
                module.register_forward_hook(_hook(layers, window, place))
                for place, module in enumerate(modules)
            ]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(layers: MemberLayers, window: Window, place: int) -> Callable[[Any, Any, Any], None]:
    def take(_module: Any, _inputs: Any, output: Any) -> None:
        window.take(layers, place, output)

    return take
