"""What `eft check` says that the logits of a step need."""

from types import SimpleNamespace
from typing import Any

import pytest

from eft_server.engine.launcher.step_memory import logits_bytes, step_memory
from eft_server.errors import ConfigError

pytestmark = pytest.mark.engine

REPORT: Any = SimpleNamespace(vocabulary=SimpleNamespace(size=50_000), members=(None,) * 3)
ROW = 50_000 * 4


def test_on_gpus_it_is_three_rows_of_floats_for_each_row_and_one_more_for_reports() -> None:
    row = 152_064 * 4
    assert logits_bytes(1024, 152_064, 7, kernels=True, sampled=False) == 3 * 1024 * row
    assert logits_bytes(1024, 152_064, 7, kernels=True, sampled=True) == 4 * 1024 * row


def test_on_cpus_all_members_logits_lie_side_by_side_but_of_some_rows() -> None:
    assert logits_bytes(16, 50_000, 3, kernels=False, sampled=True) == 16 * ROW * (1 + 15)
    assert logits_bytes(1024, 50_000, 3, kernels=False, sampled=True) == (1024 + 15 * 335) * ROW


def test_options_say_how_many_requests_drafts_and_tokens_there_are() -> None:
    options = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 100,
        "speculative_config": {"num_speculative_tokens": 3},
    }
    found = step_memory(options, REPORT)
    assert (found.requests, found.tokens) == (8, 100)
    assert (found.sampled, found.drafted, found.prompts) == (8 * 16 * ROW, 32 * 16 * ROW, 100 * 16 * ROW)


def test_vllms_defaults_for_servers_count_otherwise() -> None:
    found = step_memory({}, REPORT)
    assert found.requests >= 128
    assert found.tokens >= 2048
    assert found.drafted is None
    assert found.sampled == logits_bytes(found.requests, 50_000, 3, kernels=False, sampled=True)


@pytest.mark.parametrize("size", [0, -1, "abc", 2.5])
def test_what_is_no_number_of_requests_is_refused(size: object) -> None:
    with pytest.raises(ConfigError, match=r"vllm\.max_num_seqs: .* is not a positive whole number"):
        step_memory({"max_num_seqs": size}, REPORT)
