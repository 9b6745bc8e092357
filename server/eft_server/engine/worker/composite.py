"""The family as one vLLM model: each member reads the tokens that need it, and the logits are blended.

vLLM provides continuous batching, paged KV, prefix caching, chunked prefill, graphs and parallelism: it sees one model
with more layers.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from transformers import PretrainedConfig
from typing_extensions import override
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, override_forward_context
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.sequence import IntermediateTensors
from vllm.transformers_utils.config import get_config, get_hf_text_config

from eft_server.engine.launcher.stages import member_is_loaded, weights_are_loading
from eft_server.engine.message import SEPARATOR, Explaining, Manifest, MemberWeights
from eft_server.engine.worker.adapters import fingerprint, read_low_rank, share_weights, weightless
from eft_server.engine.worker.columns import attach, columns, detach
from eft_server.engine.worker.compiled import separate_compiled_code
from eft_server.engine.worker.heads import in_float32
from eft_server.engine.worker.layers import MemberLayers
from eft_server.engine.worker.measures.activations import Window, watching
from eft_server.engine.worker.measures.explaining import RowExplanation, explain_rows
from eft_server.engine.worker.measures.statistics import RowStatistics, measure_rows
from eft_server.engine.worker.member_inputs import Inputs
from eft_server.engine.worker.placement import placement, whole
from eft_server.engine.worker.quantisation import as_named_in_the_checkpoint, own_quantisation
from eft_server.engine.worker.rows import Head, RowBlender, RowScores

if TYPE_CHECKING:
    from eft_server.engine.worker.v2.rows import KernelBlender


class Part(Protocol):
    """A member's part of a step, if it is not the whole step."""

    def run(self, model: "EftForCausalLM", name: str, states_TH: torch.Tensor) -> None:
        """Run the member, and write its rows."""


