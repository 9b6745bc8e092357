"""Whose activations are probed: an expert and its reference, by a family file or by what a server says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eft_client.probe.changes import signature_of
from eft_client.probe.errors import ProbeError
from eft_client.sync import EftClient

if TYPE_CHECKING:
    from eft_server.family.family import Source

__all__ = ["Probing", "members_of_family", "members_of_server"]


@dataclass(frozen=True, kw_only=True)
class Probing:
    """An expert, and what it is compared with.

    Attributes:
        model: the family's name.
        expert: the member whose activations are probed.
        reference: the member that it was fine-tuned from.
        folders: of the reference's and the expert's checkpoint, where both are in folders here.
        signature: what tells these checkpoints from others of the same names, as far as it is known here.
    """

    model: str
    expert: str
    reference: str
    folders: tuple[Path, Path] | None = None
    signature: str = ""


def members_of_family(family: str, overrides: Sequence[str], expert: str | None) -> Probing:
    """The members that a family file names; its checkpoints are not looked at.

    Raises:
        ConfigError: The file is wrong.
        ProbeError: It has several experts and none is chosen, or none of that name.
    """
    from eft_server.family.load import load_config

    config = load_config(family, overrides)
    references = {member.name: member.reference for member in config.family.experts}
    chosen, reference = _chosen(config.name, references, expert)
    before, after = (config.family[name].source for name in (reference, chosen))
    both = _folder(before), _folder(after)
    return Probing(
        model=config.name,
        expert=chosen,
        reference=reference,
        folders=(both[0], both[1]) if both[0] and both[1] else None,
        signature="; ".join(
            f"{source.model}@{source.revision}" if folder is None else signature_of(folder)
            for source, folder in zip((before, after), both, strict=True)
        ),
    )


def members_of_server(client: EftClient, model: str | None, expert: str | None) -> Probing:
    """The members of a server's family.

    Raises:
        ProbeError: It serves no family, or does not say what its experts' references are; or as above.
    """
    behaviours = client.behaviours()
    name = model or behaviours.model
    if name is None:
        raise ProbeError("the server lists no family; expected an EFT server")
    references = {one.name: one.reference for one in behaviours.experts}
    chosen, reference = _chosen(name, references, expert)
    return Probing(model=name, expert=chosen, reference=reference)


def _folder(source: "Source") -> Path | None:
    """A checkpoint's folder; None where it is a hub's."""
    folder = Path(source.model)
    return folder if folder.is_absolute() and folder.is_dir() else None


def _chosen(model: str, references: Mapping[str, str | None], expert: str | None) -> tuple[str, str]:
    known = ", ".join(references)
    if expert is None:
        if len(references) != 1:
            raise ProbeError(f"{model} has {len(references)} experts ({known}); choose one with --expert")
        [expert] = references
    if expert not in references:
        raise ProbeError(f"--expert {expert!r}: {model} has {known}")
    reference = references[expert]
    if reference is None:
        raise ProbeError(f"the server does not say what {expert!r} was fine-tuned from")
    return expert, reference
