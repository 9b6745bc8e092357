"""Coefficients on vLLM's Model Runner V2, which lets the model provide its state.

Shape suffixes: T tokens, Q request slots, W numbers of a vector.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from typing_extensions import override
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.triton_utils import tl, triton
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.prompt_logprob import CHUNK_SIZE as PROMPT_ROWS
from vllm.v1.worker.gpu.sample.prompt_logprob import (
    PromptLogprobsWorker,
    compute_prompt_logprobs_with_chunking,
)
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup

from eft_server.behaviour.equation import is_broken
from eft_server.engine.message import EngineRequest, Explaining, Manifest, Prompts, scoring_of
from eft_server.engine.patches import overwrite, retype
from eft_server.engine.worker.columns import is_filtered
from eft_server.engine.worker.kv_cache import WholeWindows
from eft_server.engine.worker.measures.activations import States, Window, windows
from eft_server.engine.worker.measures.reporting import ReportingRows, StepFigures
from eft_server.engine.worker.measures.scoring import Scores, explained_at_once, scored_at_once
from eft_server.engine.worker.member_prompts import Step
from eft_server.engine.worker.v2.drafting import MemberSpeculator
from eft_server.engine.worker.v2.graphs import MemberGraphs, Replay
from eft_server.engine.worker.v2.members import Members, Pass
from eft_server.engine.worker.v2.rows import Needs, usual_needs


class EftModelState(DefaultModelState):
    """The requests' data, in a table by request slot, and from it the tokens that each member reads in a step.

    Attributes:
        members: the members' layers and graphs; None until the KV cache exists.
    """

    members: Members | None = None

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        encoder_cache: EncoderCache | None,
        device: torch.device,
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self._manifest = Manifest.from_hf(self.model_config.hf_config)
        width = self._manifest.width
        self._table_QW = StagedWriteTensor((self.max_num_reqs, width), torch.float32, device)
        self._tokens_TW = torch.zeros((self.max_num_tokens, width), dtype=torch.float32, device=device)
        self._filtered_Q = np.zeros(self.max_num_reqs, dtype=bool)
        self._reporting_Q = np.zeros(self.max_num_reqs, dtype=bool)
        shape = (self.max_num_reqs, len(self._manifest.names))
        self._needed_QM = np.zeros(shape, dtype=bool)
        self._counting_QM = np.zeros(shape, dtype=bool)
        self._offset_QM = np.zeros(shape, dtype=np.int64)
        self._sent_offset_QM = StagedWriteTensor(shape, torch.int32, device)
        self._length_Q = np.zeros(self.max_num_reqs, dtype=np.int64)
        self._prompts: dict[int, Prompts] = {}
        self._slot_of: dict[str, int] = {}
        self._states: dict[str, States] = {}
        self._watched: dict[int, list[Window]] = {}
        self._parts: dict[str, Pass | Replay] | None = None
        self._idle: dict[str, torch.Tensor] = {}
        self._of_step = self._of_dummies = ((True,) * len(self._manifest.names), False)
        self._of_samples: Needs | None = None
        composite: Any = model
        composite.blender.needs = self.needs

    @property
    def defaults(self) -> tuple[float, ...]:
        """The family's default vector, W numbers."""
        return self._manifest.defaults

    @property
    def activation_bytes(self) -> int:
        """The bytes of activations for which there has to be room."""
        return self._manifest.activation_bytes

    @property
    def alone(self) -> list[tuple[float, ...]]:
        """The vectors of the members by themselves, W numbers each."""
        return [tuple(row) for row in np.eye(len(self._manifest.names), self._manifest.width).tolist()]

    def set_up(
        self, attn_groups: list[list[AttentionGroup]], tables: BlockTables, graphs: MemberGraphs
    ) -> None:
        """Prepare the members' layers and graphs, now that the KV cache exists.

        vLLM calls this twice, since it captures some graphs to measure their memory.
        """
        self.members = Members(self.model, attn_groups, tables, self._sent_offset_QM.gpu, graphs)

    @override
    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Store a new request's data (a resumed one arrives here again)."""
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        asked = EngineRequest.read(params.extra_args if params else None, self._manifest)
        self._slot_of[new_req_data.req_id] = req_index
        self._table_QW.stage_write(req_index, 0, asked.vector)
        self._sent_offset_QM.stage_write(req_index, 0, asked.offsets)
        self._filtered_Q[req_index] = is_filtered(asked.vector)
        self._reporting_Q[req_index] = asked.reporting
        self._needed_QM[req_index] = asked.needed
        self._counting_QM[req_index] = asked.counting
        self._offset_QM[req_index] = asked.offsets
        self._length_Q[req_index] = asked.length
        self._prompts.pop(req_index, None)
        if asked.prompts is not None:
            self._prompts[req_index] = asked.prompts
        if asked.scoring is not None and asked.scoring.activations is not None:
            self._states[new_req_data.req_id] = States(asked.scoring, self._manifest.widths, self.device)

    @override
    def remove_request(self, req_id: str) -> None:
        """Forget a request."""
        super().remove_request(req_id)
        self._prompts.pop(self._slot_of.pop(req_id, -1), None)
        self._states.pop(req_id, None)

    @override
    def apply_staged_writes(self) -> None:
        """Copy the stored data to the device."""
        super().apply_staged_writes()
        self._table_QW.apply_write()
        self._sent_offset_QM.apply_write()

    def offsets(self, input_batch: InputBatch, member: int) -> torch.Tensor:
        """A member's distance behind the scheduler in each request: int64 (R,)."""
        offset_R: torch.Tensor = self._sent_offset_QM.gpu[input_batch.idx_mapping, member].long()
        return offset_R

    @override
    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: Any,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        attn_groups: list[list[AttentionGroup]],
        *args: Any,
        **options: Any,
    ) -> dict[str, Any]:
        """The step's attention metadata; also determines how each member runs (for `prepare_inputs`)."""

        def build(groups: list[list[AttentionGroup]]) -> dict[str, Any]:
            return super(EftModelState, self).prepare_attn(
                input_batch, cudagraph_mode, block_tables, slot_mappings, groups, *args, **options
            )

        self._parts, self._idle, self._watched = None, {}, {}
        if self.members is None:
            return build(attn_groups)
        if input_batch.req_ids[0] not in self._slot_of:  # A dummy step, which all members read.
            self._of_step = self._of_dummies
            return build(self.members.groups(self._manifest.names))
        slots = input_batch.idx_mapping_np[: input_batch.num_reqs]
        self._of_step = tuple(self._counting_QM[slots].any(axis=0)), bool(self._filtered_Q[slots].any())
        step = self._step(input_batch, block_tables)
        if states_R := self._states_of(input_batch):
            self._watched = windows(states_R, step)
            step = replace(step, watched=frozenset(self._watched))
        self._parts, self._idle = self.members.parts(step, input_batch, slot_mappings, build)
        return {}

    def _states_of(self, input_batch: InputBatch) -> dict[int, States]:
        """The activations that a step's requests ask for, by their place in the batch."""
        if not self._states:
            return {}
        own = ((row, self._states.get(req_id)) for row, req_id in enumerate(input_batch.req_ids))
        return {row: states for row, states in own if states is not None}

    def ended_states(self, input_batch: InputBatch) -> dict[str, torch.Tensor | np.ndarray]:
        """The activations of the requests whose text a step has read to its end."""
        return {
            input_batch.req_ids[row]: states.array()
            for row, states in self._states_of(input_batch).items()
            if states.ends(
                int(input_batch.num_computed_tokens_np[row]), int(input_batch.num_scheduled_tokens[row])
            )
        }

    def _step(self, input_batch: InputBatch, block_tables: Sequence[torch.Tensor]) -> Step:
        assert self.members is not None
        count = input_batch.num_reqs
        slots = input_batch.idx_mapping_np[:count]
        computed_R = input_batch.num_computed_tokens_np[:count].astype(np.int64)
        reading_R = computed_R < self._length_Q[slots]
        return Step(
            self._needed_QM[slots],
            self._offset_QM[slots],
            reading_R,
            {int(row): self._prompts[slots[row]] for row in np.flatnonzero(reading_R)},
            computed_R,
            input_batch.num_scheduled_tokens[:count],
            input_batch.input_ids,
            input_batch.positions,
            input_batch.seq_lens[:count],
            [table[:count] for table in block_tables],
            self.members.tables.block_sizes,
        )

    def needs(self, rows: int) -> Needs:
        """The needs of rows whose logits are computed: sampled rows, or any rows of this step."""
        if self._of_samples is not None:
            assert len(self._of_samples.filtered_R) == rows, "logits are those of the rows that are sampled"
            return self._of_samples
        counting_M, filtered = self._of_step
        return Needs.alike(counting_M, rows, filtered=filtered)

    def of_samples(self, input_batch: InputBatch, reporting: ReportingRows | None = None) -> Needs:
        """The needs of the rows from which a step's tokens are sampled."""
        count = input_batch.num_reqs
        slots = input_batch.idx_mapping_np[:count]
        rows_R = np.diff(input_batch.cu_num_logits_np[: count + 1])
        return Needs(
            self._counting_QM[slots].repeat(rows_R, axis=0),
            self._filtered_Q[slots].repeat(rows_R),
            None if reporting is None else reporting.rows_R,
        )

    def reporting(self, input_batch: InputBatch) -> ReportingRows | None:
        """Those of these rows that are compared with the base's: none of a prompt that has not been read to its end."""
        count = input_batch.num_reqs
        reporting_P = self._reporting_Q[input_batch.idx_mapping_np[:count]]
        if not reporting_P.any():
            return None
        read_P = input_batch.num_computed_tokens_np[:count] + input_batch.num_scheduled_tokens[:count]
        reporting_P &= read_P >= input_batch.prefill_len_np[:count]
        counts_P = np.diff(input_batch.cu_num_logits_np[: count + 1])
        return ReportingRows.of(input_batch.req_ids, reporting_P, counts_P)

    @contextmanager
    def sampling(self, needs: Needs) -> Iterator[None]:
        """While logits are computed for sampled rows with these needs."""
        self._of_samples = needs
        try:
            yield
        finally:
            self._of_samples = None

    @contextmanager
    def filtering(self) -> Iterator[None]:
        """While memory is measured, any row may have a filter."""
        before = self._of_step
        self._of_step = before[0], True
        try:
            yield
        finally:
            self._of_step = before

    @override
    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        """Spread the table over this step's tokens; returns keywords for the composite's forward."""
        inputs = super().prepare_inputs(input_batch, req_states)
        if input_batch.num_reqs:
            _spread_kernel[(input_batch.num_reqs,)](
                self._tokens_TW,
                self._table_QW.gpu,
                input_batch.idx_mapping,
                input_batch.query_start_loc,
                self._manifest.width,
                WIDTH=triton.next_power_of_2(self._manifest.width),
                BLOCK=64,
            )
        vector_TW = self._tokens_TW[: input_batch.num_tokens_after_padding]
        parts = {"parts": self._parts, "idle": self._idle, "watched": self._watched}
        return {**inputs, "vector_TW": vector_TW, **parts}

    @override
    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        """The same buffer, for profiling and graph capture."""
        inputs = super().prepare_dummy_inputs(num_reqs, num_tokens)
        return {**inputs, "vector_TW": self._tokens_TW[:num_tokens]}

    @override
    def custom_sampler(self, sampler: Sampler) -> tuple[Sampler, RejectionSampler | None]:
        """Samplers that count non-finite rows by request, for the scheduler."""
        sampler = retype(sampler, EftSampler)
        # vLLM's count reads every logit again, and takes rows for requests.
        overwrite(sampler, "compute_nans", False)
        speculative = self.vllm_config.speculative_config
        if speculative is None:
            return sampler, None
        return sampler, EftRejectionSampler(sampler, speculative, self.device)


