"""The model hub: the files its cache needs for offline use, and explanations of its errors."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from eft_server.errors import FamilyError
from eft_server.family.family import Source

__all__ = ["advice", "require_cached"]

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "*.tiktoken")
_WEIGHTS = ("*.safetensors", "*.bin")
_NAMED_FILES = 3


def require_cached(named: str, source: Source) -> None:
    """In offline mode, check that a member's config, tokenizer and weights are all in the hub's cache.

    Args:
        named: The member's name for the message.
        source: The member's source; a directory is not checked.

    Raises:
        FamilyError: Some are missing; the message names them and says how to get them.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not constants.HF_HUB_OFFLINE or Path(source.model).is_absolute():
        return
    try:
        folder = snapshot_download(
            source.model, revision=source.revision, local_files_only=True, ignore_patterns="*"
        )
    except LocalEntryNotFoundError:
        raise FamilyError(f"{named}: {_uncached(source, 'the server is offline')}") from None
    missing = list(_missing(Path(folder)))
    if missing:
        more = f" and {len(missing) - _NAMED_FILES} more" if len(missing) > _NAMED_FILES else ""
        files = ", ".join(missing[:_NAMED_FILES]) + more
        raise FamilyError(
            f"{named}: the server is offline, and {folder} lacks {files}: download while online ({_command(source)})"
        )


def _missing(folder: Path) -> Iterator[str]:
    if not (folder / "config.json").exists():
        yield "config.json"
    if not _holds(folder, _TOKENIZERS):
        yield "tokenizer.json (or another tokenizer)"
    indices = list(folder.glob("*.safetensors.index.json")) or list(folder.glob("*.bin.index.json"))
    if indices:
        shards = set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values())
        yield from (shard for shard in sorted(shards) if not (folder / shard).exists())
    elif not _holds(folder, _WEIGHTS):
        yield "model.safetensors (or other weights)"


def _holds(folder: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a file that matches is there, and is not a broken link."""
    return any(path.exists() for pattern in patterns for path in folder.glob(pattern))


def advice(source: Source, error: BaseException) -> str | None:
    """Explain the hub's error and what to do, by its first known cause; None if no cause is known."""
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{source.model}"
    account = (
        "the account of your HF_TOKEN" if get_token() else "an account, and set HF_TOKEN to a token of it"
    )
    known: tuple[tuple[Callable[[BaseException], bool], str], ...] = (
        (_is(errors.GatedRepoError), f"is gated: accept its licence at {page} with {account}"),
        (
            _is(errors.RevisionNotFoundError),
            f"the hub has no revision {source.revision!r} of it: for its branches, tags and commits see "
            f"{page}/tree/main",
        ),
        (
            _is(errors.RepositoryNotFoundError),
            f"is not on the hub ({page}), or is private: check the id, or set HF_TOKEN to a token that may read it",
        ),
        (
            _is_a_wrong_token,
            "the hub refuses the token: HF_TOKEN is wrong or has expired; set a valid one, or none",
        ),
        (
            _is(errors.LocalEntryNotFoundError),
            _uncached(source, f"the hub ({constants.ENDPOINT}) cannot be reached"),
        ),
    )
    causes = list(_causes(error))
    return next((words for applies, words in known if any(map(applies, causes))), None)


def _is(kind: type[BaseException]) -> Callable[[BaseException], bool]:
    return lambda cause: isinstance(cause, kind)


def _is_a_wrong_token(cause: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(cause, HfHubHTTPError) and cause.response.status_code == 401


def _uncached(source: Source, why: str) -> str:
    from huggingface_hub import constants

    return (
        f"is not in the hub's cache {constants.HF_HUB_CACHE}, and {why}: download it while online "
        f"({_command(source)}), or name a directory"
    )


def _command(source: Source) -> str:
    from huggingface_hub import constants

    revision = f" --revision {source.revision}" if source.revision else ""
    return f"hf download {source.model}{revision} --cache-dir {constants.HF_HUB_CACHE}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
