"""Logits of members that compute in 16 bits: float32 where the head is plain, as they are where it is quantised."""

from typing import Any

import pytest
import torch
from torch import nn
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from eft_server.engine.worker.heads import in_float32

pytestmark = pytest.mark.engine

IDS, HIDDEN = 640, 256


class Head(nn.Module):
    """One of vLLM's heads, as far as logits are concerned."""

    tp_size = 1

    def __init__(self, weight: torch.Tensor, method: QuantizeMethodBase) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.quant_method = method
        method.process_weights_after_loading(self)


class Quantised(QuantizeMethodBase):
    """A method that knows its own weights."""

    def create_weights(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return x @ layer.weight.T


def logits_of(head: Head, hidden: torch.Tensor, **options: Any) -> torch.Tensor:
    member = nn.Module()
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))):
        member.logits_processor = LogitsProcessor(IDS, **options)
    in_float32(member)
    with torch.inference_mode():
        return member.logits_processor(head, hidden)


def weights(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight_VH = torch.randn(IDS, HIDDEN, generator=generator).to(dtype)
    return weight_VH, torch.randn(5, HIDDEN, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_heads_logits_are_not_rounded_to_16_bits(dtype: torch.dtype) -> None:
    weight_VH, hidden_RH = weights(dtype)
    logits_RV = logits_of(Head(weight_VH, UnquantizedEmbeddingMethod()), hidden_RH, soft_cap=30.0, scale=0.5)
    exact_RV = torch.tanh(hidden_RH.double() @ weight_VH.double().T / 30) * 30 * 0.5
    assert logits_RV.dtype == torch.float32
    torch.testing.assert_close(logits_RV.double(), exact_RV, atol=2e-5, rtol=0)


def test_a_float32_heads_logits_are_vllms_own() -> None:
    weight_VH, hidden_RH = weights(torch.float32)
    head = Head(weight_VH, UnquantizedEmbeddingMethod())
    assert torch.equal(logits_of(head, hidden_RH), head.quant_method.apply(head, hidden_RH))


def test_a_quantised_head_keeps_its_method() -> None:
    weight_VH, hidden_RH = weights(torch.bfloat16)
    logits_RV = logits_of(Head(weight_VH, Quantised()), hidden_RH)
    assert torch.equal(logits_RV, hidden_RH @ weight_VH.T)


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e6])
def test_weights_that_float16_cannot_hold_are_not_squeezed_into_it(value: float) -> None:
    weight_VH, hidden_RH = weights(torch.bfloat16)
    weight_VH[7, 3] = value
    logits_RV = logits_of(Head(weight_VH, UnquantizedEmbeddingMethod()), hidden_RH)
    expected_R = hidden_RH.float() @ weight_VH[7].float()
    torch.testing.assert_close(logits_RV[:, 7].float(), expected_R, rtol=0.01, atol=0, equal_nan=True)
