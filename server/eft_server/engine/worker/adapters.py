"""Experts that are LoRA adapters: separate attention layers over their reference's weights.

Such an expert is built as another member of the reference's architecture, because it has separate keys and values, but
without memory for weights. Then every layer with weights is replaced by the reference's layer, or, if the adapter
changes it, calls the reference's layer and adds the low-rank term. This works for any weights of the reference:
quantised, packed for CPUs, or with special kernels.

Shape suffixes: T tokens, I inputs and O outputs of a layer, R ranks.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override
from vllm.config.lora import LoRAConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from eft_server.engine.message import MemberWeights
from eft_server.family.adapter import CONFIG, WEIGHTS, adapter_file, module_of
from eft_server.family.safetensors import read_header

MAX_RANK: Final = 512
"""vLLM's limit on a LoRA's rank."""


@dataclass(frozen=True)
class LowRank:
    """An adapter's term for one matrix of the reference: x ↦ (x · a_RIᵀ) · b_ORᵀ, with the scaling inside b_OR.

    Attributes:
        layer: the name of vLLM's layer, which may hold several matrices of the checkpoint side by side.
        part: the place of this matrix among them; None if the layer has only this matrix.
    """

    layer: str
    part: int | None
    a_RI: torch.Tensor
    b_OR: torch.Tensor


def check_adapter(checkpoint: MemberWeights) -> None:
    """Check an adapter's ranks against its settings, without reading weights.

    Raises:
        ValueError: a rank is too high, or differs from the settings, or vLLM refuses the settings.
    """
    helper = _helper(checkpoint)
    for name, tensor in read_header(adapter_file(checkpoint.model, checkpoint.revision, WEIGHTS)).items():
        rank = tensor.shape[0 if name.endswith("lora_A.weight") else 1]
        stated, _ = helper.get_rank_and_scaling(module_of(name))
        if rank != stated:
            raise ValueError(f"{module_of(name)!r} has rank {rank}, but its {CONFIG} says {stated}")
        if rank > MAX_RANK:
            raise ValueError(f"{module_of(name)!r} has rank {rank}; allowed: up to {MAX_RANK}")


def scaling_of(checkpoint: MemberWeights, module: str) -> float:
    """The factor of an adapter's term for a layer."""
    return float(_helper(checkpoint).get_rank_and_scaling(module)[1])


def _helper(checkpoint: MemberWeights) -> PEFTHelper:
    folder = adapter_file(checkpoint.model, checkpoint.revision, CONFIG).parent
    helper = PEFTHelper.from_local_dir(str(folder), max_position_embeddings=None)
    helper.validate_legal(LoRAConfig(max_lora_rank=MAX_RANK))
    return helper


def read_low_rank(checkpoint: MemberWeights, model_class: type[nn.Module]) -> list[LowRank]:
    """Read an adapter's weights, in float32 and with their scaling folded in."""
    weights = load_file(adapter_file(checkpoint.model, checkpoint.revision, WEIGHTS))
    # As in vLLM's adapter manager: renamed like a checkpoint's weights, but with q, k and v still separate.
    mapper = getattr(model_class, "hf_to_vllm_mapper", None)
    renaming = mapper.get_rename_mapper() if mapper is not None else None
    adapter = LoRAModel.from_lora_tensors(
        1, weights, _helper(checkpoint), device="cpu", dtype=torch.float32, weights_mapper=renaming
    )
    parts = _parts(model_class)
    terms = []
    for module, lora in adapter.loras.items():
        parent, _, leaf = module.rpartition(".")
        fused, part = parts.get(leaf, (leaf, None))
        lora.optimize()
        terms.append(LowRank(f"{parent}.{fused}" if parent else fused, part, lora.lora_a, lora.lora_b))
    return terms


def _parts(model_class: type[nn.Module]) -> dict[str, tuple[str, int]]:
    """For each matrix that vLLM fuses with others, its layer and its place there."""
    mapping: Mapping[str, list[str]] = getattr(model_class, "packed_modules_mapping", {})
    return {
        leaf: (fused, part)
        for fused, leaves in mapping.items()
        for part, leaf in enumerate(leaves)
        if len(leaves) > 1
    }


def fingerprint(low_rank: Iterable[LowRank]) -> str:
    """Identifies an adapter's shape: compiled code must not be reused for another shape."""
    shapes = sorted((term.layer, term.part or 0, *term.a_RI.shape, *term.b_OR.shape) for term in low_rank)
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:12]


class _WithoutMemory(TorchFunctionMode):
    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        place = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **place})


@contextmanager
def weightless() -> Iterator[None]:
    """Build a model whose weights take no memory: vLLM's layers allocate all of them with `torch.empty`."""
    with _WithoutMemory():
        yield


def share_weights(name: str, expert: nn.Module, reference: nn.Module, low_rank: Iterable[LowRank]) -> None:
    """Give a weightless expert its reference's weights and its low-rank terms.

    Raises:
        ValueError: the architecture has weights that cannot be shared, or lacks an adapted layer.
    """
    by_layer: dict[str, list[LowRank]] = {}
    for term in low_rank:
        by_layer.setdefault(term.layer, []).append(term)
    modules = dict(expert.named_modules(remove_duplicate=False))
    missing = [layer for layer in by_layer if not isinstance(modules.get(layer), LinearBase)]
    if missing:
        raise ValueError(
            f"member {name!r} adapts {missing[0]!r}, for which vLLM's {type(reference).__name__} has no linear layer: "
            "merge the adapter into a checkpoint"
        )
    _share(expert, reference, by_layer, "")
    left = _unshared(expert, reference)
    if left:
        raise ValueError(
            f"member {name!r}: {type(reference).__name__} keeps {left[0]!r} where adapters cannot share it: merge the "
            "adapter into a checkpoint"
        )


