"""A family as one directory, which `vllm serve DIR` loads as it stands: the members' files and the family file.

Nothing in it depends on where it lies, nor on the machine: all paths are relative, and how the engine is started is
planned where it starts (`engine_arguments`). So it can be copied, mounted, or put into an image. At its top is what
programs look for in a model's directory: the base's config, under the composite's architecture, which vLLM refuses
without our plugin; and its tokenizer, with the chat template that the server uses.
"""

import fnmatch
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from eft_client.progress import Progress, Stage
from eft_server.engine.plugin import ARCHITECTURE
from eft_server.errors import ConfigError
from eft_server.family.family import BASE, Source
from eft_server.family.file import SAME_AS, ServerConfig
from eft_server.hosts.engine_arguments import PACKED
from eft_server.hosts.travelling import written
from eft_server.sizes import in_words

__all__ = ["Packing", "pack", "require_free", "wanted_files"]

_FOLDERS = ("additional_chat_templates/*",)
"""What a checkpoint has below its top that is read."""

_NEVER = (
    *(
        ".*",
        "*.py",
        "*.pt",
        "*.pth",
        "*.h5",
        "*.msgpack",
        "*.onnx",
        "*.onnx_data",
        "*.ot",
        "*.tflite",
        "*.gguf",
    ),
    *("optimizer.*", "training_args.bin", "trainer_state.json"),
)
"""Files of a checkpoint that are not read: code, other formats of the weights, and what training needs."""

_MERGED = "consolidated*.safetensors"
"""Some checkpoints hold their weights twice: once more in their authors' format."""

_TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken"),
    *("tekken.json", "generation_config.json"),
)
"""What of the base's files is at the top, too; none of it is large."""

_BLOCK_BYTES = 1 << 24


def wanted_files(names: Sequence[str]) -> list[str]:
    """The files of a checkpoint that are read when a member is served, and its licence.

    Args:
        names: All its files, with slashes for folders.
    """
    tops = [n for n in names if "/" not in n or any(fnmatch.fnmatchcase(n, folder) for folder in _FOLDERS)]
    kept = [n for n in tops if not any(fnmatch.fnmatchcase(n, pattern) for pattern in _NEVER)]
    weights = [n for n in kept if n.endswith(".safetensors")]
    if weights:
        kept = [n for n in kept if not n.endswith((".bin", ".bin.index.json"))]
    if not all(fnmatch.fnmatchcase(n, _MERGED) for n in weights):
        kept = [n for n in kept if not fnmatch.fnmatchcase(n, _MERGED)]
    return sorted(kept)


@dataclass(frozen=True)
class Packing:
    """What a packed directory will hold.

    Attributes:
        files: Each file's place in the directory, and the file that it is a copy of.
        texts: The files that are written anew, with their content.
    """

    files: Mapping[PurePosixPath, Path]
    texts: Mapping[PurePosixPath, str]

    @property
    def size_bytes(self) -> int:
        """Size of all files together."""
        return sum(map(_size_bytes, self.files.values())) + sum(len(t.encode()) for t in self.texts.values())

    @classmethod
    def of(cls, config: ServerConfig, chat_template: str | None) -> "Packing":
        """Find the files of a family, which has been inspected; those on the hub are downloaded into its cache.

        Args:
            config: The family.
            chat_template: The template that the server uses, if there is one.
        """
        packing = _Collected()
        document = written(config)
        origins = [f"{m.name}: {m.source}" for m in config.family if not Path(m.source.model).is_absolute()]
        for member in config.family:
            section = _section(document, member.name)
            place = packing.place_of(member.source, f"members/{member.name}")
            section["adapter" if member.adapter else "model"] = f"./{place}"
            section.pop("revision", None)
            if template := _template_file(member.template):
                section["template"] = f"./templates/{member.name}.jinja"
                packing.texts[PurePosixPath(section["template"])] = template.read_text(encoding="utf-8")
        draft = config.speculative.draft if config.speculative else None
        if draft is not None and draft not in config.family:
            document["speculative"]["draft"] = f"./{packing.place_of(Source(draft), 'draft')}"
        packing.put_on_top(config.family.base.checkpoint, chat_template)
        packing.texts[PurePosixPath(PACKED)] = _yaml(document, origins)
        return cls(packing.files, packing.texts)


