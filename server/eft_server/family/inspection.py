"""Do these checkpoints form a family? Checks sizes, shapes and token ids, from configs and tokenizers only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from eft_server.errors import FamilyError, shown
from eft_server.family.adapter import read_adapter
from eft_server.family.checkpoint import Checkpoint, MemberReport, read_checkpoint
from eft_server.family.family import BASE, Source
from eft_server.family.file import ServerConfig
from eft_server.family.vocabulary import Vocabulary, compare

__all__ = ["FamilyReport", "MemberReport", "Vocabulary", "inspect_family"]

DRAFT = "draft"
_LISTED = 5


@dataclass(frozen=True)
class FamilyReport:
    """The members, as their files describe them.

    Attributes:
        members: One report per member, in the order of the family.
        vocabulary: The ids that all of them share.
        warnings: Warnings for the operator, one sentence each.
        end_ids: The shared ids with which a member ends a text, ascending.
        chat_templates: The members' chat templates, by name, where their tokenizers have one.
        own_tokenizers: The members whose tokenizers have tokens that the base's lacks, or has at another id.
        draft: The draft model of speculative decoding, if it is not a member. vLLM shards it as it does the base.
    """

    members: tuple[MemberReport, ...]
    vocabulary: Vocabulary
    warnings: tuple[str, ...]
    end_ids: tuple[int, ...]
    chat_templates: Mapping[str, str]
    own_tokenizers: frozenset[str] = frozenset()
    draft: MemberReport | None = None

    @property
    def loaded(self) -> tuple[MemberReport, ...]:
        """All models in memory: the members and the draft."""
        return (*self.members, self.draft) if self.draft else self.members

    def require_divisible(self, tensor_parallel_size: int) -> None:
        """Check that the heads of every sharded member can be spread over the GPUs.

        Raises:
            FamilyError: A number of heads is not a multiple of the number of GPUs; or for key/value heads, neither
                number is a multiple of the other.
        """
        for member in self.members:
            if member.sharded:
                _require_divisible(member, tensor_parallel_size, _advice(member))
        if self.draft is not None:
            _require_divisible(self.draft, tensor_parallel_size, _DRAFT_ADVICE)


_DRAFT_ADVICE = "; a draft is sharded as the base is: choose another one, or another number of GPUs"


def _advice(member: MemberReport) -> str:
    return "" if member.name == BASE else "; leave out its tensor_parallel to replicate it on every GPU"


def _require_divisible(member: MemberReport, gpus: int, advice: str) -> None:
    if member.attention_heads % gpus:
        _refuse_heads(member, gpus, f"{member.attention_heads} attention heads", advice)
    if member.kv_heads % gpus and gpus % member.kv_heads:
        _refuse_heads(member, gpus, f"{member.kv_heads} key/value heads", advice)


def _refuse_heads(member: MemberReport, gpus: int, heads: str, advice: str) -> NoReturn:
    raise FamilyError(
        f"tensor_parallel_size {gpus} does not divide the {heads} of {member.name!r} ({member.model}){advice}"
    )


def inspect_family(config: ServerConfig) -> FamilyReport:
    """Read every member's config and tokenizer and compare them.

    Raises:
        FamilyError: A checkpoint cannot be read or served, or an ordinary token id means different things.
    """
    checkpoints = _read(config)
    draft = _draft(config, checkpoints)
    others = {name: c.tokens for name, c in checkpoints.items() if name != BASE}
    base = checkpoints[BASE]
    vocabulary, warnings = compare(base.tokens, others, base.report.vocab_size)
    if draft is not None:
        # The draft only proposes: ids that it lacks stay shared, but ids that differ are an error.
        compare(base.tokens, {DRAFT: draft.tokens}, base.report.vocab_size)
    ends = set[int]().union(*(c.end_ids for c in checkpoints.values()))
    return FamilyReport(
        members=tuple(c.report for c in checkpoints.values()),
        vocabulary=vocabulary,
        warnings=(*warnings, *_warnings(checkpoints, vocabulary)),
        end_ids=tuple(sorted(token_id for token_id in ends if token_id in vocabulary)),
        chat_templates={n: c.chat_template for n, c in checkpoints.items() if c.chat_template is not None},
        own_tokenizers=frozenset(
            n for n, c in checkpoints.items() if c.tokens.contents != base.tokens.contents
        ),
        draft=draft.report if draft else None,
    )


def _read(config: ServerConfig) -> dict[str, Checkpoint]:
    """Read every member, in the order of the family: references come before the adapters on them."""
    checkpoints: dict[str, Checkpoint] = {}
    for member in config.family:
        if member.adapter is not None:
            reference = checkpoints[config.family.reference_of(member.name)]
            checkpoints[member.name] = read_adapter(member.name, member.adapter, reference, member.checkpoint)
        else:
            checkpoints[member.name] = read_checkpoint(member.name, member.checkpoint, sharded=member.sharded)
    return checkpoints


def _draft(config: ServerConfig, checkpoints: Mapping[str, Checkpoint]) -> Checkpoint | None:
    draft = config.speculative.draft if config.speculative else None
    if draft is None or draft in checkpoints:
        return None
    return read_checkpoint(DRAFT, Source(draft), sharded=True)


def _warnings(checkpoints: Mapping[str, Checkpoint], vocabulary: Vocabulary) -> list[str]:
    reports = [checkpoint.report for checkpoint in checkpoints.values()]
    return [
        *_row_warnings(checkpoints),
        *_end_warnings(checkpoints, vocabulary),
        *_softcap_warnings(reports),
        *_context_warnings(reports),
        *_template_warnings(checkpoints),
    ]


def _row_warnings(checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """Group the members by the tokens that they cannot read, which are mostly the same for all."""
    members: dict[str, list[str]] = {}
    for name, checkpoint in checkpoints.items():
        if checkpoint.rowless:
            listed = [f"{i} ({shown(token)})" for i, token in checkpoint.rowless.items()]
            more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
            members.setdefault(", ".join(listed[:_LISTED]) + more, []).append(repr(name))
    return [
        f"the tokenizer has tokens without a row in {', '.join(names)}: {listed}; prompts that contain them are refused"
        for listed, names in members.items()
    ]


def _end_warnings(checkpoints: Mapping[str, Checkpoint], vocabulary: Vocabulary) -> list[str]:
    warnings = []
    for name, checkpoint in checkpoints.items():
        lost = sorted(token_id for token_id in checkpoint.end_ids if token_id not in vocabulary)
        if lost:
            listed = ", ".join(f"{i} ({checkpoint.tokens.describe(i)})" for i in lost)
            warnings.append(
                f"{name!r} ends texts with {listed}, which not all members share: it cannot end them that way"
            )
    return warnings


def _softcap_warnings(reports: list[MemberReport]) -> list[str]:
    if len({report.final_logit_softcapping for report in reports}) == 1:
        return []
    caps = ", ".join(f"{r.name}: {r.final_logit_softcapping or 'none'}" for r in reports)
    return [f"members cap their logits differently, so their differences are on different scales ({caps})"]


def _context_warnings(reports: list[MemberReport]) -> list[str]:
    shortest = min(reports, key=lambda report: report.max_position_embeddings)
    tokens = shortest.max_position_embeddings
    if tokens == reports[0].max_position_embeddings:
        return []
    return [f"{shortest.name!r} reads at most {tokens} tokens, and so does the family"]


def _template_warnings(checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    if checkpoints[BASE].chat_template is not None:
        return []
    having = [name for name, checkpoint in checkpoints.items() if checkpoint.chat_template is not None]
    return [
        f"the base's tokenizer has no chat template (members with one: {', '.join(having) or 'none'}): it reads "
        "conversations as plain text unless the family file gives it a template"
    ]
