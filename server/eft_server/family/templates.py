"""Which chat template each member reads, and what a conversation looks like in it.

Chat experts want the template that they were tuned on; a base model may never have seen its special tokens. So:

- an expert reads its own template;
- the base and the references, compared with an expert, read that expert's template if their tokenizer brings a chat
  template, too (so its special tokens mean something to them), and plain text otherwise;
- an expert without a template reads the base's own if there is one, and plain text otherwise.

The family file may say otherwise for each member: `own`, `plain`, `same as <member>`, or a Jinja file.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eft_server.errors import ConfigError
from eft_server.family.adapter import has_tokenizer
from eft_server.family.checkpoint import read_tokenizer
from eft_server.family.family import BASE, Family, Role
from eft_server.family.file import SAME_AS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PLAIN", "MemberTemplate", "Voice", "family_voices", "member_templates"]

PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '# Response:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '# Query:\n' + message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '# Response:\n' }}{% endif %}"
)
"""A conversation as a base model may have met one: headings and text, no special tokens."""

_MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True)
class MemberTemplate:
    """The template of one member.

    Attributes:
        text: its Jinja source.
        origin: where it comes from, for people.
        plain: whether it is plain text, which is tokenized as any text is, with the special tokens that the
            tokenizer puts around text; other templates write those themselves.
    """

    text: str
    origin: str
    plain: bool = False


_PLAIN = MemberTemplate(PLAIN, "plain text", plain=True)


def member_templates(family: Family, own: Mapping[str, str]) -> dict[str, MemberTemplate]:
    """Decide on every member's template, in the order of the family.

    Args:
        family: the family.
        own: the members' tokenizers' own templates, by name, where they have one.

    Raises:
        ConfigError: a member is to read a template that does not exist.
    """
    chosen = _Chosen(family, own)
    return {name: chosen.of(name) for name in family.names}


@dataclass(frozen=True)
class _Chosen:
    family: Family
    own: Mapping[str, str]

    def of(self, member: str, asked_by: tuple[str, ...] = ()) -> MemberTemplate:
        if member in asked_by:
            circle = " -> ".join((*asked_by, member))
            raise ConfigError(f"template of {member!r}: members refer to each other in a circle ({circle})")
        said = self.family[member].template
        if said is None:
            return self._usual(member, asked_by)
        if said == "plain":
            return _PLAIN
        if said == "own":
            return self._own(member)
        if said.startswith(SAME_AS):
            return self._same(said.removeprefix(SAME_AS), (*asked_by, member))
        return MemberTemplate(_read_template(member, Path(said)), f"the file {Path(said).name}")

    def _usual(self, member: str, asked_by: tuple[str, ...]) -> MemberTemplate:
        model = self._model_expert(member)
        if model is not None and member in self.own:
            return self._same(model, (*asked_by, member))
        if member in self.own and model is None:
            return self._own(member)
        if self.family[member].role is Role.EXPERT and BASE in self.own:
            return MemberTemplate(self.own[BASE], "the base's own")
        return _PLAIN

    def _model_expert(self, member: str) -> str | None:
        """The expert that the base or a reference is compared with: the first that has a template to go by."""
        if self.family[member].role is Role.EXPERT:
            return None
        for expert in self.family.experts:
            related = member in (BASE, expert.reference)
            if related and (expert.name in self.own or expert.template is not None):
                return expert.name
        return None

    def _own(self, member: str) -> MemberTemplate:
        if member not in self.own:
            raise ConfigError(
                f"template of {member!r}: its tokenizer has none of its own; use plain, same as <member>, or a "
                "Jinja file"
            )
        return MemberTemplate(self.own[member], "its own")

    def _same(self, other: str, asked_by: tuple[str, ...]) -> MemberTemplate:
        found = self.of(other, asked_by)
        return found if found.plain else MemberTemplate(found.text, f"the same as {other}")


def _read_template(member: str, path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise ConfigError(
                f"template of {member!r}: {path.name} is larger than {_MAX_TEMPLATE_BYTES} bytes"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"template of {member!r}: {path} cannot be read: {error}") from error


@dataclass(frozen=True)
class Voice:
    """How some of the members read a conversation.

    Attributes:
        template: their template.
        tokenizer: their tokenizer.
        owner: the member whose tokenizer that is.
        members: their places in the family.
    """

    template: MemberTemplate
    tokenizer: "PreTrainedTokenizerBase"
    owner: str
    members: tuple[int, ...]
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> tuple[str, list[int]]:
        """Write a conversation as these members read it: the text and its token ids.

        Args:
            messages: with texts as their content.
            options: what a template may ask for, such as add_generation_prompt, continue_final_message and tools.

        Raises:
            jinja2.TemplateError: the template refuses the conversation.
        """
        with self._lock:  # Tokenizers are not for two threads at once.
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.template.text,
                tokenize=False,
                **{"add_generation_prompt": True} | dict(options),
            )
            assert isinstance(text, str)
            ids = self.tokenizer(text, add_special_tokens=self.template.plain)["input_ids"]
        return text, list(ids)


def family_voices(
    family: Family, templates: Mapping[str, MemberTemplate], own_tokenizers: Collection[str]
) -> tuple[Voice, ...]:
    """Group the members by what they read, and load the tokenizers for it.

    Args:
        family: the family.
        templates: every member's, as `member_templates` decided.
        own_tokenizers: the members whose tokenizers differ from the base's.
    """
    groups: dict[tuple[str, bool, str], list[int]] = {}
    for place, (name, template) in enumerate(templates.items()):
        owner = name if name in own_tokenizers else BASE
        groups.setdefault((template.text, template.plain, owner), []).append(place)
    return tuple(
        Voice(templates[family.names[places[0]]], _tokenizer(family, owner), owner, tuple(places))
        for (_, _, owner), places in groups.items()
    )


def _tokenizer(family: Family, owner: str) -> "PreTrainedTokenizerBase":
    member = family[owner]
    own = member.adapter is not None and has_tokenizer(member.adapter)
    source = member.source if own else member.checkpoint
    return read_tokenizer(source.model, source.revision)