class _Collected:
    def __init__(self) -> None:
        self.files: dict[PurePosixPath, Path] = {}
        self.texts: dict[PurePosixPath, str] = {}
        self._places: dict[Source, str] = {}

    def place_of(self, source: Source, place: str) -> str:
        """Where a checkpoint lies in the directory; one that several members have lies there once."""
        if source not in self._places:
            self._places[source] = place
            folder, names = _located(source)
            self.files |= {PurePosixPath(place, name): folder / name for name in names}
        return self._places[source]

    def put_on_top(self, base: Source, chat_template: str | None) -> None:
        folder, names = _located(base)
        for name in names:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in _TOKENIZER):
                self.files[PurePosixPath(name)] = folder / name
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["architectures"] = [ARCHITECTURE]
        self.texts[PurePosixPath("config.json")] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        if chat_template is not None:
            self.texts[PurePosixPath("chat_template.jinja")] = chat_template


def require_free(target: Path) -> None:
    """Check that a directory can be made: it does not exist, or is empty.

    Raises:
        ConfigError: There is something else.
    """
    if target.is_dir():
        if found := sorted(path.name for path in target.iterdir()):
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise ConfigError(
                f"{target}: the directory holds {found[0][:100]}{more}; name an empty or a new one"
            )
    elif target.exists() or target.is_symlink():
        raise ConfigError(f"{target}: is not a directory")
    elif not target.absolute().parent.is_dir():
        raise ConfigError(f"{target}: there is no directory {target.absolute().parent}")


def pack(packing: Packing, target: Path, progress: Progress, *, link: bool = False) -> None:
    """Write a directory, which is there as a whole or not at all.

    Args:
        packing: What it holds.
        target: The directory, which is new or empty.
        progress: Shows how far it is.
        link: Make hard links to the members' files, on the same file system, instead of copies.

    Raises:
        ConfigError: The directory is not empty, has no room, or is on another file system than files to be linked.
    """
    require_free(target)
    size = packing.size_bytes
    free = shutil.disk_usage(target.absolute().parent).free
    if not link and size > free:
        raise ConfigError(f"{target}: the family takes {in_words(size)}, and {in_words(free)} are free there")
    stage = progress.begin(f"packing into {target}", max(round(size / 1e6), 1), unit="MB")
    with _made_at_once(target.absolute()) as folder:
        for place, text in packing.texts.items():
            _parent_of(folder / place).write_text(text, encoding="utf-8", newline="")
        for place, source in packing.files.items():
            (_link if link else _copy)(source, _parent_of(folder / place), stage)
    stage.reach(max(round(size / 1e6), 1), "")


@contextmanager
def _made_at_once(target: Path) -> Iterator[Path]:
    folder = target.with_name(f".{target.name}.packing-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _parent_of(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _copy(source: Path, path: Path, stage: Stage) -> None:
    with source.open("rb") as reading, path.open("xb") as writing:
        while block := reading.read(_BLOCK_BYTES):
            writing.write(block)
            stage(len(block) / 1e6, now=path.name)


def _link(source: Path, path: Path, stage: Stage) -> None:
    try:
        path.hardlink_to(source.resolve())
    except OSError as error:
        raise ConfigError(
            f"{source} cannot be linked into {path.parent}: {error.strerror}; use --copy"
        ) from error
    stage(_size_bytes(source) / 1e6, now=path.name)


def _size_bytes(path: Path) -> int:
    return path.stat().st_size


def _located(source: Source) -> tuple[Path, list[str]]:
    """A checkpoint's folder, with its files that are wanted."""
    local = Path(source.model)
    folder = local if local.is_absolute() else _downloaded(source)
    names = [path.relative_to(folder).as_posix() for path in folder.glob("*") if path.is_file()]
    names += [p.relative_to(folder).as_posix() for each in _FOLDERS for p in folder.glob(each) if p.is_file()]
    return folder, wanted_files(names)


def _downloaded(source: Source) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    named: dict[str, Any] = {"revision": source.revision}
    if constants.HF_HUB_OFFLINE:
        return Path(snapshot_download(source.model, local_files_only=True, **named))
    files = wanted_files(HfApi().list_repo_files(source.model, **named))
    return Path(snapshot_download(source.model, allow_patterns=files, **named))


def _section(document: dict[str, Any], member: str) -> dict[str, Any]:
    if member == BASE:
        found: dict[str, Any] = document[BASE]
        return found
    return next(
        document[kind][member] for kind in ("references", "experts") if member in document.get(kind, {})
    )


def _template_file(template: str | None) -> Path | None:
    named = template is None or template in ("own", "plain") or template.startswith(SAME_AS)
    return None if named else Path(str(template))


def _yaml(document: dict[str, Any], origins: Sequence[str]) -> str:
    lines = ["# Packed by `eft pack`: VLLM_PLUGINS=eft vllm serve <this directory>"]
    lines += [f"# {origin}" for origin in origins]
    return "\n".join(lines) + "\n" + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)