class EftForCausalLM(nn.Module):
    """The composite. Its `hidden states` are those of all members, followed by each token's vector.

    Shape suffixes: T tokens, R rows, M members (the base first), W numbers of a vector, H a member's hidden size,
    C columns of all of these, V the base's vocabulary.

    Attributes:
        names: the members' names, in the order of the coefficients.
        configs: the settings of each member, by name, in the same order.
        inputs: the members' inputs, at fixed addresses.
        blender: computes blended logits from hidden states, on CPUs or on GPUs.
    """

    blender: "RowBlender | KernelBlender"

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.manifest = Manifest.from_hf(self.config)
        self.members = nn.ModuleDict()
        self.names = self.manifest.names
        self._sharded = {self.manifest.base, *(item.name for item in self.manifest.members if item.sharded)}
        self.configs: dict[str, VllmConfig] = {}
        self._sizes_M: list[int] = []
        self._without_requests = self._skips_compiled = False
        self._last_id: dict[str, int] = {}
        self._add(self.manifest.base, self._config_of(self.manifest.base, vllm_config), prefix)
        for checkpoint in self.manifest.members:
            if checkpoint.reference is None:
                self._add(checkpoint.name, self._config_of(checkpoint.name, vllm_config), prefix)
            else:
                self._add_adapter(checkpoint, vllm_config, prefix)
        self.secondary_weights = [
            DefaultModelLoader.Source(item.model, item.revision, prefix=item.weight_prefix)
            for item in self.manifest.members
            if item.reference is None
        ]
        device: Any = vllm_config.device_config.device
        self.defaults_W = torch.tensor(self.manifest.defaults, dtype=torch.float32, device=device)
        self.unshared_U = torch.tensor(list(self.manifest.unshared_ids()), dtype=torch.long, device=device)
        scheduler = vllm_config.scheduler_config
        # A draft reads one token of each request in addition to the step's.
        tokens = scheduler.max_num_batched_tokens + scheduler.max_num_seqs
        heads = [partial(self._logits, name) for name in self.names]
        make = _kernels if vllm_config.use_v2_model_runner else RowBlender
        self.blender = make(heads, self.unshared_U, self.vocabulary)
        self.inputs = Inputs(list(self._last_id.values()), tokens, device)
        dtype: Any = vllm_config.model_config.dtype
        self.columns_TC = torch.zeros((tokens, columns(self._sizes_M, dtype)), dtype=dtype, device=device)

    def _config_of(self, name: str, vllm_config: VllmConfig) -> VllmConfig:
        """The settings with which vLLM builds a member."""
        if name == self.manifest.base:
            return _base_config(vllm_config, self.manifest)
        checkpoint = next(item for item in self.manifest.members if item.name == name)
        return _member_config(vllm_config, checkpoint)

    def _add_adapter(self, checkpoint: MemberWeights, vllm_config: VllmConfig, prefix: str) -> None:
        """Add the reference's architecture again, with separate attention layers but the reference's weights."""
        assert checkpoint.reference is not None
        config = self._config_of(checkpoint.reference, vllm_config)
        low_rank = read_low_rank(checkpoint, type(self._member(checkpoint.reference)))
        with weightless():
            self._add(checkpoint.name, config, prefix, tag=f"{checkpoint.name}_{fingerprint(low_rank)}")
        share_weights(
            checkpoint.name, self._member(checkpoint.name), self._member(checkpoint.reference), low_rank
        )
        member_is_loaded(checkpoint.name, sum(term.a_RI.nbytes + term.b_OR.nbytes for term in low_rank))

    def _add(self, name: str, config: VllmConfig, prefix: str, tag: str | None = None) -> None:
        own = maybe_prefix(prefix, f"members.{name}")
        as_named_in_the_checkpoint(config.quant_config, f"{own}.")
        label = f"eft_{tag or name}"
        separate_compiled_code(config, label)
        with set_model_tag(label), self._placed(name):
            member = init_vllm_registered_model(config, prefix=own)
        in_float32(member)
        self.members[_key(name)] = member
        self.configs[name] = config
        self._sizes_M.append(config.model_config.hf_text_config.hidden_size)
        self._last_id[name] = config.model_config.hf_text_config.vocab_size - 1

    def _member(self, name: str) -> Any:
        return self.members[_key(name)]

    def _placed(self, name: str) -> AbstractContextManager[None]:
        return placement(name in self._sharded)

    @staticmethod
    def get_model_state_cls() -> type:
        """The class of Model Runner V2's per-model state, which provides the coefficients."""
        from eft_server.engine.worker.v2.runner import EftModelState

        return EftModelState

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The base's embeddings. vLLM calls this only for inputs that are not token ids, which we refuse."""
        return self._member(self.manifest.base).embed_input_ids(input_ids)

    @override
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vector_TW: torch.Tensor | None = None,
        parts: Mapping[str, Part | None] | None = None,
        idle: Mapping[str, torch.Tensor] | None = None,
        watched: Mapping[int, Sequence[Window]] | None = None,
    ) -> torch.Tensor:
        """Run every member on its tokens.

        Each member's states are copied as soon as it has run: the output of a compiled member may lie in the pool of
        all CUDA graphs, where the next member's graphs write (vLLM's gemma3n.py does the same).

        Args:
            input_ids: shape (T,).
            positions: shape (T,).
            intermediate_tensors: unused, there is no pipeline parallelism.
            inputs_embeds: unused, inputs are token ids.
            vector_TW: float32; may be absent only in a step `without_requests`.
            parts: by name, the members that run; None for a member that reads the whole step. By default all do.
            idle: by name, rows in which a member is needed but has nothing to read: they become zero.
            watched: by place, the members whose activations are wanted, and where in their parts.

        Returns:
            (T, C), valid until the next call: each member's states in its rows, and arbitrary values in the others;
            after them the vectors (see `coefficients`).

        Raises:
            RuntimeError: A step has requests but no coefficients; there is no safe default.
        """
        assert intermediate_tensors is None and inputs_embeds is None
        columns_TC = self.columns_TC[: len(input_ids)]
        for name, part in (dict.fromkeys(self.names) if parts is None else parts).items():
            place = self.names.index(name)
            states_TH = self.states(place)[: len(input_ids)]
            with self._watching(place, (watched or {}).get(place, ())):
                if part is not None:
                    part.run(self, name, states_TH)
                else:
                    states_TH.copy_(self.run_member(name, input_ids, positions))
        for name, rows_T in (idle or {}).items():
            self.states(self.names.index(name))[rows_T] = 0
        if vector_TW is None:
            if not self._without_requests:
                raise RuntimeError("vLLM runs a step of requests without their coefficients")
            vector_TW = self.defaults_W.expand(len(input_ids), -1).contiguous()
        attach(columns_TC, vector_TW)
        return columns_TC

    @contextmanager
    def _watching(self, member: int, windows: Sequence[Window]) -> Iterator[None]:
        """Take the states of a member's layers while it runs, which it then does without compiled code."""
        if not windows:
            yield
            return
        with self.in_python(), watching(self._layers[member], windows):
            yield

    @contextmanager
    def in_python(self) -> Iterator[None]:
        """Run members without compiled code, in which there would be no hooks."""
        self._skips_compiled = True
        try:
            yield
        finally:
            self._skips_compiled = False

    @cached_property
    def _layers(self) -> list[MemberLayers]:
        shapes = zip(self.names, self.manifest.shapes, strict=True)
        return [MemberLayers(self._member(name), count, width) for name, (count, width) in shapes]

    @contextmanager
    def without_requests(self) -> Iterator[None]:
        """Run steps without requests, with the family's default coefficients."""
        self._without_requests = True
        try:
            yield
        finally:
            self._without_requests = False

    def states(self, member: int) -> torch.Tensor:
        """The buffer of a member's hidden states, by its place: (T, H)."""
        start = sum(self._sizes_M[:member])
        return self.columns_TC[:, start : start + self._sizes_M[member]]

    def run_member(self, name: str, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One member's hidden states: (T, H)."""
        member, padding_T = self.names.index(name), get_forward_context().is_padding
        self.inputs.put(member, input_ids, positions)
        if padding_T is not None:
            self.inputs.padding_M[member][: len(input_ids)] = padding_T[: len(input_ids)]
        return self.run_inputs(name, len(input_ids))

    def run_inputs(self, name: str, count: int) -> torch.Tensor:
        """The same for the first tokens in the member's inputs."""
        member, context = self.names.index(name), get_forward_context()
        own = None if context.is_padding is None else self.inputs.padding_M[member][:count]
        skips = context.skip_compiled or self._skips_compiled
        context = replace(context, is_padding=own, skip_compiled=skips)
        with self._placed(name), override_forward_context(context):
            hidden_TH: torch.Tensor = self._member(name)(*self.inputs.of(member, count))
        return hidden_TH

    def shared_logits(self, name: str, hidden_RH: torch.Tensor) -> torch.Tensor:
        """One member's logits over the base's vocabulary, −inf for ids that are not shared: (R, V)."""
        logits_RV = self._logits(name, hidden_RH)
        assert logits_RV is not None, "drafts are made on every rank"
        beyond = self.vocabulary - logits_RV.shape[-1]
        logits_RV = nn.functional.pad(logits_RV, (0, beyond), value=-torch.inf)
        return logits_RV.index_fill(-1, self.unshared_U, -torch.inf)

    @property
    def vocabulary(self) -> int:
        """V."""
        return self._last_id[self.manifest.base] + 1

    def _logits(self, name: str, hidden_RH: torch.Tensor) -> torch.Tensor | None:
        with self._placed(name):
            logits_RV: torch.Tensor | None = self._member(name).compute_logits(hidden_RH)
        return logits_RV

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Blend the logits of any rows of `forward`'s result: float32 (R, V), or None off the first rank."""
        hidden_M, vector_RW = detach(hidden_states, self._sizes_M)
        return self.blender.blend(hidden_M, vector_RW)

    def score(
        self, hidden_states: torch.Tensor, vectors: Sequence[Sequence[float]], targets_R: torch.Tensor
    ) -> RowScores | None:
        """Score one target for each row of `forward`'s result under several vectors, ignoring the extra columns.

        Args:
            hidden_states: any rows, R of them.
            vectors: W numbers each.
            targets_R: int64.

        Returns:
            None off the first rank.
        """
        hidden_M, _ = detach(hidden_states, self._sizes_M)
        return self.blender.score(hidden_M, vectors, targets_R)

    def measure(
        self, hidden_states: torch.Tensor, vectors: Sequence[Sequence[float]], targets_R: torch.Tensor
    ) -> tuple[RowScores, RowStatistics] | None:
        """As `score`, and what each row is like under each vector."""
        hidden_M, _ = detach(hidden_states, self._sizes_M)
        blended = self.blender.under(hidden_M, vectors)
        return None if blended is None else measure_rows(blended, vectors, targets_R)

    def explain(
        self,
        hidden_states: torch.Tensor,
        vectors: Sequence[Sequence[float]],
        targets_R: torch.Tensor,
        asked: Explaining,
    ) -> RowExplanation | None:
        """Explain one target for each row of `forward`'s result; for the arguments see `explain_rows`.

        Returns:
            None off the first rank.
        """
        hidden_M, _ = detach(hidden_states, self._sizes_M)
        blended = self.blender.under(hidden_M, vectors)
        return None if blended is None else explain_rows(blended, vectors, targets_R, asked)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Give every member its checkpoint; the loader streams them one after the other."""
        loaded: set[str] = set()
        for owner, group in itertools.groupby(weights, key=lambda item: self._owner(item[0])):
            counted = weights_are_loading(owner, group)
            own = ((name.removeprefix(f"{owner}{SEPARATOR}"), tensor) for name, tensor in counted)
            with self._placed(owner):
                names = self._member(owner).load_weights(own)
            loaded.update(f"members.{_key(owner)}.{name}" for name in names)
            member_is_loaded(owner, sum(tensor.nbytes for tensor in self._member(owner).parameters()))
        return loaded

    def _owner(self, weight_name: str) -> str:
        name, separator, _ = weight_name.partition(SEPARATOR)
        return name if separator else self.manifest.base


def _kernels(heads: Sequence[Head], unshared_U: torch.Tensor, vocabulary: int) -> "KernelBlender":
    from eft_server.engine.worker.v2.blending import (
        SharedIds,  # Needs Triton, which the CPU build lacks.
    )
    from eft_server.engine.worker.v2.rows import KernelBlender

    return KernelBlender(heads, SharedIds.of(vocabulary, unshared_U.tolist(), unshared_U.device))


def _key(name: str) -> str:
    """A member's name among modules; a bare `float` or `type` would clash with a method of torch."""
    return f"{name}{SEPARATOR}"


def _base_config(vllm_config: VllmConfig, manifest: Manifest) -> VllmConfig:
    model_config = vllm_config.model_config
    config = vllm_config.with_hf_config(model_config.hf_config, list(manifest.architectures))
    own_quantisation(config, model_config.model, model_config.revision)
    return config


def _member_config(vllm_config: VllmConfig, checkpoint: MemberWeights) -> VllmConfig:
    hf_config: PretrainedConfig = get_config(
        checkpoint.model, trust_remote_code=False, revision=checkpoint.revision
    )
    config = (vllm_config if checkpoint.sharded else whole(vllm_config)).with_hf_config(hf_config)
    own_quantisation(config, checkpoint.model, checkpoint.revision)
    text_config = config.model_config.hf_text_config = get_hf_text_config(hf_config)
    # vLLM has just taken the sizes from the base's text config.
    config.model_config.model_arch_config = config.model_config.get_model_arch_config()
    config.cache_config = copy.copy(config.cache_config)
    config.cache_config.sliding_window = _window_of_every_layer(text_config)
    return config


def _window_of_every_layer(text_config: PretrainedConfig) -> int | None:
    """The window for layers that take it from the cache's settings, which vLLM makes only for the base."""
    layer_types = getattr(text_config, "layer_types", None)
    if layer_types is not None and any(kind != "sliding_attention" for kind in layer_types):
        return None
    return getattr(text_config, "sliding_window", None)
