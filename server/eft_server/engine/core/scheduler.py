"""vLLM's scheduler, which fails requests whose logits are not finite while the rest of the batch goes on."""

from typing import Any

from typing_extensions import override
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from eft_server.engine.core.block_hashes import engine_request_of, note, use_member_blocks
from eft_server.engine.core.grammars import limit_grammars
from eft_server.engine.core.json_grammars import write_json
from eft_server.engine.end_with_parent import end_with_parent
from eft_server.engine.message import Manifest, Prompts
from eft_server.engine.patches import overwrite
from eft_server.engine.worker.measures.reporting import pass_figures_on
from eft_server.engine.worker.member_prompts import MemberPromptHasher


class EftScheduler(Scheduler):
    """Ends a request with `finish_reason` "error" in the step in which the runner counts a NaN in its logits.

    The blend makes a row NaN throughout if any of it is NaN or infinite. A token sampled from such a row is dropped, as
    vLLM drops the tokens of an aborted request.

    NaNs in the KV cache of such a request must not reach the next request with its blocks: attention multiplies masked
    positions by zero, and zero times NaN is NaN. So every block is cleared when it is allocated, as vLLM already does
    for caches of mixed precision.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        overwrite(self, "needs_kv_cache_zeroing", True)
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            overwrite(manager, "_record_new_block_ids", True)
        use_member_blocks(self.kv_cache_manager)
        self._manifest = Manifest.from_hf(self.vllm_config.model_config.hf_config)

    @override
    def add_request(self, request: Request) -> None:
        """Add a request; with per-member prompts, it shares only cache blocks that agree for all members.

        A request to be scored shares only the blocks before the scored tokens, whose rows are needed.
        """
        asked = note(request, self._manifest)
        prompts, first = asked.prompts, asked.scoring.first if asked.scoring else None
        if (prompts is not None or first is not None) and request._block_hasher is not None:
            hash_function = get_hash_fn_by_name(self.cache_config.prefix_caching_hash_algo)
            hasher = MemberPromptHasher(
                prompts or Prompts(()), self.hash_block_size, hash_function, private_from=first
            )
            overwrite(request, "_block_hasher", hasher)
            overwrite(request, "block_hashes", [])
            request.update_block_hashes()
        super().add_request(request)

    @override
    def _preempt_request(self, request: Request, *args: Any, **options: Any) -> None:
        """Preempt; scored tokens are then read again from the start, since cached blocks hold no rows."""
        super()._preempt_request(request, *args, **options)
        if engine_request_of(request).scoring is not None:
            overwrite(request, "skip_reading_prefix_cache", True)

    @override
    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Finish the broken requests, then handle the others as vLLM does, and pass on the figures of reports."""
        counts = model_runner_output.num_nans_in_logits or {}
        broken = [req_id for req_id, count in counts.items() if count and req_id in self.requests]
        failed = self.finish_requests(broken, RequestStatus.FINISHED_ERROR) if broken else []
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for batch in outputs.values():
            pass_figures_on(model_runner_output, batch.outputs)
        for request in failed:
            batch = outputs.setdefault(request.client_index, EngineCoreOutputs())
            batch.outputs.append(_failure(request))
        return outputs


def _failure(request: Request) -> EngineCoreOutput:
    return EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=[],
        finish_reason=request.get_finished_reason(),
        events=request.take_events(),
        trace_headers=request.trace_headers,
    )


class EftAsyncScheduler(EftScheduler, AsyncScheduler):
    """The same for engines that schedule a step before they have the tokens of the last one."""


def make_scheduler(**options: Any) -> Scheduler:
    """Build the synchronous or asynchronous scheduler, as vLLM's settings choose; named in `scheduler_cls`.

    vLLM calls this only in the engine's process, so our code for that process starts here.
    """
    end_with_parent()
    write_json(options["structured_output_manager"])
    limit_grammars(options["structured_output_manager"])
    ahead = options["vllm_config"].scheduler_config.async_scheduling
    return (EftAsyncScheduler if ahead else EftScheduler)(**options)
