"""From a request's messages or texts to the members' prompts: one for all, or one for each."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from typing_extensions import override
from vllm.inputs import tokens_input
from vllm.renderers.online_renderer import OnlineRenderer

from eft_server.api.edge.api_error import ApiError
from eft_server.api.serving.current import current
from eft_server.engine.launcher.plan import EnginePlan
from eft_server.family.family import BASE
from eft_server.family.file import ServerConfig
from eft_server.family.templates import Voice, family_voices

__all__ = ["MEMBER_PROMPTS", "MemberRenderer", "voices_of"]

MEMBER_PROMPTS = "eft_prompts"
"""The key for per-member prompts (token ids) in the engine's prompt."""

_RENDERED_HERE = frozenset({"chat_template", "tokenize", "return_dict"})


def voices_of(config: ServerConfig, plan: EnginePlan) -> tuple[Voice, ...]:
    """How messages are rendered for the members; empty if vLLM's rendering suits all of them."""
    voices = family_voices(config.family, plan.templates, plan.own_tokenizers)
    alone = len(voices) == 1 and not voices[0].template.plain and voices[0].owner == BASE
    return () if alone else voices


class MemberRenderer(OnlineRenderer):
    """vLLM's renderer, which adds per-member prompts to the engine's prompt.

    The engine's prompt is then the longest of them: usage counts it, and penalties on prompt tokens apply to it.
    """

    voices: Sequence[Voice] = ()
    """If empty, vLLM renders one prompt for all members."""

    member_count: int = 0

    @override
    async def preprocess_chat(self, request: Any, messages: list[Any], *args: Any, **options: Any) -> Any:
        """Render a conversation, once for each voice that the request's coefficients need."""
        rendered = await super().preprocess_chat(request, messages, *args, **options)
        if not self.voices:
            return rendered
        conversation, [engine_input] = rendered
        defaults = {"tools": options.get("tool_dicts")}
        params = request.build_chat_params(None, "string").with_defaults(defaults)
        asked = {k: v for k, v in params.chat_template_kwargs.items() if k not in _RENDERED_HERE}
        texts = [{**message, "content": _text(message.get("content"))} for message in conversation]
        voices = [voice for voice in self.voices if _counting(voice.members)]
        try:
            read = [(await asyncio.to_thread(voice.read, texts, asked))[1] for voice in voices]
        except (TemplateError, ValueError) as error:
            raise ApiError(
                f"A member's chat template refuses the messages: {error}", param="messages"
            ) from None
        by_member = {member: ids for voice, ids in zip(voices, read, strict=True) for member in voice.members}
        return conversation, [self._engine_input(request, by_member, engine_input)]

    @override
    async def preprocess_completion(
        self, request: Any, prompt_input: Any, *args: Any, **options: Any
    ) -> list[Any]:
        """Tokenize prompts; a request may bring per-member ones (`CurrentRequest.member_prompts`)."""
        rendered = await super().preprocess_completion(request, prompt_input, *args, **options)
        own = current().member_prompts
        if not own:
            return rendered
        shared: Any = rendered[0]
        by_member = {key: list(shared["prompt_token_ids"]) for key in range(self.member_count)}
        for member, prompt in own.items():
            [item] = await super().preprocess_completion(request, prompt, *args, **options)
            tokens: Any = item
            by_member[member] = list(tokens["prompt_token_ids"])
            self._require_known(by_member[member])
        needed = {member: ids for member, ids in by_member.items() if _counting((member,))}
        return [self._engine_input(request, needed, shared)]

    def _require_known(self, ids: Sequence[int]) -> None:
        last_id = self.renderer.get_tokenizer().max_token_id
        if max(ids, default=0) > last_id:
            message = f"token id {max(ids)} is out of vocabulary; allowed: 0 to {last_id}"
            raise ApiError(f"eft.prompts: {message}.", param="eft.prompts", code="invalid_value")

    def _engine_input(self, request: Any, by_member: Mapping[int, list[int]], engine_input: Any) -> Any:
        """The engine's prompt; members that do not contribute to this request read the longest."""
        longest, prompts = max(by_member.values(), key=len), None
        if any(ids != longest for ids in by_member.values()):
            for field in ("echo", "prompt_logprobs"):
                asked = getattr(request, field, None)
                if asked is not None and asked is not False:  # Not by equality: prompt_logprobs may be 0.
                    message = "the members read different prompts, so there is no single prompt to score or to repeat"
                    raise ApiError(f"{field}: {message}.", param=field, code="invalid_value")
            prompts = [by_member.get(member, longest) for member in range(self.member_count)]
            current().rendered = prompts
            # No member reads the engine's prompt now; it may hold ids that the base does not have.
            last_id = self.model_config.get_vocab_size() - 1
            longest = [min(token_id, last_id) for token_id in longest]
        wants_text = getattr(request, "return_prompt_text", False)
        text = self.renderer.get_tokenizer().decode(longest) if wants_text else None
        rendered: Any = tokens_input(longest, prompt=text, cache_salt=engine_input.get("cache_salt"))
        return rendered if prompts is None else {**rendered, MEMBER_PROMPTS: prompts}


def _text(content: Any) -> Any:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content


def _counting(members: Sequence[int]) -> bool:
    """Whether any of these members contributes to the current request; without coefficients, all do."""
    counting = current().counting
    return counting is None or not counting.isdisjoint(members)
