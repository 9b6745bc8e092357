"""What a request brings, and how it travels beside the hidden states."""

import math
from typing import Any

import pytest
import torch

from eft_server.engine.message import Manifest, MemberWeights, vector_of
from eft_server.engine.worker.columns import (
    attach,
    columns,
    counting,
    counting_rows,
    detach,
    is_filtered,
    split_vectors,
)

DEFAULTS = (1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
WIDTH = len(DEFAULTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coefficients_survive_the_ride_bit_for_bit(dtype: torch.dtype) -> None:
    vectors = torch.tensor([[0.1, -3.3333, 1e-30], [1.0, torch.nan, 2.0], [7.7, 8.8, -9.9]]).repeat(1, 3)[
        :, :8
    ]
    hidden = [torch.randn(3, size).to(dtype) for size in (6, 2, 4)]
    rows = torch.tensor([2, 0, 0])
    columns_TC = torch.empty((3, columns([6, 2, 4], dtype)), dtype=dtype)
    columns_TC[:, :12] = torch.cat(hidden, dim=-1)
    attach(columns_TC, vectors)
    parts, carried_RW = detach(columns_TC[rows], [6, 2, 4])
    coefficients, filters = split_vectors(carried_RW)
    carried = torch.cat(
        [coefficients, filters.delta_RM, filters.kind_R.unsqueeze(-1), filters.top_p_R.unsqueeze(-1)], -1
    )
    assert torch.equal(carried.view(torch.int32), vectors[rows].view(torch.int32))
    for part, original in zip(parts, hidden, strict=True):
        assert torch.equal(part, original[rows])


@pytest.mark.parametrize("extra_args", [None, {}, {"other": 1}, {"eft": None}])
def test_a_request_without_coefficients_is_nan_and_never_the_defaults(extra_args: Any) -> None:
    values = vector_of(extra_args, WIDTH)
    assert len(values) == WIDTH
    assert all(math.isnan(value) for value in values[:3])


@pytest.mark.parametrize("vector", [[1.0], [1, 2, 3, 4], "abc", 5, ["a", "b", "c"], [None] * 3, {"a": 1}])
def test_a_malformed_vector_is_nan_and_never_another_setting(vector: Any) -> None:
    values = vector_of({"eft": vector}, WIDTH)
    assert len(values) == WIDTH
    assert all(math.isnan(value) for value in values[:3])


def test_three_coefficients_are_a_vector_without_a_filter() -> None:
    assert vector_of({"eft": [0.5, 0, 0.5]}, WIDTH) == (0.5, 0, 0.5, 0, 0, 0, 0, 0)
    assert not is_filtered(DEFAULTS)
    assert is_filtered(vector_of({"eft": [0, 0, 1, 1, -1, 0, 1, 0.9]}, WIDTH))


def test_the_manifest_survives_the_base_config() -> None:
    manifest = Manifest(
        ("LlamaForCausalLM",),
        (MemberWeights("small", "/a"), MemberWeights("b", "x/y", "v1")),
        ((3, 5),),
        DEFAULTS,
        (9, 8, 8),
    )
    config = type("Config", (), {"eft": manifest.to_hf()})()
    assert Manifest.from_hf(config) == manifest
    assert list(manifest.unshared_ids()) == [3, 4]


def test_a_config_without_a_manifest_is_refused() -> None:
    with pytest.raises(ValueError, match="eft serve"):
        Manifest.from_hf(object())


def test_a_manifest_of_another_version_is_refused_by_what_it_lacks() -> None:
    older = Manifest(("LlamaForCausalLM",), (), (), DEFAULTS, (9,)).to_hf()
    del older["shapes"], older["activation_bytes"]
    with pytest.raises(ValueError, match="has no shapes, activation_bytes: another version of eft wrote it"):
        Manifest.from_hf(type("Config", (), {"eft": older})())


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        ((1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0), [True, False, False]),
        ((0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0), [False, False, True]),
        ((0.0, 0.0, 1.0, 1.0, -1.0, 0.0, 1.0, 0.9), [True, True, True]),
        ((0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 2.0, 0.9), [True, False, True]),
        ((math.nan, math.nan, math.nan, 0.0, 0.0, 0.0, 0.0, 0.0), [True, True, True]),
    ],
)
def test_members_count_where_a_coefficient_a_delta_or_a_filter_wants_them(
    vector: tuple[float, ...], expected: list[bool]
) -> None:
    assert list(counting(vector)) == expected
    rows = counting_rows(*split_vectors(torch.tensor([vector])))
    assert rows.tolist() == [expected]
