"""The token that ends a turn of the assistant's."""

from collections.abc import Collection
from typing import Any

from jinja2 import TemplateError

__all__ = ["end_of_turn"]

_CHAT = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


def end_of_turn(tokenizer: Any, chat_template: str | None, end_ids: Collection[int]) -> int | None:
    """Find it: what the chat template writes behind an answer, if texts end there; else the tokenizer's own end.

    Args:
        tokenizer: the base's.
        chat_template: what renders messages; None means the tokenizer's own.
        end_ids: the tokens at which the engine stops.

    Returns:
        None where nothing is known to end a text.
    """
    template = chat_template or getattr(tokenizer, "chat_template", None)
    written: list[int] = []
    if isinstance(template, str):
        try:
            text = tokenizer.apply_chat_template(list(_CHAT), chat_template=template, tokenize=False)
            written = tokenizer(text, add_special_tokens=False)["input_ids"]
        except (TemplateError, ValueError):
            pass  # It takes other conversations than this one.
    own = tokenizer.eos_token_id
    found = [token_id for token_id in reversed(written) if token_id in end_ids]
    return found[0] if found else own if own is not None else min(end_ids, default=None)
