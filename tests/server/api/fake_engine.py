"""An engine without a model: vLLM's configuration, renderer and input checks are real, the tokens are scripted."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import numpy as np
from vllm import AsyncEngineArgs
from vllm.config import VllmConfig
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers import renderer_from_config
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics

from eft_server.engine.activations import problem_as_array
from eft_server.engine.message import KEY, Manifest, MemberWeights, Scoring, scoring_of
from eft_server.family.family import BASE

from .served import family

SHAPES = ((3, 6), (2, 4), (2, 4), (2, 4))
"""Layers and hidden sizes of the members."""

TEXT = " Hello world!"


class FakeEngine:
    """Answers every request with TEXT, a token at a time, and remembers what it was asked.

    Attributes:
        script: What it answers instead of TEXT, once and whole, special tokens included; None for TEXT.
        cut: Whether a script was cut off by the number of tokens.
        stops: Whether it ended at the first string at which the request wanted that.
        prompts: The prompts of every request as text, in order.
        salts: What kept every request's cached prompt apart, in order.
        asked: The sampling parameters of every request, in order.
        aborted: The ids of the requests whose caller went away.
        pause_s: How long a token takes.
        fail_at: The token at which every request ends with finish_reason "error", if one is set.
        speculation: What every choice says of its drafts when it is done, if anything.
        most_running: How many requests were under way at the same time.
        heeds: Whether it samples none but allowed tokens; vLLM does not where nothing is left of them.
        unlikely: Log-probabilities of tokens to be scored, in place of the usual ones.
        log_rest: What is left to all but the likeliest token, in every statistic.
        problem: Why there are no activations, if there is a reason.
        last_state: The last number of all activations.
        raises: What `generate` raises instead of answering, if anything.
    """

    def __init__(self, checkpoint: Path, config: VllmConfig | None = None) -> None:
        arguments = AsyncEngineArgs(
            model=str(checkpoint),
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            structured_outputs_config={"backend": "xgrammar"},
            hf_overrides={KEY: _manifest(checkpoint).to_hf()},
        )
        self.vllm_config = config or arguments.create_engine_config()
        self.model_config = self.vllm_config.model_config
        self.renderer = renderer_from_config(self.vllm_config)
        self.input_processor = InputProcessor(self.vllm_config, self.renderer)
        self.reset()

    def reset(self) -> None:
        """Forget everything that a test has set or caused."""
        self.script: str | None = None
        self.cut = self.stops = False
        self.heeds = True
        self.prompts: list[str] = []
        self.salts: list[str | None] = []
        self.asked: list[SamplingParams] = []
        self.aborted: list[str] = []
        self.pause_s = 0.0
        self.fail_at: int | None = None
        self.speculation: RequestSpecDecodeMetrics | None = None
        self.unlikely: dict[int, float] = {}
        self.log_rest = -0.75
        self.problem: str | None = None
        self.last_state = 0.5
        self.running = self.most_running = 0
        self.raises: Exception | None = None
        self.dead = False

    @property
    def errored(self) -> bool:
        return self.dead

    @property
    def dead_error(self) -> Exception:
        return EngineDeadError()

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Admit everything, as vLLM does by default."""

    def shutdown(self, timeout: float | None = None) -> None:
        """End, as vLLM's engine does: it is dead afterwards."""
        self.dead = True

    async def check_health(self) -> None:
        if self.dead:
            raise EngineDeadError

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        self.input_processor.process_inputs(
            request_id, prompt, sampling_params, supported_tasks=("generate",)
        )
        if self.raises is not None:
            raise self.raises
        self.asked.append(sampling_params)
        self.prompts.append(self.renderer.get_tokenizer().decode(prompt["prompt_token_ids"]))
        self.salts.append(prompt.get("cache_salt"))
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            async for output in self._outputs(prompt["prompt_token_ids"], sampling_params, request_id):
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            raise
        finally:
            self.running -= 1

    async def _outputs(
        self, prompt_ids: list[int], params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        tokenizer = self.renderer.get_tokenizer()
        token_ids = tokenizer.encode(self.script or TEXT, add_special_tokens=False)
        if params.allowed_token_ids and self.heeds:
            token_ids = params.allowed_token_ids
        if self.script is None:
            token_ids = [token_ids[i % len(token_ids)] for i in range(params.max_tokens or len(token_ids))]
        whole = params.output_kind is RequestOutputKind.FINAL_ONLY
        for count in range(1, len(token_ids) + 1):
            await asyncio.sleep(self.pause_s)
            failed = self.fail_at == count
            finished = failed or count == len(token_ids)
            if whole and not finished:
                continue
            span = token_ids[:count] if whole else token_ids[count - 1 : count]
            choices = [self._choice(i, span, params, finished, failed) for i in range(params.n)]
            if "eft_report" in (params.extra_args or {}) and finished:
                for choice in choices:  # vLLM gives them with the last token, for all of them.
                    choice.routed_experts = np.array([[choice.index % 2, 0.25]] * count, dtype=np.float32)
            scoring = scoring_of(params.extra_args, len(SHAPES))
            if scoring is not None and scoring.activations is not None:
                choices[0].routed_experts = self._activations(scoring)
            prompt_logprobs = None
            if "eft_scoring" in (params.extra_args or {}):
                prompt_logprobs = self._scores(params.extra_args["eft_scoring"])
            elif params.prompt_logprobs is not None:
                prompt_logprobs = [None, *(self._logprobs(t, params.prompt_logprobs) for t in prompt_ids[1:])]
            yield RequestOutput(request_id, None, list(prompt_ids), prompt_logprobs, choices, finished)
            if finished:
                return

    def _choice(
        self, index: int, span: list[int], params: SamplingParams, finished: bool, failed: bool
    ) -> CompletionOutput:
        logprobs = None
        if params.logprobs is not None:
            logprobs = [self._logprobs(token_id, params.logprobs) for token_id in span]
        last = "length" if self.script is None or self.cut else "stop"
        reason = "error" if failed else last if finished else None
        text = self.renderer.get_tokenizer().decode(span)
        speculation = self.speculation if finished else None
        stop = params.stop[0] if params.stop and reason == "stop" and self.stops else None
        return CompletionOutput(
            index,
            text,
            span,
            0.0,
            logprobs,
            finish_reason=reason,
            stop_reason=stop,
            spec_decode_metrics=speculation,
        )

    def _scores(self, asked: dict[str, Any]) -> FlatLogprobs:
        """Under a vector of these numbers, a token's log-probability is their sum's, less a tenth of its id."""
        count = len(asked["vectors"]) * len(asked["targets"])
        own = [
            self.unlikely.get(token, -token / 10 - sum(place * number for place, number in enumerate(vector)))
            for vector in asked["vectors"]
            for token in asked["targets"]
        ]
        statistics = [value for value in (2.5, 0.125, self.log_rest) for _ in range(count)]
        values = [*own, *[-0.25] * count, *(statistics if asked.get("statistics") else [])]
        flat = FlatLogprobs()
        for value, rank in zip(values, [*range(1, count + 1), *[1] * (len(values) - count)], strict=True):
            flat.append_fast([0], [value], iter([rank]), [None])
        return flat

    def _activations(self, scoring: Scoring) -> np.ndarray:
        """Every number is its place among all."""
        assert scoring.activations is not None
        if self.problem is not None:
            return problem_as_array(self.problem)
        count = scoring.activations.count(len(scoring.targets), [width for _, width in SHAPES])
        numbers = np.arange(count, dtype=np.float32).reshape(1, -1)
        numbers[0, -1] = self.last_state
        return numbers

    def _logprobs(self, token_id: int, most: int) -> dict[int, Logprob]:
        others = [other for other in range(10, 10 + most) if other != token_id]
        decode = self.renderer.get_tokenizer().decode
        ranked = [token_id, *others][: max(most, 1)]
        return {t: Logprob(-0.5 * rank - 0.25, rank + 1, decode([t])) for rank, t in enumerate(ranked)}


def _manifest(checkpoint: Path) -> Manifest:
    """The test family's; `harmless` has fewer ids than the others, of which the last is nobody else's."""
    rows = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    members = [name for name in family().family.names if name != BASE]
    return Manifest(
        ("LlamaForCausalLM",),
        tuple(MemberWeights(name, "unread") for name in members),
        ((rows - 1, rows),),
        (1.0, *(0.0,) * (2 * len(members) + 3)),
        (rows, rows, rows, rows - 1),
        shapes=SHAPES,
    )