def _unshared(expert: nn.Module, reference: nn.Module) -> list[str]:
    """Tensors that would never be loaded: parameters that are not the reference's, and any without memory.

    Attention layers may have separate scales, which are 1 unless a checkpoint sets them.
    """
    shared = {id(parameter) for parameter in reference.parameters()}
    attention = tuple(
        f"{key}." for key, module in expert.named_modules() if isinstance(module, AttentionLayerBase)
    )
    own = [key for key, parameter in expert.named_parameters() if id(parameter) not in shared]
    unloaded = [key for key in own if not key.startswith(attention)]
    return unloaded + [key for key, buffer in expert.named_buffers() if buffer.is_meta]


def _share(expert: nn.Module, reference: nn.Module, terms: Mapping[str, list[LowRank]], path: str) -> None:
    """Share the reference's child modules where possible, and descend into the others."""
    expert._buffers.update(reference._buffers)
    for name, child in list(expert._modules.items()):
        counterpart, place = reference._modules[name], f"{path}{name}"
        if child is None or isinstance(child, AttentionLayerBase):
            continue
        assert counterpart is not None and type(child) is type(counterpart)
        if place in terms:
            assert isinstance(child, LinearBase)
            _add_terms(child, counterpart, terms[place])
        elif _is_own(child, place, terms):
            _share(child, counterpart, terms, f"{place}.")
        else:
            expert._modules[name] = counterpart


def _is_own(module: nn.Module, place: str, terms: Iterable[str]) -> bool:
    """Whether a module holds attention layers or layers that the adapter adds to."""
    attends = any(isinstance(layer, AttentionLayerBase) for layer in module.modules())
    return attends or any(layer.startswith(f"{place}.") for layer in terms)


def _add_terms(layer: LinearBase, reference: Any, terms: Iterable[LowRank]) -> None:
    assert layer.tp_size == reference.tp_size, "an adapter is placed where its reference is"
    layer._parameters.update(dict.fromkeys(layer._parameters))
    layer.bias = reference.bias
    layer.low_rank = LowRankTerms(layer, terms)
    layer.quant_method = SharedWeights(reference)


class SharedWeights(QuantizeMethodBase):
    """The method of a layer without weights: another layer's product plus low-rank terms."""

    def __init__(self, reference: Any) -> None:
        super().__init__()
        self._reference = reference

    @override
    def create_weights(self, layer: nn.Module, *weight_args: Any, **extra_weight_attrs: Any) -> None:
        """Do nothing: the layer was built before it got this method."""

    @override
    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The reference's product, with the reference's kernel, plus this layer's terms."""
        bias = None if bias is None else self._reference.bias
        return layer.low_rank(x, self._reference.quant_method.apply(self._reference, x, bias))


class LowRankTerms(nn.Module):
    """An adapter's terms for one of vLLM's layers, cut to this rank's share where the layer is sharded."""

    def __init__(self, layer: Any, terms: Iterable[LowRank]) -> None:
        super().__init__()
        self._columns: list[tuple[int, int]] = []
        for index, term in enumerate(terms):
            start, stop = _columns_of(layer, term)
            a_RI, b_OR = own_share(layer, term)
            assert len(b_OR) == stop - start, f"{term.layer}: {len(b_OR)} outputs for {stop - start} columns"
            self._columns.append((start, stop))
            # Buffers and not parameters: members' checkpoints do not have them, so the loader must not expect them.
            for side, matrix in (("a", a_RI), ("b", b_OR)):
                own = matrix.to(device=torch.get_default_device(), dtype=layer.params_dtype).contiguous()
                self.register_buffer(f"{side}_{index}", own, persistent=False)

    @override
    def forward(self, x: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
        """Add the terms to the product (…, O) of the same x (…, I)."""
        for index, (start, stop) in enumerate(self._columns):
            a_RI, b_OR = getattr(self, f"a_{index}"), getattr(self, f"b_{index}")
            product[..., start:stop] += (x @ a_RI.T) @ b_OR.T
        return product


def _columns_of(layer: Any, term: LowRank) -> tuple[int, int]:
    sizes = layer.output_partition_sizes if hasattr(layer, "output_partition_sizes") else [layer.output_size]
    if term.part is None:
        return 0, sum(sizes)
    start = sum(sizes[: term.part])
    return start, start + sizes[term.part]


def own_share(layer: Any, term: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    """The parts of a term's two matrices that this rank needs: inputs and outputs are cut as the layer's are.

    Raises:
        ValueError: the matrix is already a fused one in the checkpoint, so its cuts are not known.
    """
    if layer.tp_size == 1:
        return term.a_RI, term.b_OR
    if isinstance(layer, RowParallelLinear):
        return term.a_RI.chunk(layer.tp_size, dim=1)[layer.tp_rank], term.b_OR
    if term.part is None and len(layer.output_partition_sizes) > 1:
        raise ValueError(f"{term.layer!r}: adapters on fused projections cannot be sharded over GPUs")
    if isinstance(layer, QKVParallelLinear) and term.part:
        shards = layer.tp_size // layer.num_kv_head_replicas
        return term.a_RI, term.b_OR.chunk(shards)[layer.tp_rank // layer.num_kv_head_replicas]
    return term.a_RI, term.b_OR.chunk(layer.tp_size)[layer.tp_rank]
