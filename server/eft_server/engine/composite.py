"""The family as one vLLM model: every member reads the same tokens, and their logits are blended.

Continuous batching, paged KV, prefix caching, chunked prefill, graphs and parallelism are vLLM's: to it this is
one model with more layers.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.sequence import IntermediateTensors
from vllm.transformers_utils.config import get_config, get_hf_text_config

from eft_server.blend import blend
from eft_server.engine.adapters import fingerprint, read_low_rank, share_weights, weightless
from eft_server.engine.coefficients import attach, detach, taken_apart
from eft_server.engine.launcher.stages import member_is_loaded, weights_are_loading
from eft_server.engine.manifest import SEPARATOR, Checkpoint, Manifest
from eft_server.engine.parallel import placement, whole
from eft_server.engine.prompts import Reading
from eft_server.engine.quantisation import as_named_in_the_checkpoint, own_quantisation


class EftForCausalLM(nn.Module):
    """The composite. Its `hidden states` are all members', with each token's mixture behind them.

    Shape suffixes: T tokens, R rows, M members (the base first), W numbers of a mixture, C columns of `attach`.

    Attributes:
        names: the members', in the order of the coefficients.
        filtering: whether a request of this step has a filter; the runners say so before each step.
    """

    filtering = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.manifest = Manifest.from_hf(self.config)
        self.members = nn.ModuleDict()
        self.names = (self.manifest.base, *(item.name for item in self.manifest.members))
        self._sharded = {self.manifest.base, *(item.name for item in self.manifest.members if item.sharded)}
        self._sizes_M: list[int] = []
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
        device = vllm_config.device_config.device
        self.defaults_W = torch.tensor(self.manifest.defaults, dtype=torch.float32, device=device)
        self.unshared_U = torch.tensor(list(self.manifest.unshared_ids()), dtype=torch.long, device=device)

    def _config_of(self, name: str, vllm_config: VllmConfig) -> VllmConfig:
        """The settings with which vLLM builds a member."""
        if name == self.manifest.base:
            return _base_config(vllm_config, self.manifest)
        checkpoint = next(item for item in self.manifest.members if item.name == name)
        return _member_config(vllm_config, checkpoint)

    def _add_adapter(self, checkpoint: Checkpoint, vllm_config: VllmConfig, prefix: str) -> None:
        """The reference once more, with attention layers of its own and otherwise the reference's weights."""
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
        # A tag of its own keeps each member's compile cache apart from the others'.
        with set_model_tag(f"eft_{tag or name}"), self._placed(name):
            member = init_vllm_registered_model(config, prefix=own)
        self.members[_key(name)] = member
        self._sizes_M.append(config.model_config.hf_text_config.hidden_size)
        self._last_id[name] = config.model_config.hf_text_config.vocab_size - 1

    def _member(self, name: str) -> Any:
        return self.members[_key(name)]

    def _placed(self, name: str) -> AbstractContextManager[None]:
        return placement(name in self._sharded)

    @staticmethod
    def get_model_state_cls() -> type:
        """Name Model Runner V2's per-model state, which brings the coefficients."""
        from eft_server.engine.runner_v2 import EftModelState

        return EftModelState

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The base's embeddings. vLLM asks for them only where inputs are not token ids, which we refuse."""
        return self._member(self.manifest.base).embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mixture_TW: torch.Tensor | None = None,
        readings: Mapping[str, Reading] | None = None,
    ) -> torch.Tensor:
        """Run every member on the same tokens, or on those of its own prompt.

        Args:
            input_ids: shape (T,).
            positions: shape (T,).
            intermediate_tensors: unused, there is no pipeline parallelism.
            inputs_embeds: unused, inputs are token ids.
            mixture_TW: float32; where there is none (profiling runs), the family's defaults.

            readings: by name, what members read whose prompts are their own.

        Returns:
            (T, C): see `coefficients.attach`.
        """
        assert intermediate_tensors is None and inputs_embeds is None
        apart = readings or {}
        hidden_M = [self._run(name, input_ids, positions, apart.get(name)) for name in self.names]
        if mixture_TW is None:
            mixture_TW = self.defaults_W.expand(len(input_ids), -1).contiguous()
        return attach(hidden_M, mixture_TW)

    def run_member(self, name: str, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One member's hidden states alone, for drafting: (T, H)."""
        return self._run(name, input_ids, positions, None)

    def shared_logits(self, name: str, hidden_RH: torch.Tensor) -> torch.Tensor:
        """One member's logits over the base's vocabulary, −inf where an id is not everybody's: (R, V)."""
        logits_RV = self._logits(name, hidden_RH)
        assert logits_RV is not None, "drafts are made on every rank"
        beyond = self._last_id[self.manifest.base] + 1 - logits_RV.shape[-1]
        logits_RV = nn.functional.pad(logits_RV, (0, beyond), value=-torch.inf)
        return logits_RV.index_fill(-1, self.unshared_U, -torch.inf)

    def _run(
        self, name: str, input_ids: torch.Tensor, positions: torch.Tensor, reading: Reading | None
    ) -> torch.Tensor:
        with self._placed(name):
            if reading is None:
                hidden_TH: torch.Tensor = self._member(name)(self._readable(name, input_ids), positions)
                return hidden_TH
            reading.enter()
            own_ids = reading.input_ids_T.clamp(max=self._last_id[name])
            return reading.put_back(self._member(name)(own_ids, reading.positions_T))

    def _logits(self, name: str, hidden_RH: torch.Tensor) -> torch.Tensor | None:
        with self._placed(name):
            logits_RV: torch.Tensor | None = self._member(name).compute_logits(hidden_RH)
        return logits_RV

    def _readable(self, name: str, input_ids: torch.Tensor) -> torch.Tensor:
        """Keep ids inside a member's embedding: a plain-base row may hold the base's own padding ids."""
        last_id = self._last_id[name]
        return input_ids.clamp(max=last_id) if last_id < self._last_id[self.manifest.base] else input_ids

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Blend the logits of any rows of `forward`'s result: float32 (R, V), or None off the first rank."""
        hidden_M, coefficients_RM, filters = detach(hidden_states, self._sizes_M)
        logits_M = self._members_logits(hidden_M)
        if logits_M is None:
            return None
        return blend(logits_M, coefficients_RM, self.unshared_U, filters if self.filtering else None)

    def blends(
        self, hidden_states: torch.Tensor, mixtures_KW: torch.Tensor, *, filtering: bool
    ) -> Iterator[torch.Tensor]:
        """Blend the logits of rows of `forward`'s result once for each of several mixtures, whatever rides with them.

        Args:
            hidden_states: any rows.
            mixtures_KW: float32.
            filtering: whether any of them has a filter.

        Yields:
            As `compute_logits` for each mixture; nothing off the first rank.
        """
        hidden_M, _, _ = detach(hidden_states, self._sizes_M)
        logits_M = self._members_logits(hidden_M)
        if logits_M is None:
            return
        for mixture_W in mixtures_KW:
            coefficients_RM, filters = taken_apart(mixture_W.expand(len(hidden_states), -1))
            yield blend(logits_M, coefficients_RM, self.unshared_U, filters if filtering else None)

    def _members_logits(self, hidden_M: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """Every member's, or None off the first rank."""
        logits_M = []
        for name, hidden_RH in zip(self.names, hidden_M, strict=True):
            logits_RV = self._logits(name, hidden_RH)
            if logits_RV is None:
                return None
            logits_M.append(logits_RV)
        return logits_M

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Hand every member its own checkpoint, which the loader streams one after the other."""
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


def _key(name: str) -> str:
    """A member's name among modules: as it is, `float` or `type` would be taken for a method of torch's."""
    return f"{name}{SEPARATOR}"


def _base_config(vllm_config: VllmConfig, manifest: Manifest) -> VllmConfig:
    model_config = vllm_config.model_config
    config = vllm_config.with_hf_config(model_config.hf_config, list(manifest.architectures))
    own_quantisation(config, model_config.model, model_config.revision)
    return config


def _member_config(vllm_config: VllmConfig, checkpoint: Checkpoint) -> VllmConfig:
    hf_config: PretrainedConfig = get_config(
        checkpoint.model, trust_remote_code=False, revision=checkpoint.revision
    )
    config = (vllm_config if checkpoint.sharded else whole(vllm_config)).with_hf_config(hf_config)
    own_quantisation(config, checkpoint.model, checkpoint.revision)
    text_config = config.model_config.hf_text_config = get_hf_text_config(hf_config)
    config.cache_config = copy.copy(config.cache_config)
    config.cache_config.sliding_window = _window_of_every_layer(text_config)
    return config


def _window_of_every_layer(text_config: PretrainedConfig) -> int | None:
    """Layers that do not know better take it from the cache's settings, which vLLM makes for the base alone."""
    layer_types = getattr(text_config, "layer_types", None)
    if layer_types is not None and any(kind != "sliding_attention" for kind in layer_types):
        return None
    return getattr(text_config, "sliding_window", None)