class EftRunner(WholeWindows, GPUModelRunner):
    """vLLM's Model Runner V2, with separate graphs for each member in place of those of the whole."""

    def use_member_draft(self) -> None:
        """Change the class of vLLM's speculator if the draft is a member, before it loads anything."""
        drafting = Manifest.from_hf(self.model_config.hf_config).draft
        if drafting is not None:
            retype(self.speculator, MemberSpeculator).member = drafting

    @override
    def load_model(self, *args: Any, **options: Any) -> None:
        """As in vLLM; also let the worker for prompts' log-probabilities score completions."""
        super().load_model(*args, **options)
        worker = retype(self.prompt_logprobs_worker, ScoringWorker)
        worker.model, worker.scores = self.model, {}
        worker.width = Manifest.from_hf(self.model_config.hf_config).width

    @override
    def sample(
        self, hidden_states: torch.Tensor, input_batch: InputBatch, *args: Any
    ) -> tuple[SamplerOutput, torch.Tensor, torch.Tensor]:
        """As in vLLM, but run each member's head only on the rows that need it.

        Also report on those that ask, and send the activations of requests whose texts have been read.
        """
        state, model = cast(Any, self.model_state), cast(Any, self.model)
        reporting = state.reporting(input_batch)
        with state.sampling(state.of_samples(input_batch, reporting)):
            sampled = super().sample(hidden_states, input_batch, *args)
        figures_N2 = None if reporting is None else model.blender.take_figures()
        ended = state.ended_states(input_batch)
        if figures_N2 is not None or ended:
            overwrite(sampled[0], "sampling_mask_tensors", StepFigures(figures_N2, reporting, ended))
        return sampled

    @override
    def _dummy_sampler_run(self, hidden_states: torch.Tensor) -> None:
        """Measure vLLM's sampler, and then cases that may need more memory.

        These are a filter on every row, the additional rows of drafts, a report on all of these, the log-probabilities
        of prompts, scores and explanations.
        """
        super()._dummy_sampler_run(hidden_states)
        model, state = cast(Any, self.model), cast(Any, self.model_state)
        rows = max(self.max_num_reqs * self.decode_query_len, PROMPT_ROWS)
        hidden_RC = model.columns_TC[: min(rows, len(model.columns_TC))]
        targets_R = torch.zeros(len(hidden_RC), dtype=torch.int64, device=self.device)
        with state.filtering():
            model.compute_logits(hidden_RC)
            compute_prompt_logprobs_with_chunking(targets_R, hidden_RC, model.compute_logits, 1)
        sampled = min(self.max_num_reqs * self.decode_query_len, len(hidden_RC))
        everything = Needs.alike((True,) * len(model.names), sampled, filtered=True, reporting=True)
        with state.sampling(everything):
            model.compute_logits(hidden_RC[:sampled])
        # This compiles their kernels now, not while requests wait.
        for needs in usual_needs(len(model.names)):
            with state.sampling(needs):
                model.compute_logits(hidden_RC[: len(needs.filtered_R)])
        model.blender.take_figures()
        scored = scored_at_once(len(model.names), model.vocabulary)
        model.score(hidden_RC[:scored], [state.defaults], targets_R[:scored])
        explained = explained_at_once(len(model.names), model.vocabulary)
        vectors = [state.defaults, *state.alone]
        asked = Explaining(likely=min(20, model.vocabulary), leading=len(vectors), base=1, top_p=0.9)
        model.explain(hidden_RC[:explained], vectors, targets_R[:explained], asked)

    @override
    def profile_run(self, *args: Any, **options: Any) -> None:
        """As in vLLM; where requests may ask for activations, also measure a step without compiled code."""
        super().profile_run(*args, **options)
        state, model = cast(Any, self.model_state), cast(Any, self.model)
        if held := state.activation_bytes:
            # As they were taken, and as one array that is sent.
            kept = torch.empty(2 * held, dtype=torch.uint8, device=self.device)
            with model.in_python():
                self._dummy_run(self.max_num_tokens, skip_attn=True, is_profile=True)
            torch.accelerator.synchronize()
            del kept

    @override
    def profile_cudagraph_memory(self) -> int:
        """As in vLLM, plus the arrays that graphs read; the graphs captured for the measurement are freed."""
        state: Any = self.model_state
        try:
            measured = super().profile_cudagraph_memory()
            return measured + (state.members.inputs.nbytes if state.members is not None else 0)
        finally:
            state.members = None

    @override
    def initialize_kv_cache(self, *args: Any, **options: Any) -> None:
        """As in vLLM; also prepare the members' layers and graphs."""
        super().initialize_kv_cache(*args, **options)
        manager, state = retype(self.cudagraph_manager, MemberGraphs), cast(Any, self.model_state)
        state.set_up(self.attn_groups, self.block_tables, manager)


