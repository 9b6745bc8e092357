"""Where a member's layers are, what their outputs mean, and what is kept of them: without an engine."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eft_server.engine.activations import ActivationError, Activations, problem_as_array
from eft_server.engine.message import Scoring
from eft_server.engine.worker.layers import MemberLayers
from eft_server.engine.worker.measures.activations import States, Window, watching

pytestmark = pytest.mark.engine

WIDTH = 4


class _Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH), requires_grad=False)


class AddingNorm(_Norm):
    """A norm as vLLM's are: it passes on the sum."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual += x
        return residual * self.weight, residual


class PassingNorm(_Norm):
    """A norm that ignores what came before, as Cohere's."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * self.weight, residual


class PlainNorm(_Norm):
    """A norm of one tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Layer(nn.Module):
    """A layer of any form; `output` is what it gives."""

    def __init__(self, norm: nn.Module | None = None, **children: nn.Module) -> None:
        super().__init__()
        if norm is not None:
            self.norm = norm
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, output: Any) -> Any:
        return output


class Model(nn.Module):
    """A model with stacks of layers."""

    def __init__(self, **stacks: nn.ModuleList) -> None:
        super().__init__()
        self.inner = nn.ModuleDict(stacks)


def layers(*of: Layer) -> MemberLayers:
    return MemberLayers(Model(layers=nn.ModuleList(of)), len(of), WIDTH)


ALL = slice(0, 3)


def test_the_only_list_of_as_many_layers_is_taken_wherever_it_is() -> None:
    stack = nn.ModuleList([Layer(), Layer()])
    model = Model(h=stack, others=nn.ModuleList([Layer()]))
    assert MemberLayers(model, 2, WIDTH).module(1, "residual") is stack[1]


def test_a_list_inside_a_layer_is_not_one_of_layers() -> None:
    stack = nn.ModuleList([Layer(experts=nn.ModuleList([Layer(), Layer()])), Layer()])
    assert MemberLayers(Model(layers=stack), 2, WIDTH).module(0, "residual") is stack[0]


@pytest.mark.parametrize("stacks", [{}, {"one": 2, "other": 2}])
def test_no_list_or_several_are_refused_by_the_models_name(stacks: dict[str, int]) -> None:
    model = Model(**{name: nn.ModuleList([Layer()] * count) for name, count in stacks.items()})
    with pytest.raises(ActivationError, match=r"vLLM's Model has (no|2) lists of 2 layers"):
        MemberLayers(model, 2, WIDTH).module(0, "residual")


def test_the_feed_forward_module_is_the_only_one_with_such_a_name() -> None:
    mlp = nn.Identity()
    assert layers(Layer(mlp=mlp, attention=nn.Identity())).module(0, "mlp") is mlp
    for children, words in (({}, "no feed-forward"), ({"mlp": mlp, "moe": mlp}, "mlp, moe in one layer")):
        with pytest.raises(ActivationError, match=f"Model has {words}"):
            layers(Layer(**children)).module(0, "mlp")


def test_one_tensor_is_the_state_and_is_copied() -> None:
    output_TH = torch.arange(12.0).reshape(3, WIDTH)
    member = layers(Layer())
    for form in (output_TH, (output_TH,), (output_TH, None), output_TH.unsqueeze(0)):
        state_RH = member.state(member.parts(form, "residual"), "residual", slice(1, 3))
        assert torch.equal(state_RH, output_TH[1:])
        assert state_RH.data_ptr() != output_TH[1:].data_ptr()


def test_two_tensors_are_added_in_float32() -> None:
    parts = torch.full((3, WIDTH), 256.0).bfloat16(), torch.ones(3, WIDTH).bfloat16()
    state_RH = layers(Layer()).state(parts, "residual", ALL)
    assert state_RH.dtype == torch.float32
    assert torch.equal(state_RH, torch.full((3, WIDTH), 257.0))


@pytest.mark.parametrize(
    ("output", "site"),
    [
        ((torch.ones(3, WIDTH),) * 2, "mlp"),
        ((torch.ones(3, WIDTH),) * 3, "residual"),
        (torch.ones(3, WIDTH + 1), "residual"),
        (torch.ones(2, WIDTH), "residual"),
        (torch.ones(2, 3, WIDTH), "residual"),
        (None, "residual"),
        ({"state": torch.ones(3, WIDTH)}, "residual"),
    ],
)
def test_other_forms_are_refused(output: Any, site: str) -> None:
    member = layers(Layer())
    with pytest.raises(ActivationError, match=f"vLLM's Model gives its states at the site {site} in a form"):
        member.state(member.parts(output, site), site, ALL)


