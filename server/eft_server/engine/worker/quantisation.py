"""Quantisation by member: the scheme of its checkpoint, or none, whatever the base's is."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.platforms import current_platform

from eft_server.engine.patches import overwrite
from eft_server.engine.worker.cpu_kernels import adds_up_eight_bits, has_four_bit_kernel

_CPU_SCHEMES = (
    "8-bit integer weights with 8-bit integer activations (on x86 with VNNI), and 4-bit integer weights in bfloat16 "
    "(on x86 with AVX-512)"
)


def refuse_scheme(model: ModelConfig, dtype: Any) -> None:
    """Refuse a quantised checkpoint that this platform cannot run in the engine's dtype.

    Raises:
        ValueError: the scheme cannot run; the message names it and the schemes that can.
    """
    if model.quantization is None:
        return
    scheme = f"it is quantised by {model.quantization!r}"
    if current_platform.is_cpu() and (unfit := _unfit_for_cpus(_stated(model), str(dtype))):
        raise ValueError(
            f"{scheme} ({unfit}), which the CPU build does not support; it supports {_CPU_SCHEMES}"
        )
    engine_dtype, model.dtype = model.dtype, dtype
    try:
        VllmConfig.get_quantization_config(model, LoadConfig())
    except (ValueError, NotImplementedError, ImportError) as error:
        raise ValueError(f"{scheme}, which cannot run here: {error}") from error
    finally:
        model.dtype = engine_dtype


def _stated(model: ModelConfig) -> Mapping[str, Any]:
    stated = getattr(model.hf_config, "quantization_config", None)
    return stated if isinstance(stated, Mapping) else {}


def _unfit_for_cpus(stated: Mapping[str, Any], dtype: str) -> str | None:
    """Why no kernel of the CPU build supports a scheme; vLLM would find out only while it builds the layers."""
    for weight_bits, input_bits, described in _products(stated):
        if (weight_bits, input_bits) == (4, None):
            if not dtype.endswith("bfloat16"):
                return f"{described}, in {dtype.removeprefix('torch.')}: set vllm.dtype to bfloat16"
            if not has_four_bit_kernel():
                return f"{described}: they need a kernel for AVX-512, which this CPU lacks"
        elif (weight_bits, input_bits) != (8, 8):
            return described
        elif not adds_up_eight_bits():
            return f"{described}: 8-bit products are correct only with VNNI, which this CPU lacks"
    return None


def _products(stated: Mapping[str, Any]) -> Iterator[tuple[int | None, int | None, str]]:
    """The integer bits of weights and of activations in each group of layers; None if they are not integers."""
    method = stated.get("quant_method")
    if method in ("awq", "gptq"):
        bits = stated.get("bits", stated.get("w_bit"))
        yield bits, None, f"{bits}-bit weights"
    elif method == "compressed-tensors" and stated.get("config_groups"):
        for group in stated["config_groups"].values():
            weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
            kinds = [
                f"{item.get('num_bits')}-bit {item.get('type', 'int')}" for item in (weights, inputs) if item
            ]
            described = " weights, ".join(kinds) + (" activations" if inputs else " weights")
            integer = {item.get("type", "int") for item in (weights, inputs) if item} == {"int"}
            yield weights.get("num_bits") if integer else None, inputs.get("num_bits"), described
    else:
        yield None, None, "no integer scheme"


def own_quantisation(config: VllmConfig, model: str, revision: str | None) -> None:
    """Adapt a copy of the base's settings to a member: its checkpoint and its scheme."""
    config.model_config.model = model
    config.model_config.revision = revision
    overwrite(config.model_config, "quantization", None)
    config.model_config._verify_quantization()
    config.quant_config = VllmConfig.get_quantization_config(config.model_config, config.load_config)


def as_named_in_the_checkpoint(quant_config: QuantizationConfig | None, own: str) -> None:
    """Hide the member's prefix from its scheme, which identifies layers by their names in the checkpoint."""
    if quant_config is None:
        return
    choose: Callable[[nn.Module, str], Any] = quant_config.get_quant_method
    overwrite(quant_config, "get_quant_method", lambda layer, prefix: choose(layer, prefix.removeprefix(own)))
