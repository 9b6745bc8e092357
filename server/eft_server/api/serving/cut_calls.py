"""Truncated tool calls: a whole answer holds them as far as they were generated, as a stream does.

Many of vLLM's parsers match a whole text with one expression, which fails on a call without an end: its raw markup then
becomes content. Here such a text is parsed again as a stream.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage, FunctionCall, ToolCall
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.responses.utils import build_response_output_items
from vllm.parser.abstract_parser import DelegatingParser, Parser
from vllm.renderers.chat_utils import make_tool_call_id

from eft_server.api.serving.events import event_of, payload_of

__all__ = ["CutChats", "CutResponses"]

_MOST_PIECES = 512
"""Limits the number of pieces, since some parsers start over with each one."""

_PLAIN = "Good morning."


class CutChats:
    """Corrects truncated answers of vLLM's chats."""

    parser_cls: type[Parser] | None
    renderer: Any

    async def chat_completion_full_generator(
        self, request: Any, result_generator: AsyncIterator[Any], *args: Any, **options: Any
    ) -> Any:
        """The whole answer; its finish reason is "length" if that is why it ended, even with calls."""
        cut: dict[int, str] = {}
        answer = await super().chat_completion_full_generator(  # type: ignore[misc]
            request, _noting(result_generator, cut), *args, **options
        )
        for choice in answer.choices if isinstance(answer, ChatCompletionResponse) else ():
            if choice.index in cut:
                self._put_right(choice, request, cut[choice.index])
        return answer

    def _put_right(self, choice: Any, request: Any, reason: str) -> None:
        message = choice.message
        if not message.tool_calls and not request.echo:
            calls, message.content = _calls_in(message.content, request, self.parser_cls, self.renderer)
            message.tool_calls = [
                ToolCall(id=call.id or make_tool_call_id(), function=call) for call in calls
            ]
        broken = not all(_is_whole(call.function.arguments) for call in message.tool_calls)
        if reason == "length" or broken or not message.tool_calls:
            choice.finish_reason = reason

    def chat_completion_stream_generator(
        self, request: Any, result_generator: AsyncIterator[Any], *args: Any, **options: Any
    ) -> AsyncGenerator[str, None]:
        """The answer as a stream of events, with the same finish reason as the whole one."""
        stream = super().chat_completion_stream_generator  # type: ignore[misc]
        if not (request.tools and request.stop):
            events: AsyncGenerator[str, None] = stream(request, result_generator, *args, **options)
            return events
        cut: dict[int, str] = {}
        return _ended_right(stream(request, _noting(result_generator, cut), *args, **options), cut)


class CutResponses:
    """Corrects truncated answers of vLLM's responses."""

    parser: type[Parser] | None
    renderer: Any

    def _make_response_output_items(
        self, request: Any, final_output: Any, *args: Any, **options: Any
    ) -> list[Any]:
        items: list[Any] = super()._make_response_output_items(  # type: ignore[misc]
            request, final_output, *args, **options
        )
        if not _is_cut(final_output) or not items or items[-1].type != "message":
            return items
        [said] = items[-1].content or [None]
        calls, left = _calls_in(said and said.text, request, self.parser, self.renderer)
        if said is None or left == said.text:
            return items
        return items[:-1] + build_response_output_items(None, left, calls, said.logprobs, request.tools)


def _calls_in(
    text: str | None, request: Any, parser: type[Parser] | None, renderer: Any
) -> tuple[list[FunctionCall], str | None]:
    """The calls in a truncated text, and the rest of the text."""
    if not text or not request.tools or request.tool_choice == "none" or parser is None:
        return [], text
    if parser.tool_parser_cls is None or not issubclass(parser, DelegatingParser):
        return [], text
    tokenizer = renderer.get_tokenizer()
    if _read(parser, tokenizer, [_PLAIN], request) != ([], _PLAIN):
        return [], text  # This parser cannot stream.
    calls, left = _read(parser, tokenizer, _pieces(text, tokenizer), request)
    return calls[: 1 if request.parallel_tool_calls is False else None], left


def _read(
    parser: type[Parser], tokenizer: Any, pieces: Iterable[str], request: Any
) -> tuple[list[FunctionCall], str | None]:
    class CallsOnly(DelegatingParser):  # Reasoning has already been removed.
        tool_parser_cls = parser.tool_parser_cls

    reader = CallsOnly(tokenizer, request.tools)
    content, calls = "", dict[int, FunctionCall]()
    for piece in (*pieces, ""):
        ids = tokenizer.encode(piece, add_special_tokens=False)
        delta = reader.parse_delta(piece, ids, request, [], finished=not piece)
        content += (delta and delta.content) or ""
        _add_calls(calls, delta)
    return [call for _, call in sorted(calls.items()) if call.name], content or None


def _add_calls(calls: dict[int, FunctionCall], delta: DeltaMessage | None) -> None:
    for part in delta.tool_calls if delta else ():
        call = calls.setdefault(part.index, FunctionCall(name="", arguments=""))
        call.id = call.id or part.id
        if part.function is not None:
            call.name += part.function.name or ""
            call.arguments += part.function.arguments or ""


def _pieces(text: str, tokenizer: Any) -> Iterator[str]:
    """A text token by token, as a stream would bring it, or several tokens at a time if it is long."""
    if not getattr(tokenizer, "is_fast", False):
        return iter([text])
    marked = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in marked["offset_mapping"]]
    places = sorted({0, *starts[:: -(-len(starts) // _MOST_PIECES)], len(text)})
    return (text[begin:end] for begin, end in pairwise(places))


async def _noting(results: AsyncIterator[Any], cut: dict[int, str]) -> AsyncGenerator[Any, None]:
    try:
        async for result in results:
            cut.update((output.index, output.finish_reason) for output in result.outputs if _is_cut(output))
            yield result
    finally:
        if isinstance(results, AsyncGenerator):
            await results.aclose()


async def _ended_right(
    events: AsyncGenerator[str, None], cut: Mapping[int, str]
) -> AsyncGenerator[str, None]:
    """The events, whose last finish reason is "stop" if a stop string cut a call off."""
    calls: dict[tuple[int, int], str] = {}
    try:
        async for event in events:
            yield _with_reason(event, calls, cut) if event.startswith("data: {") else event
    finally:
        await events.aclose()


def _with_reason(event: str, calls: dict[tuple[int, int], str], cut: Mapping[int, str]) -> str:
    payload = payload_of(event)
    for choice in payload.get("choices", ()):
        for part in choice["delta"].get("tool_calls") or ():
            place = (choice["index"], part["index"])
            calls[place] = calls.get(place, "") + ((part.get("function") or {}).get("arguments") or "")
        own = [text for (index, _), text in calls.items() if index == choice["index"]]
        if choice.get("finish_reason") == "tool_calls" and not all(map(_is_whole, own)):
            choice["finish_reason"] = cut.get(choice["index"], "tool_calls")
            event = event_of(payload)
    return event


def _is_whole(arguments: str) -> bool:
    """Whether a call's arguments are complete JSON."""
    try:
        json.loads(arguments)
    except ValueError:
        return False
    return True


def _is_cut(output: Any) -> bool:
    """Whether the token limit or a stop string ended the output."""
    return output.finish_reason == "length" or isinstance(output.stop_reason, str)
