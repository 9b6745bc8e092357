"""Coefficients on vLLM's Model Runner V1, which the CPU build uses.

V1 has no hook for additional model inputs, so our worker gives vLLM's runner these methods.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from typing_extensions import override
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from eft_server.behaviour.equation import is_broken
from eft_server.engine.message import EngineRequest, Manifest
from eft_server.engine.patches import retype
from eft_server.engine.worker.cpu_kernels import register_cpu_kernels
from eft_server.engine.worker.kv_cache import WholeWindows
from eft_server.engine.worker.measures.activations import States, windows
from eft_server.engine.worker.measures.reporting import ReportingRows, StepFigures, attach_figures
from eft_server.engine.worker.measures.scoring import Scores
from eft_server.engine.worker.member_prompts import MemberAttention, Step, read
from eft_server.engine.worker.v1.drafting import MemberProposer


class CoefficientRunner(WholeWindows, GPUModelRunner):
    """vLLM's runner, which passes each token its request's vector, and each member its tokens.

    Shape suffixes: T tokens, R requests, S sampled tokens of each (padded with −1), W numbers of a vector.
    """

    _rows_R: list[int]
    _sampled_RS: torch.Tensor
    _scheduled_R: np.ndarray
    _reporting: ReportingRows | None = None
    batch: Sequence[EngineRequest] = ()
    """The requests of the current step, in the order of the batch."""

    def use_member_draft(self) -> None:
        """Change the class of vLLM's proposer if the draft is a member, before it loads anything."""
        drafting = Manifest.from_hf(self.model_config.hf_config).draft
        if drafting is not None:
            drafter = retype(self.drafter, MemberProposer)
            drafter.runner, drafter.member = self, drafting

    @override
    def _prepare_inputs(self, scheduler_output: SchedulerOutput, num_scheduled_tokens: np.ndarray) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        drafts = scheduler_output.scheduled_spec_decode_tokens
        self._rows_R = [1 + len(drafts.get(req_id, ())) for req_id in self.input_batch.req_ids]
        self._scheduled_R = num_scheduled_tokens
        self._fill(num_scheduled_tokens)
        self._prepare_report()
        return prepared

    def _prepare_report(self) -> None:
        """Tell the composite which rows of this step's samples it is to compare with the base's."""
        self._reporting = None
        if any(asked.reporting for asked in self.batch):
            kept_R = ~self.discard_request_mask.np[: len(self.batch)]
            reporting_R = np.array([asked.reporting for asked in self.batch]) & kept_R
            self._reporting = ReportingRows.of(self.input_batch.req_ids, reporting_R, self._rows_R)
        blender: Any = self.get_model().blender
        blender.reporting_R = self._reporting and torch.from_numpy(self._reporting.rows_R)

    @override
    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        updated = super()._update_states(scheduler_output)
        for req_id in scheduler_output.finished_req_ids:
            for of_requests in (self._asked, self._scores, self._states):
                of_requests.pop(req_id, None)
        for request in scheduler_output.scheduled_new_reqs:
            params = request.sampling_params
            asked = EngineRequest.read(params.extra_args if params else None, self._manifest)
            self._asked[request.req_id] = asked
            if asked.scoring is not None:
                self._scores[request.req_id] = Scores(asked.scoring, self.device)
                self.num_prompt_logprobs.pop(request.req_id, None)
                if asked.scoring.activations is not None:
                    self._states[request.req_id] = States(asked.scoring, self._manifest.widths, self.device)
        self.batch = [self._asked[req_id] for req_id in self.input_batch.req_ids]
        return updated

    @cached_property
    def _manifest(self) -> Manifest:
        return Manifest.from_hf(self.model_config.hf_config)

    @cached_property
    def _asked(self) -> dict[str, EngineRequest]:
        """The data of unfinished requests."""
        return {}

    @cached_property
    def _scores(self) -> dict[str, Scores]:
        """The scores of the requests to be scored."""
        return {}

    @cached_property
    def _states(self) -> dict[str, States]:
        """The activations of the requests that ask for some."""
        return {}

    @override
    def _get_prompt_logprobs_dict(
        self, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]
    ) -> dict[str, LogprobsTensors | None]:
        """As in vLLM, plus the scores of requests whose prefill is complete."""
        found = super()._get_prompt_logprobs_dict(hidden_states, num_scheduled_tokens)
        for row, req_id in enumerate(self.input_batch.req_ids):
            scores = self._scores.get(req_id)
            if scores is None:
                continue
            start = int(self.query_start_loc.np[row])
            hidden_TX = hidden_states[start : start + num_scheduled_tokens[req_id]]
            if scores.read(self.get_model(), hidden_TX, self.requests[req_id].num_computed_tokens):
                ids, values, ranks, *_ = scores.tensors()
                found[req_id] = LogprobsTensors(ids.cpu(), values.cpu(), ranks.cpu())
        return found

    @cached_property
    def member_attention(self) -> dict[str, MemberAttention]:
        """The members' attention layers, by name, in the order of the coefficients."""
        model: Any = self.get_model()
        return {
            name: MemberAttention(f"members.{name}.", self.attn_groups, config)
            for name, config in model.configs.items()
        }

    def _parts(self, input_ids: torch.Tensor, positions: torch.Tensor) -> dict[str, Any]:
        """The tokens that each member reads in this step, its idle rows, and the activations that are wanted of it."""
        first, states_R = self.batch[0], self._states_R
        alike = all(asked.prompts is None and asked.members == first.members for asked in self.batch)
        if alike and not states_R:
            names = enumerate(self.member_attention)
            return {"parts": {name: None for place, name in names if place in first.members}, "idle": {}}
        step = self._step(input_ids, positions)
        parts, idle = read(step, self.member_attention)
        return {"parts": parts, "idle": idle, "watched": windows(states_R, step)}

    @property
    def _states_R(self) -> dict[int, States]:
        """The activations that this step's requests ask for, by their place in the batch."""
        if not self._states:
            return {}
        own = ((row, self._states.get(req_id)) for row, req_id in enumerate(self.input_batch.req_ids))
        return {row: states for row, states in own if states is not None}

    def _step(self, input_ids: torch.Tensor, positions: torch.Tensor) -> Step:
        count = self.input_batch.num_reqs
        tables = self.input_batch.block_table.block_tables
        computed_R = self.input_batch.num_computed_tokens_cpu[:count].astype(np.int64)
        lengths_R = np.array([asked.length for asked in self.batch])
        return Step(
            np.array([asked.needed for asked in self.batch]),
            np.array([asked.offsets for asked in self.batch], dtype=np.int64),
            computed_R < lengths_R,
            {row: asked.prompts for row, asked in enumerate(self.batch) if asked.prompts is not None},
            computed_R,
            self._scheduled_R,
            input_ids,
            positions,
            self.seq_lens[:count],
            [table.get_device_tensor(count) for table in tables],
            [table.block_size for table in tables],
        )

    def _fill(self, num_scheduled_tokens: np.ndarray) -> None:
        vectors_RW = np.array([asked.vector for asked in self.batch], dtype=np.float32)
        scheduled_TW = np.repeat(vectors_RW, num_scheduled_tokens, axis=0)
        self._buffer_TW[: len(scheduled_TW)].copy_(torch.from_numpy(scheduled_TW))

    @cached_property
    def _buffer_TW(self) -> torch.Tensor:
        shape = (self.max_num_tokens, self._manifest.width)
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    @override
    def _dummy_run(self, *args: Any, **options: Any) -> Any:
        """As in vLLM: steps without requests, for profiling and to stay in step with other replicas."""
        model: Any = self.get_model()
        with model.without_requests():
            return super()._dummy_run(*args, **options)

    @override
    def _model_forward(
        self,
        input_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> Any:
        assert input_ids is not None
        assert positions is not None
        parts = self._parts(input_ids, positions)
        return super()._model_forward(
            input_ids,
            positions,
            intermediate_tensors,
            inputs_embeds,
            **model_kwargs,
            vector_TW=self._buffer_TW[: len(input_ids)],  # type: ignore[arg-type]
            **parts,
        )

    @override
    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:  # type: ignore[override]
        """As in vLLM, but do not advance the rngs of rows that are discarded.

        Also report on the others, and send the activations of requests whose texts have been read.
        """
        ended = self._ended_states()
        if self.input_batch.generators:
            with self._without_discarded_rngs():
                output: Any = super().sample_tokens(grammar_output)  # type: ignore[type-var]
        else:
            output = super().sample_tokens(grammar_output)  # type: ignore[type-var]
        model: Any = self.get_model()
        figures = None if self._reporting is None else model.blender.take_figures()
        if figures is not None or ended:
            sampled_R = [len(tokens) for tokens in output.sampled_token_ids]
            attach_figures(output, StepFigures(figures, self._reporting, ended).tolists(sampled_R))
        return output

    def _ended_states(self) -> dict[str, torch.Tensor | np.ndarray]:
        """The activations of the requests whose text this step has read to its end."""
        computed_R = self.input_batch.num_computed_tokens_cpu
        return {
            self.input_batch.req_ids[row]: states.array()
            for row, states in self._states_R.items()
            if states.ends(int(computed_R[row]), int(self._scheduled_R[row]))
        }

    @contextmanager
    def _without_discarded_rngs(self) -> Iterator[None]:
        """Do not use a seeded request's rng in steps whose sample vLLM discards (chunked prefill).

        vLLM 0.32 rewinds the rng afterwards, which PyTorch supports only on CUDA: on the CPU it raises "CPU Generator
        does not use offset", and the engine dies. Not using it has the same effect.
        """
        generators = self.input_batch.generators
        discarded = np.flatnonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])
        held = {int(row): generators.pop(int(row)) for row in discarded if int(row) in generators}
        try:
            yield
        finally:
            generators.update(held)

    @override
    def _bookkeeping_sync(
        self, scheduler_output: SchedulerOutput, sampler_output: SamplerOutput, *args: Any, **options: Any
    ) -> Any:
        self._sampled_RS = sampler_output.sampled_token_ids
        return super()._bookkeeping_sync(scheduler_output, sampler_output, *args, **options)

    @override
    def _get_nans_in_logits(self, logits: torch.Tensor | None) -> dict[str, int]:
        """Count the NaN rows of each request from which a token was sampled.

        vLLM assumes one row per request. With drafts there are more, and the rows after a rejected draft must not
        count: a draft may be a token that the family would never produce.
        """
        if logits is None or not len(logits) or not (broken_R := is_broken(logits)).any():
            return {}
        rows_R = broken_R.split(self._rows_R)
        sampled_R = (self._sampled_RS >= 0).sum(dim=-1).tolist()
        counts = [int(rows[:used].sum()) for rows, used in zip(rows_R, sampled_R, strict=True)]
        return dict(zip(self.input_batch.req_ids, counts, strict=True))