def retyped(runner: type[GPUModelRunner]) -> type[GPUModelRunner]:
    """The class for a worker's runner; the CPU build has a separate subclass."""
    return type("EftRunner", (EftRunner, runner), {})


class ScoringWorker(PromptLogprobsWorker):
    """vLLM's worker for prompts' log-probabilities, which also scores; it handles requests to be scored separately.

    Attributes:
        model: the composite.
        width: the number of values in a vector.
        scores: the scores of the requests to be scored.
    """

    model: Any
    width: int
    scores: dict[str, Scores]

    @override
    def add_request(self, req_id: str, req_idx: int, sampling_params: SamplingParams) -> None:
        """Add a new request."""
        super().add_request(req_id, req_idx, sampling_params)
        scoring = scoring_of(sampling_params.extra_args, self.width)
        if scoring is not None:
            self.uses_prompt_logprobs[req_idx] = False
            self.scores[req_id] = Scores(scoring, self.device)

    @override
    def remove_request(self, req_id: str) -> None:
        """Forget a request; a preempted one returns as a new one."""
        super().remove_request(req_id)
        self.scores.pop(req_id, None)

    @override
    def compute_prompt_logprobs(
        self, logits_fn: Any, hidden_states: torch.Tensor, input_batch: InputBatch, *args: Any
    ) -> dict[str, LogprobsTensors]:
        """As in vLLM, plus the scores of requests whose prefill is complete."""
        found = super().compute_prompt_logprobs(logits_fn, hidden_states, input_batch, *args)
        for row, req_id in enumerate(input_batch.req_ids) if self.scores else ():
            scores = self.scores.get(req_id)
            if scores is None:
                continue
            start, stop = (int(place) for place in input_batch.query_start_loc_np[row : row + 2])
            computed = int(input_batch.num_computed_prefill_tokens_np[row])
            if scores.read(self.model, hidden_states[start:stop], computed):
                found[req_id] = scores.tensors()
        return found


