"""Completions with ``echo``, which repeat their prompt: corrects vLLM's omissions and counts.

vLLM omits the prompt's text if token ids are requested as well; and if no token is to be generated, it generates,
counts and returns one.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse

from eft_server.api.serving.events import event_of, payload_of

__all__ = ["Echoes"]


class Echoes:
    """Corrects vLLM's completions for requests with ``echo``."""

    renderer: Any
    _extract_prompt_text: Any

    def request_output_to_completion_response(
        self, final_res_batch: Sequence[Any], request: CompletionRequest, *args: Any, **options: Any
    ) -> CompletionResponse:
        """The whole answer."""
        answer: CompletionResponse = super().request_output_to_completion_response(  # type: ignore[misc]
            final_res_batch, request, *args, **options
        )
        if request.echo and request.return_token_ids:
            results = [result for result in final_res_batch for _ in result.outputs]
            for choice, result in zip(answer.choices, results, strict=True):
                choice.text = self._prompt_text(result.prompt, result.prompt_token_ids) + choice.text
        if request.echo and request.prompt_logprobs is None:
            for choice in answer.choices:
                choice.prompt_logprobs = None  # The same as the first of logprobs.
        if request.echo and request.max_tokens == 0:
            for choice in answer.choices:
                choice.finish_reason, choice.stop_reason = "length", None
                choice.token_ids = [] if request.return_token_ids else None
            answer.usage.completion_tokens = 0
            answer.usage.total_tokens = answer.usage.prompt_tokens
        return answer

    async def completion_stream_generator(
        self,
        request: CompletionRequest,
        engine_inputs: Sequence[Any],
        result_generator: AsyncIterator[Any],
        *args: Any,
        **options: Any,
    ) -> AsyncGenerator[str, None]:
        """The answer as a stream of events."""
        events = super().completion_stream_generator(  # type: ignore[misc]
            request, engine_inputs, result_generator, *args, **options
        )
        begun: set[int] = set()
        wanted = request.echo and (request.return_token_ids or request.max_tokens == 0)
        try:
            async for event in events:
                if not wanted or not event.startswith("data: {"):
                    yield event
                    continue
                payload = payload_of(event)
                self._put_right(payload, request, engine_inputs, begun)
                yield event_of(payload)
        finally:
            await events.aclose()

    def _put_right(
        self,
        payload: dict[str, Any],
        request: CompletionRequest,
        engine_inputs: Sequence[Any],
        begun: set[int],
    ) -> None:
        for choice in payload.get("choices", ()):
            if request.return_token_ids and choice["index"] not in begun:
                begun.add(choice["index"])
                prompt = engine_inputs[choice["index"] // (request.n or 1)]
                text = self._prompt_text(self._extract_prompt_text(prompt), choice["prompt_token_ids"])
                choice["text"] = text + choice["text"]
            if request.max_tokens == 0:
                choice |= {"token_ids": [] if request.return_token_ids else None, "stop_reason": None}
                if not request.return_token_ids:
                    choice.pop("prompt_token_ids", None)
                choice["finish_reason"] = choice["finish_reason"] and "length"
        if request.max_tokens == 0 and payload.get("usage"):
            usage = payload["usage"]
            usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}

    def _prompt_text(self, text: str | None, token_ids: Sequence[int]) -> str:
        """The prompt's text; vLLM has none if the prompt came as token ids and they are requested."""
        return text if text is not None else self.renderer.get_tokenizer().decode(token_ids)