class EftCPUModelRunner(CoefficientRunner, CPUModelRunner):
    """The runner of a CPU worker."""

    @override
    def _init_kv_zero_meta(self) -> None:
        """Do nothing: blocks are cleared by index."""

    @override
    def _zero_block_ids(self, block_ids: list[int]) -> None:
        """Clear blocks in every layer. vLLM skips groups whose layers differ in shape, as a family's do."""
        blocks = torch.tensor(block_ids)
        for group in self.kv_cache_config.kv_cache_groups:
            for layer in group.layer_names:
                self.compilation_config.static_forward_context[layer].kv_cache.index_fill_(0, blocks, 0)


class EftWorker(Worker):
    """Our additions to vLLM's worker, for either model runner."""

    @override
    def init_device(self) -> None:
        """Change the class of vLLM's runner: its worker fixes the class, and a second runner would double buffers."""
        super().init_device()
        runner: Any = self.model_runner
        if type(runner) is CPUModelRunner:
            runner = retype(runner, EftCPUModelRunner)
        elif isinstance(runner, GPUModelRunner):
            raise RuntimeError(
                "GPUs need vLLM's Model Runner V2, but this engine has V1: unset VLLM_USE_V2_MODEL_RUNNER, and "
                "leave out options that V2 does not support according to vLLM's log above"
            )
        else:
            from eft_server.engine.worker.v2.runner import retyped

            runner = retype(runner, retyped(type(runner)))
        runner.use_member_draft()

    @override
    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Also prepare to clear blocks, as vLLM does for caches that it knows to need it."""
        super().initialize_from_config(kv_cache_config)
        self.model_runner._init_kv_zero_meta()


class EftCPUWorker(EftWorker, CPUWorker):
    """The worker of the CPU build."""

    @override
    def init_device(self) -> None:
        """First work around a faulty kernel: vLLM's registry fails after numba, which n-gram drafts import."""
        register_cpu_kernels()
        super().init_device()


class EftGPUWorker(EftWorker):
    """The worker of a GPU."""
