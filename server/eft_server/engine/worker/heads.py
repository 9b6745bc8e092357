"""Members' logits in float32 from 16-bit heads: they are subtracted from each other, for which 16 bits are too few.

A head accumulates in float32 anyway and then rounds: in bfloat16, a logit of 20 to the nearest eighth. On GPUs the
product stays in float32 (vLLM's `head_dtype`). The CPU build would convert the whole head at every step, and its 16-bit
kernels write 16 bits; so the head's weights are stored as float16, for a kernel that multiplies them in float32. This
represents bfloat16 weights exactly down to 6e-5, and smaller ones within 3e-8.

A quantised head keeps its method and its dtype.
"""

from typing import Any, Final

import torch
from torch import nn
from typing_extensions import override
from vllm import envs
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from eft_server.engine.patches import overwrite, retype

_LARGEST: Final = torch.finfo(torch.float16).max


def in_float32(member: nn.Module) -> None:
    """Make a member's heads return float32, whatever dtype it computes in."""
    for module in member.modules():
        if type(module) is LogitsProcessor:
            overwrite(retype(module, Float32Logits), "head_dtype", torch.float32)


class Float32Logits(LogitsProcessor):
    """vLLM's layer between hidden states and logits, in float32 where that needs no conversion."""

    @override
    def _apply_head(self, lm_head: Any, hidden_states: torch.Tensor, embedding_bias: Any) -> torch.Tensor:
        if _is_plain(lm_head) and hidden_states.dtype != torch.float32:
            if hidden_states.is_cuda and not envs.VLLM_BATCH_INVARIANT:
                return super()._apply_head(lm_head, hidden_states, embedding_bias)
            if hidden_states.device.type == "cpu" and (packed := _packed(lm_head)) is not None:
                logits = torch.ops.quantized.linear_dynamic_fp16(hidden_states.float(), packed)
                return logits if embedding_bias is None else logits + embedding_bias.float()
        return lm_head.quant_method.apply(lm_head, hidden_states, bias=embedding_bias)


def _is_plain(lm_head: Any) -> bool:
    return isinstance(lm_head.quant_method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod)


def _packed(lm_head: Any) -> Any:
    """The head's weights packed for the kernel, made once; None if they are not suitable, or there is no kernel."""
    if not hasattr(lm_head, "float16_weights"):
        lm_head.float16_weights = _pack(lm_head.weight)
        if lm_head.float16_weights is not None:
            overwrite(
                lm_head, "cpu_linear", None
            )  # The same weights for the 16-bit kernel, which is no longer used.
    return lm_head.float16_weights


def _pack(weight: torch.Tensor) -> Any:
    # vLLM's linear layers drop their weights once they are packed; a NaN is not below the largest number.
    if "fbgemm" not in torch.backends.quantized.supported_engines or not weight.numel():
        return None
    if not weight.abs().max() <= _LARGEST:
        return None
    return torch.ops.quantized.linear_prepack_fp16(weight.float(), None)
