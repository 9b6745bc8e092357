"""vLLM's scheduler, failing the requests whose logits are not finite while the batch goes on."""

from typing import Any

from typing_extensions import override
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from eft_server.engine.core.block_hashes import know_members, note, noted_of
from eft_server.engine.core.grammars import limit_grammars
from eft_server.engine.core.json_grammars import write_json
from eft_server.engine.end_with_parent import end_with_parent
from eft_server.engine.message import Manifest, Prompts
from eft_server.engine.patches import overwrite
from eft_server.engine.worker.member_prompts import ApartHasher


class EftScheduler(Scheduler):
    """Ends a request with `finish_reason` "error" in the step in which the runner counts a NaN in its logits.

    The blend makes a row NaN throughout when any of it is NaN or infinite. What was sampled from such a row is
    dropped, as vLLM drops what a request samples after it was aborted.

    What such a request left in the KV cache must not reach whoever gets its blocks next: attention multiplies
    masked positions by zero, and zero times NaN is NaN. So every block is cleared when it is handed out, which
    vLLM knows how to do and does for caches of mixed precision.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        overwrite(self, "needs_kv_cache_zeroing", True)
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            overwrite(manager, "_record_new_block_ids", True)
        know_members(self.kv_cache_manager)
        self._manifest = Manifest.from_hf(self.vllm_config.model_config.hf_config)

    @override
    def add_request(self, request: Request) -> None:
        """Let requests whose members read prompts of their own share cache blocks that are the same for all.

        And those to be scored the blocks in front of what is scored: of that, the rows are needed.
        """
        asked = note(request, self._manifest)
        prompts, first = asked.prompts, asked.scoring.first if asked.scoring else None
        if (prompts is not None or first is not None) and request._block_hasher is not None:
            hash_function = get_hash_fn_by_name(self.cache_config.prefix_caching_hash_algo)
            hasher = ApartHasher(prompts or Prompts(()), self.hash_block_size, hash_function, own_from=first)
            overwrite(request, "_block_hasher", hasher)
            overwrite(request, "block_hashes", [])
            request.update_block_hashes()
        super().add_request(request)

    @override
    def _preempt_request(self, request: Request, *args: Any, **options: Any) -> None:
        """Have what is to be scored read again from its start: its own blocks hold no rows."""
        super()._preempt_request(request, *args, **options)
        if noted_of(request).scoring is not None:
            overwrite(request, "skip_reading_prefix_cache", True)

    @override
    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Finish the broken requests, then do what vLLM does for the others."""
        counts = model_runner_output.num_nans_in_logits or {}
        broken = [req_id for req_id, count in counts.items() if count and req_id in self.requests]
        failed = self.finish_requests(broken, RequestStatus.FINISHED_ERROR) if broken else []
        outputs = super().update_from_output(scheduler_output, model_runner_output)
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
    """The same for engines that schedule a step before they have the last one's tokens."""


def make_scheduler(**options: Any) -> Scheduler:
    """Build the scheduler that vLLM's settings ask for, as vLLM would; named in `scheduler_cls`.

    vLLM calls this in the engine's process alone, so what that process needs of ours starts here.
    """
    end_with_parent()
    write_json(options["structured_output_manager"])
    limit_grammars(options["structured_output_manager"])
    ahead = options["vllm_config"].scheduler_config.async_scheduling
    return (EftAsyncScheduler if ahead else EftScheduler)(**options)