class EftSampler(Sampler):
    """vLLM's sampler, which also reports the requests whose rows are NaN."""

    @override
    def __call__(self, logits: torch.Tensor, input_batch: InputBatch) -> SamplerOutput:
        """Sample one token per request."""
        broken_R = is_broken(logits)
        output = super().__call__(logits, input_batch)
        output.num_nans = broken_R.to(torch.int32)
        return output


class EftRejectionSampler(RejectionSampler):
    """vLLM's rejection sampler, which also reports the requests whose rows are NaN."""

    @override
    def __call__(
        self, logits: torch.Tensor, input_batch: InputBatch, *args: Any, **kwargs: Any
    ) -> SamplerOutput:
        """Verify the drafts, then count each request's broken rows from which a token was sampled."""
        broken_R = is_broken(logits)
        output = super().__call__(logits, input_batch, *args, **kwargs)
        output.num_nans = _by_request(broken_R, input_batch.cu_num_logits.long(), output.num_sampled)
        return output


def _by_request(broken_R: torch.Tensor, starts: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """Count broken rows by request, without those after a rejected draft, which need not be a likely token."""
    total = torch.nn.functional.pad(broken_R.cumsum(0), (1, 0))
    used = torch.minimum(starts[:-1] + sampled, starts[1:])
    return (total[used] - total[starts[:-1]]).to(torch.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _spread_kernel(
    tokens_ptr: tl.tensor,
    table_ptr: tl.tensor,
    slot_ptr: tl.tensor,
    start_ptr: tl.tensor,
    width: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    # Triton also compiles the annotations, and knows only its own names.
    request = tl.program_id(0)
    slot = tl.load(slot_ptr + request)
    start = tl.load(start_ptr + request)
    stop = tl.load(start_ptr + request + 1)
    column = tl.arange(0, WIDTH)
    row = tl.load(table_ptr + slot * width + column, mask=column < width, other=0.0)
    for first in range(start, stop, BLOCK):
        token = first + tl.arange(0, BLOCK)
        inside = (token[:, None] < stop) & (column[None, :] < width)
        target = tokens_ptr + token[:, None] * width + column[None, :]
        tl.store(target, tl.broadcast_to(row[None, :], (BLOCK, WIDTH)), mask=inside)
