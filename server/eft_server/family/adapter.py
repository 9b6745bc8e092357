"""An expert that is a LoRA adapter on its reference: its PEFT files are read and checked without the weights."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eft_server.errors import FamilyError, shown
from eft_server.family.checkpoint import Checkpoint, linear_layers, read_template, read_tokenizer, tokens_of
from eft_server.family.family import Source
from eft_server.family.safetensors import StoredTensor, read_header

if TYPE_CHECKING:
    from eft_server.family.checkpoint import Linears

__all__ = ["CONFIG", "WEIGHTS", "adapter_file", "has_tokenizer", "is_adapter", "module_of", "read_adapter"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PARTS = (".lora_A.weight", ".lora_B.weight")

_READ = frozenset({"alpha_pattern", "lora_alpha", "r", "rank_pattern", "target_modules", "use_rslora"})
"""The settings that decide the low-rank term, beside the tensors."""

_INERT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    }
)
"""Settings that only training or PEFT's bookkeeping reads: the tensors show which modules are adapted."""

_HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    "init_lora_weights": (True, *_HARMLESS_INITS),
}
_REASONS = {
    "peft_type": "only LoRA adapters are supported",
    "task_type": "members are causal language models (CAUSAL_LM)",
    "bias": "an adapter that trains biases is more than a low-rank term",
    "modules_to_save": "whole modules besides the low-rank terms are not supported",
    "trainable_token_indices": "adapted embeddings are not supported",
    "use_dora": "DoRA rescales the reference's weights, which are shared",
    "init_lora_weights": "this initialisation changes the reference's weights, which are shared: convert the adapter "
    "to a plain one with PEFT's path_initial_model_for_weight_conversion",
    "layer_replication": "an adapter has to have the layers of its reference",
}
_OTHERWISE = "this PEFT feature is not supported"


def read_adapter(name: str, source: Source, reference: Checkpoint, checkpoint: Source) -> Checkpoint:
    """Read an adapter's settings, its tensors' shapes and its tokenizer, if it has one.

    Args:
        name: The expert's name.
        source: The adapter's source.
        reference: The reference's checkpoint, as it was read.
        checkpoint: The reference's source.

    Raises:
        FamilyError: It cannot be read, or holds more than low-rank terms on the reference's linear layers.
    """
    named = f"member {name!r} (adapter {source})"
    try:
        _refuse_features(_settings(source))
        tensors = read_header(adapter_file(source.model, source.revision, WEIGHTS))
        _refuse_tensors(tensors, linear_layers(checkpoint), checkpoint.model)
        return _with_own_tokenizer(_on(name, source, reference, tensors), source)
    except (OSError, ValueError) as error:
        raise FamilyError(f"{named}: {error}") from error


def adapter_file(adapter: str, revision: str | None, filename: str) -> Path:
    """A file of an adapter, from its directory or through the hub and its cache.

    Raises:
        FamilyError: It is not there.
    """
    path = _optional_file(adapter, revision, filename)
    if path is None:
        pickled = "; pickled weights (.bin) are never read" if filename == WEIGHTS else ""
        raise FamilyError(f"there is no {filename}, so it is not an adapter{pickled}")
    return path


def module_of(tensor_name: str) -> str:
    """The layer that a tensor of an adapter belongs to, in the names of the reference's checkpoint."""
    for part in _PARTS:
        tensor_name = tensor_name.removesuffix(part)
    return tensor_name.removeprefix(_PREFIX)


def _optional_file(adapter: str, revision: str | None, filename: str) -> Path | None:
    from transformers.utils.hub import cached_file

    folder = Path(adapter)
    if folder.is_absolute():
        if not folder.is_dir():
            raise FamilyError("there is no such directory")
        return folder / filename if (folder / filename).is_file() else None
    found = cached_file(adapter, filename, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def _settings(source: Source) -> dict[str, Any]:
    text = adapter_file(source.model, source.revision, CONFIG).read_text(encoding="utf-8")
    settings = json.loads(text)
    if not isinstance(settings, dict):
        raise FamilyError(f"{CONFIG} holds {shown(settings)}, not an object")
    return settings


def _refuse_features(settings: Mapping[str, Any]) -> None:
    """Refuse settings that change the model in another way, known or not."""
    for key, value in settings.items():
        if key in _READ or key in _INERT or value in _ALLOWED.get(key, ()):
            continue
        if value not in (None, False, {}, []):
            raise FamilyError(f"{key} is {shown(value)}: {_REASONS.get(key, _OTHERWISE)}")


def _refuse_tensors(tensors: Mapping[str, StoredTensor], linears: "Linears", model: str) -> None:
    """Check that the tensors are pairs of low-rank matrices that fit the reference's linear layers."""
    if not tensors:
        raise FamilyError(f"{WEIGHTS} holds no tensors")
    for name in tensors:
        if not name.endswith(_PARTS):
            raise FamilyError(
                f"the tensor {name!r} is not part of a low-rank term; nothing else is supported"
            )
        module = module_of(name)
        if module not in linears.shapes:
            raise FamilyError(f"adapts {module!r}, {linears.why_not(module)} (the reference is {model})")
    for module, (first, second) in _pairs(tensors):
        inputs, outputs = linears.shapes[module]
        if first is None or second is None:
            raise FamilyError(f"one of the two low-rank matrices of {module!r} is missing")
        rank = first.shape[0]
        if (first.shape, second.shape) != ((rank, inputs), (outputs, rank)):
            raise FamilyError(
                f"the low-rank matrices of {module!r} are {first.shape} and {second.shape}; the reference's layer "
                f"({model}) needs ({rank}, {inputs}) and ({outputs}, {rank})"
            )


def _pairs(
    tensors: Mapping[str, StoredTensor],
) -> Iterator[tuple[str, tuple[StoredTensor | None, StoredTensor | None]]]:
    stems = dict.fromkeys(name.removesuffix(_PARTS[0]).removesuffix(_PARTS[1]) for name in tensors)
    for stem in stems:
        first, second = (tensors.get(stem + part) for part in _PARTS)
        yield module_of(stem), (first, second)


def _on(name: str, source: Source, reference: Checkpoint, tensors: Mapping[str, StoredTensor]) -> Checkpoint:
    """The reference under the adapter's name, with the low-rank terms as its only parameters."""
    report = replace(
        reference.report,
        name=name,
        model=source.model,
        revision=source.revision,
        parameters=sum(tensor.numbers for tensor in tensors.values()),
        adapter_of=reference.report.name,
        quantised=None,
    )
    return replace(reference, report=report)


def is_adapter(source: Source) -> bool:
    """Whether a directory or a hub's repository holds an adapter, perhaps beside a model; False if it is not there."""
    try:
        return _optional_file(source.model, source.revision, CONFIG) is not None
    except (OSError, ValueError):
        return False


def has_tokenizer(source: Source) -> bool:
    """Whether an adapter brings a tokenizer; otherwise it uses its reference's."""
    return _optional_file(source.model, source.revision, "tokenizer_config.json") is not None


def _with_own_tokenizer(adapter: Checkpoint, source: Source) -> Checkpoint:
    if has_tokenizer(source):
        tokenizer = read_tokenizer(source.model, source.revision)
        end = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
        tokens, rowless = tokens_of(tokenizer, adapter.report.vocab_size)
        adapter = replace(adapter, tokens=tokens, rowless=rowless, end_ids=adapter.end_ids | end)
        own = read_template(tokenizer)
    else:
        file = _optional_file(source.model, source.revision, "chat_template.jinja")
        own = file.read_text(encoding="utf-8") if file else None
    return replace(adapter, chat_template=own if own is not None else adapter.chat_template)