class Stack(nn.Module):
    """A model of two layers and a last norm, each of which does with two tensors what its norm does."""

    def __init__(self, norm: type[nn.Module], *, alone: bool = False, wrapped: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(norm()), Layer(norm())])
        self.norm = norm()
        self._alone, self._wrapped = alone, wrapped

    def forward(self, one_TH: torch.Tensor, two_TH: torch.Tensor) -> None:
        for norm in (self.layers[1].norm, self.norm):
            given = self.layers[0 if norm is self.layers[1].norm else 1]((one_TH + 0, two_TH + 0))
            given = tuple(part + 0 for part in given) if self._wrapped else given
            norm(given[0]) if self._alone else norm(given[0], residual=given[1])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    ("norm", "form", "expected"),
    [
        (AddingNorm, {}, 3.0),
        (PlainNorm, {"alone": True}, 1.0),
        (PassingNorm, {}, None),
        (AddingNorm, {"wrapped": True}, None),
    ],
    ids=["adds", "alone", "passes", "unseen"],
)
def test_the_next_norm_tells_what_two_tensors_are(
    layer: int, norm: type[nn.Module], form: dict[str, bool], expected: float | None
) -> None:
    model, kept = Stack(norm, **form), states("last", layers=(layer,))
    with watching(MemberLayers(model, 2, WIDTH), [Window(kept, 0, slice(2, 3), 13)]):
        model(torch.full((3, WIDTH), 1.0), torch.full((3, WIDTH), 2.0))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if expected is None:
        assert "in a form that is not known" in str(kept.problem)
    else:
        assert torch.equal(torch.as_tensor(kept.array()), torch.full((1, WIDTH), expected))


def states(pool: str, tokens: int = 4, layers: tuple[int, ...] = (0,)) -> States:
    asked = Activations((0,), (layers,), "residual", pool)
    scoring = Scoring(9, tuple(range(tokens)), ((1.0,),), activations=asked)
    return States(scoring, (WIDTH,), torch.device("cpu"))


STEPS = torch.arange(16.0).reshape(4, WIDTH)


@pytest.mark.parametrize("pool", ["last", "mean", "none"])
def test_a_completion_that_is_read_again_counts_once(pool: str) -> None:
    kept = states(pool)
    for computed, scheduled in ((0, 12), (0, 11), (11, 2), (13, 1)):  # The first was preempted.
        first, stop = kept.wanted(computed, scheduled)
        if first < stop:
            kept.take(0, 0, STEPS[first - 10 : stop - 10], first)
        assert kept.ends(computed, scheduled) == (computed == 13)
    expected = {"last": STEPS[-1:], "mean": STEPS.mean(dim=0, keepdim=True), "none": STEPS}[pool]
    found = kept.array()
    assert isinstance(found, torch.Tensor)
    [[own]] = [own.values() for own in kept.asked.split(found.numpy(), 4, (WIDTH,)).values()]
    assert np.array_equal(own, expected.numpy())


def test_tokens_that_were_not_read_are_a_problem_in_place_of_numbers() -> None:
    for taken in ([(0, 10)], [(0, 10), (2, 12)], []):
        kept = states("mean")
        for start, position in taken:
            kept.take(0, 0, STEPS[start : start + 1], position)
        with pytest.raises(ActivationError):
            kept.asked.split(np.asarray(kept.array()), 4, (WIDTH,))


def test_a_problem_travels_as_words() -> None:
    with pytest.raises(ActivationError, match=r"^no »layers«$"):
        Activations((0,), ((0,),)).split(problem_as_array("no »layers«"), 4, (WIDTH,))


def test_a_hook_that_fails_is_its_requests_problem_and_all_hooks_are_taken_off() -> None:
    layer = Layer()
    member, fine, failing = layers(layer), states("last"), states("last")
    windows = [Window(fine, 0, slice(3, 4), 13), Window(failing, 0, slice(99, 100), 13)]

    def run() -> None:
        with watching(member, windows):
            layer(torch.ones(4, WIDTH))
            assert layer._forward_hooks
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert not layer._forward_hooks
    assert fine.problem is None and "form" in str(failing.problem)
