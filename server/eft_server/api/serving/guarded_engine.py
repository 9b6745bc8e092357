"""An engine that is protected from too many requests, and from tokens that a member cannot read or generate."""

from collections.abc import AsyncGenerator, Collection, Sequence
from copy import copy
from http import HTTPStatus
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.exceptions import GenerationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.errors import PROMPT
from eft_server.api.edge.rooms import Room
from eft_server.api.serving.current import current
from eft_server.api.serving.renderer import MEMBER_PROMPTS
from eft_server.engine.message import KEY, EngineRequest, Manifest, extra_args
from eft_server.engine.worker.columns import counting, is_filtered
from eft_server.errors import shown

__all__ = ["Guarded"]


class Guarded:
    """Checks all requests to the engine, and holds them back while there are too many.

    Everything else is delegated to the engine. An HTTP request may become hundreds of sequences; each that is held back
    costs no more than a coroutine.

    vLLM lets a prompt hold every id that the tokenizer knows, but tokenizers may have more tokens than models have
    embedding rows: tokens that were added and never trained.

    Args:
        engine: The engine.
        room: Limits sequences and their tokens, those of the prompt and those that may follow.
        salted: Whether each API key has separate cached prompts: usage and response times show whether a prompt is in
            the cache, which other clients must not learn.
    """

    def __init__(self, engine: EngineClient, room: Room, *, salted: bool) -> None:
        self._engine = engine
        self._room = room
        self._salted = salted
        self._manifest = Manifest.from_hf(engine.model_config.hf_config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generate, as the engine does.

        Raises:
            ApiError: A member that the request needs has no row for a token of its prompt, or none of the allowed
                tokens is shared by all members.
            RuntimeError: The request has lost its coefficients or per-member prompts on its way through vLLM.
            GenerationError: While it generates: none of the allowed tokens was left to sample.
        """
        if KEY not in (sampling_params.extra_args or {}):  # Scores set it themselves.
            prompt, sampling_params = _weighed(prompt, sampling_params)
        request = EngineRequest.read(sampling_params.extra_args, self._manifest)
        self._require_rows(request, prompt["prompt_token_ids"])
        allowed = frozenset(sampling_params.allowed_token_ids or ())
        self._require_choice(request, allowed)
        key, sequences = current().key, sampling_params.n
        if (report := current().report) is not None:
            report.choices += sequences
        each = len(prompt["prompt_token_ids"]) + (sampling_params.max_tokens or 0)
        if self._salted:
            salt = f"{key}:{prompt.get('cache_salt') or ''}"
            prompt = {**prompt, "cache_salt": salt}
        outputs = self._engine.generate(prompt, sampling_params, request_id, **options)
        return self._in_turn(outputs, allowed, key, sequences, sequences * each)

    async def _in_turn(
        self,
        outputs: AsyncGenerator[RequestOutput, None],
        allowed: frozenset[int],
        key: str,
        sequences: int,
        tokens: int,
    ) -> AsyncGenerator[RequestOutput, None]:
        try:
            async with self._room.take(key, sequences, tokens):
                async for output in outputs:
                    _require_allowed(output, allowed)
                    yield output
        finally:
            await outputs.aclose()

    def _require_rows(self, request: EngineRequest, shared_prompt: Sequence[int]) -> None:
        highest = max(shared_prompt, default=0)
        for place, (name, rows) in enumerate(zip(self._manifest.names, self._manifest.rows, strict=True)):
            if not request.reading[place]:
                continue
            own = request.prompts.tokens_M[place] if request.prompts is not None else None
            last = highest if own is None else int(own.max(initial=0))
            if last >= rows:
                known = self._engine.renderer.get_tokenizer().convert_ids_to_tokens([last])[0]
                token = f" ({shown(known)})" if known else ""
                message = (
                    f"the prompt holds the token {last}{token}, for which the member {name!r} has no row; "
                    f"allowed: 0 to {rows - 1}."
                )
                raise ApiError(message, param=PROMPT, code="invalid_value")

    def _require_choice(self, request: EngineRequest, allowed: Collection[int]) -> None:
        if not allowed:
            return
        size = self._engine.model_config.get_vocab_size()
        if max(allowed) >= size:
            message = f"allowed_token_ids: {max(allowed)} is not a token id; allowed: 0 to {size - 1}."
            raise ApiError(message, param="allowed_token_ids", code="invalid_value")
        vector = request.vector
        plain_base = vector[0] == 1 and counting(vector)[1:] == (False,) * (len(self._manifest.names) - 1)
        if plain_base and not is_filtered(vector):
            return
        if all(any(start <= i < stop for start, stop in self._manifest.unshared) for i in allowed):
            message = (
                "allowed_token_ids: none of these can be generated, since not all members share them; "
                "only the plain base can."
            )
            raise ApiError(message, param="allowed_token_ids", code="invalid_value")


def _weighed(prompt: Any, sampling_params: SamplingParams) -> tuple[Any, SamplingParams]:
    """The engine's prompt without per-member prompts, and parameters with those and the coefficients."""
    request, own = current(), dict(prompt)
    prompts = own.pop(MEMBER_PROMPTS, None)
    if request.resolved is None or (request.rendered is None) != (prompts is None):
        raise RuntimeError("a request reached the engine without its coefficients or per-member prompts")
    weighed = copy(sampling_params)
    weighed.extra_args = (weighed.extra_args or {}) | extra_args(
        request.resolved.coefficients.numbers, prompts, report=request.resolved.report
    )
    return own, weighed


class _NothingLeftError(GenerationError):
    """vLLM's handlers report this type without a traceback, in streams as well."""

    def __init__(self) -> None:
        super().__init__(
            "allowed_token_ids: none of these is left to sample; bad_words or min_tokens rule them out."
        )
        self.status_code = HTTPStatus.BAD_REQUEST


def _require_allowed(output: RequestOutput, allowed: frozenset[int]) -> None:
    """Refuse tokens that are not allowed: if a request rules out all its allowed tokens, vLLM still samples one."""
    if allowed and not all(allowed.issuperset(choice.token_ids) for choice in output.outputs):
        raise _NothingLeftError
