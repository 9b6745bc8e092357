"""Which chat template each member uses, and what a conversation looks like in it.

Chat experts need the template that they were tuned on; a base model may never have seen its special tokens. So:

- an expert uses its own template;
- the base and the references, compared with an expert, use that expert's template if their tokenizers also have a
  chat template (so the special tokens mean something to them), and plain text otherwise;
- an expert without a template uses the base's if there is one, and plain text otherwise.

The family file may override this for each member: `own`, `plain`, `same as <member>`, or a Jinja file.
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
"""A conversation as a base model may have seen it: headings and text, no special tokens."""

_MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True)
class MemberTemplate:
    """The template of one member.

    Attributes:
        text: its Jinja source.
        origin: its origin, for people.
        plain: whether it is plain text, to which the tokenizer adds its usual special tokens; other templates write
            those themselves.
    """

    text: str
    origin: str
    plain: bool = False


_PLAIN = MemberTemplate(PLAIN, "plain text", plain=True)


def member_templates(family: Family, own: Mapping[str, str]) -> dict[str, MemberTemplate]:
    """Choose every member's template, in the order of the family.

    Args:
        family: the family.
        own: the templates of the members' tokenizers, by name, where they have one.

    Raises:
        ConfigError: a template does not exist.
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
            raise ConfigError(f"template of {member!r}: members refer to each other in a cycle ({circle})")
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
        """The expert whose template the base or a reference uses: the first of its experts with a template."""
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
                f"template of {member!r}: its tokenizer has none; use plain, same as <member>, or a "
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
    """One way to render a conversation, shared by some of the members.

    Attributes:
        template: their template.
        tokenizer: their tokenizer.
        owner: the member whose tokenizer it is.
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
        """Render a conversation for these members: its text and token ids.

        Args:
            messages: messages whose content is text.
            options: options for the template, such as add_generation_prompt, continue_final_message and tools.

        Raises:
            jinja2.TemplateError: the template refuses the conversation.
        """
        with self._lock:  # Tokenizers are not thread-safe.
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
    """Group the members by template and tokenizer, and load the tokenizers.

    Args:
        family: the family.
        templates: every member's template, from `member_templates`.
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
