"""What the server gives against what a trainer measured, on a tiny reference with two random adapters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eft_client.progress import Progress
from eft_train.errors import TrainingError
from eft_train.measuring import Measured
from eft_train.verification import TOLERANCE, Verification, verify

from ...engine.adapters import write_adapter, write_merged
from ...engine.checkpoints import write_checkpoint

FAMILY = """
name: tiny
base: ./reference
experts: {expert: {adapter: ./expert, reference: base}}
vllm: {kv_cache_memory_bytes: 16777216, block_size: 32}
"""
PROMPT, CHOSEN, REJECTED = (5, 6, 7, 8), (9, 10, 11, 91), (12, 13, 91)
LAYERS = dict(q_proj=4, down_proj=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training in two phases leaves, as far as it is verified."""
    folder = tmp_path_factory.mktemp("trained")
    reference = write_checkpoint(folder / "reference", 0, vocab_size=93)
    for seed, name in enumerate(("expert", "phases/sft/expert"), 1):
        write_adapter(folder / name, reference, seed, LAYERS)
        write_merged(folder / "merged" / name, reference, folder / name)
    (folder / "family.yaml").write_text(FAMILY)
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> Measured:
    """One example, measured in transformers."""
    expert, start = (_logp(folder / "merged" / name) for name in ("expert", "phases/sft/expert"))
    return Measured("one", PROMPT, CHOSEN, REJECTED, expert[0], expert[1], start[0], start[1])


def _logp(model: Path) -> list[tuple[float, ...]]:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return [_logp_of(loaded, answer) for answer in (CHOSEN, REJECTED)]


def _logp_of(model: torch.nn.Module, answer: Sequence[int]) -> tuple[float, ...]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*PROMPT, *answer]])).logits[0, len(PROMPT) - 1 : -1]
    return tuple(float(row[token]) for row, token in zip(logits.log_softmax(-1), answer, strict=True))


@pytest.fixture(scope="module")
def found(folder: Path, measured: Measured) -> Verification:
    with Progress() as progress:
        return verify(folder, [measured], progress, start=folder / "phases" / "sft" / "expert")


@pytest.mark.engine
def test_what_is_served_is_what_was_trained_and_its_reward_is_what_the_last_phase_added(
    found: Verification,
) -> None:
    assert (found.examples, found.texts, found.tokens) == (1, 2, 7)
    assert max(found.token_difference, found.total_difference, found.reward_difference) <= TOLERANCE
    assert "eft check passes" in found.words and found.as_json()["tolerance"] == TOLERANCE


@pytest.mark.engine
def test_a_number_that_is_off_is_refused_with_the_example_and_both_numbers(
    folder: Path, measured: Measured
) -> None:
    first, second, *others = measured.rejected or ()
    wrong = replace(measured, rejected=(first, second + 0.01, *others))
    with Progress() as progress, pytest.raises(TrainingError) as caught:
        verify(folder, [wrong], progress, start=folder / "phases" / "sft" / "expert")
    message = str(caught.value)
    assert "example one, rejected answer of 3 tokens, log-probability of token 2" in message
    assert f"{second + 0.01:.5f}" in message and "expected a difference of at most 0.001" in message


def test_a_family_that_cannot_be_served_is_an_error_of_the_training(folder: Path, measured: Measured) -> None:
    other = folder.parent / "broken"
    other.mkdir()
    (other / "family.yaml").write_text(FAMILY)
    with Progress() as progress, pytest.raises(TrainingError, match="cannot be served"):
        verify(other, [measured], progress)


def test_nothing_to_compare_is_an_error(folder: Path) -> None:
    with Progress() as progress, pytest.raises(TrainingError, match="no example was measured"):
        verify(folder, [], progress)
