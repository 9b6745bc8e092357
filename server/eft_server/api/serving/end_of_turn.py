"""The end-of-turn token."""

from collections.abc import Collection
from typing import Any

from jinja2 import TemplateError

__all__ = ["end_of_turn"]

_CHAT = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


def end_of_turn(tokenizer: Any, chat_template: str | None, end_ids: Collection[int]) -> int | None:
    """Find the token: the one that the chat template writes after an answer, if it ends texts; else the tokenizer's.

    Args:
        tokenizer: the base's.
        chat_template: the template that renders messages; None means the tokenizer's.
        end_ids: the tokens at which the engine stops.

    Returns:
        The token's id; None if no token is known to end a text.
    """
    template = chat_template or getattr(tokenizer, "chat_template", None)
    written: list[int] = []
    if isinstance(template, str):
        try:
            text = tokenizer.apply_chat_template(list(_CHAT), chat_template=template, tokenize=False)
            written = tokenizer(text, add_special_tokens=False)["input_ids"]
        except (TemplateError, ValueError):
            pass  # The template does not accept this conversation.
    own = tokenizer.eos_token_id
    found = [token_id for token_id in reversed(written) if token_id in end_ids]
    return found[0] if found else own if own is not None else min(end_ids, default=None)
