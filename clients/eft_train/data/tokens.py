"""Examples as token ids, exactly as the server reads them: prompts rendered as in a chat, answers with their end.

TRL would tokenise a prompt and its answer together. The server's prompt ends before the answer begins, so here each
is tokenised by itself, and tokens never merge across that border.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eft_train.data.forms import Example
from eft_train.errors import TrainingError

if TYPE_CHECKING:
    from eft_server.family.checkpoint import Checkpoint
    from eft_server.family.templates import Voice

__all__ = ["Tokenised", "Tokens", "tokenised"]


@dataclass(frozen=True)
class Tokenised:
    """An example as token ids.

    Attributes:
        id: The example's.
        prompt: What is read.
        chosen: The answer with its end, which is learnt.
        rejected: The other answer with its end, if there is one.
        is_cut: Whether an answer was cut off to fit.
    """

    id: str
    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int] | None = None
    is_cut: bool = False

    def cut(self, most: int) -> "Tokenised | None":
        """The example with at most so many tokens in each text; None if nothing would be left to learn."""
        room = most - len(self.prompt)
        if room < 1:
            return None
        longest = max(len(self.chosen), len(self.rejected or ()))
        if longest <= room:
            return self
        rejected = None if self.rejected is None else self.rejected[:room]
        return replace(self, chosen=self.chosen[:room], rejected=rejected, is_cut=True)


@dataclass(frozen=True)
class Tokens:
    """Examples within a length.

    Attributes:
        examples: Those that have something to learn.
        cut: How many of them were cut off.
        dropped: How many were left out because their prompts fill the length.
    """

    examples: tuple[Tokenised, ...]
    cut: int
    dropped: int

    @classmethod
    def within(cls, examples: Sequence[Tokenised], most: int) -> "Tokens":
        """Cut examples to a length."""
        fitting = [short for example in examples if (short := example.cut(most)) is not None]
        cut = sum(example.is_cut for example in fitting)
        return cls(tuple(fitting), cut, len(examples) - len(fitting))


def tokenised(examples: Sequence[Example], checkpoint: "Checkpoint", tokenizer: Any) -> list[Tokenised]:
    """Render and tokenise examples as the server does for a member that has this checkpoint.

    Raises:
        TrainingError: Prompts are conversations, and there is no chat template or it refuses one.
    """
    from eft_server.api.serving.end_of_turn import end_of_turn

    end = end_of_turn(tokenizer, checkpoint.chat_template, checkpoint.end_ids)
    voice = _voice(examples, checkpoint, tokenizer)
    return [_tokenised(example, tokenizer, voice, () if end is None else (end,)) for example in examples]


def _voice(examples: Sequence[Example], checkpoint: "Checkpoint", tokenizer: Any) -> "Voice | None":
    from eft_server.family.templates import MemberTemplate, Voice

    if not any(example.is_conversation for example in examples):
        return None
    if checkpoint.chat_template is None:
        raise TrainingError(
            f"{checkpoint.report.model} has no chat template, and the data's prompts are conversations; give prompts "
            "as text, or a base with a chat template"
        )
    return Voice(MemberTemplate(checkpoint.chat_template, "its own"), tokenizer, checkpoint.report.name, (0,))


def _tokenised(example: Example, tokenizer: Any, voice: "Voice | None", end: tuple[int, ...]) -> Tokenised:
    from jinja2 import TemplateError

    def answer(text: str) -> Sequence[int]:
        return array("i", [*tokenizer(text, add_special_tokens=False)["input_ids"], *end])

    if isinstance(example.prompt, str):
        prompt = tokenizer(example.prompt)["input_ids"]
    else:
        assert voice is not None
        try:
            _, prompt = voice.read(example.prompt, {})
        except TemplateError as error:
            raise TrainingError(
                f"example {example.id!r}: prompt: the chat template refuses it: {error}"
            ) from error
    rejected = None if example.rejected is None else answer(example.rejected)
    return Tokenised(example.id, array("i", prompt), answer(example.chosen), rejected)
