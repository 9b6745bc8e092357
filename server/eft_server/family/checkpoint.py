"""One member's checkpoint, as its config and tokenizer describe it: no weights are read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eft_server.errors import ConfigError, FamilyError
from eft_server.family import hub
from eft_server.family.family import Source
from eft_server.family.safetensors import StoredTensor, read_header
from eft_server.family.vocabulary import Tokens

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig

__all__ = [
    "Checkpoint",
    "Linears",
    "MemberReport",
    "Quantised",
    "bytes_per_number",
    "linear_layers",
    "read_checkpoint",
    "read_generation_config",
    "read_template",
    "read_tokenizer",
    "tokens_of",
]

_UNSTATED_CONTEXT = 2048
"""vLLM's assumption about a checkpoint that does not say how many tokens it can read."""

_PLAIN = frozenset({"BF16", "F16", "F32", "F64"})
"""The dtypes of safetensors whose numbers the engine converts to its own dtype."""

_BYTES = {"float64": 8, "float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


@dataclass(frozen=True)
class MemberReport:
    """One member's shape and memory.

    Attributes:
        name: The member's name in the family.
        model: The directory or hub id.
        revision: The hub revision, None for the newest and for directories.
        architecture: The model class that the checkpoint names.
        parameters: Number of parameters, tied ones counted once.
        attention_heads: Query heads of a layer.
        kv_heads: Key/value heads of a layer; 1 where it caches one compressed row instead.
        kv_bytes_per_token: Size of one token's keys and values over all layers, in the checkpoint's dtype.
        vocab_size: Width of a row of logits, padding included.
        final_logit_softcapping: The cap of the model's logits, None if it does not cap them.
        max_position_embeddings: The longest text that it reads, in tokens.
        dtype: The dtype that the checkpoint states.
        sharded: Under tensor parallelism, spread over the GPUs instead of replicated on each.
        adapter_of: The reference that this member is an adapter on, if it is one: its parameters are only the
            low-rank terms, everything else is the reference's.
        quantised: How its weights are packed, None where they are not.
    """

    name: str
    model: str
    revision: str | None
    architecture: str
    parameters: int
    attention_heads: int
    kv_heads: int
    kv_bytes_per_token: int
    vocab_size: int
    final_logit_softcapping: float | None
    max_position_embeddings: int
    dtype: str
    sharded: bool = False
    adapter_of: str | None = None
    quantised: "Quantised | None" = None

    @property
    def weights_are_bounded(self) -> bool:
        """Whether `weight_bytes` is only an upper bound, because the sizes of packed weights could not be read."""
        return self.quantised is not None and self.quantised.packed_bytes is None

    def weight_bytes(self, dtype: str | None = None) -> int:
        """Size of all weights, unpacked ones in the checkpoint's dtype or in another."""
        size = bytes_per_number(dtype or self.dtype)
        if self.quantised is None or self.quantised.packed_bytes is None:
            return self.parameters * size
        return self.quantised.packed_bytes + self.quantised.plain_numbers * size

    def kv_bytes(self, tokens: int, dtype: str | None = None) -> int:
        """Size of the keys and values of a number of tokens, in the checkpoint's dtype or in another."""
        numbers = self.kv_bytes_per_token // bytes_per_number(self.dtype)
        return tokens * numbers * bytes_per_number(dtype or self.dtype)

    def weight_share(self, gpus: int) -> float:
        """The share of the weights that each of the GPUs holds."""
        return 1 / gpus if self.sharded else 1.0

    def kv_share(self, gpus: int) -> float:
        """The share of the keys and values that each of the GPUs holds: at least one head, copied if there are few."""
        return max(self.kv_heads // gpus, 1) / self.kv_heads if self.sharded else 1.0


@dataclass(frozen=True)
class Quantised:
    """A quantised checkpoint's scheme and sizes, from its files' headers.

    Attributes:
        scheme: Its name in the checkpoint.
        packed_bytes: Size of the integers and 8-bit floats, None where the headers could not be read.
        plain_numbers: Number of ordinary floats beside them.
    """

    scheme: str
    packed_bytes: int | None = None
    plain_numbers: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A member's report, with its tokenizer's ids and template.

    Attributes:
        report: Shape and memory.
        tokens: The ids and what they mean.
        rowless: The tokens for which the model has no embedding row, by id: it cannot read them.
        end_ids: The ids with which it ends a text.
        chat_template: Its Jinja source, None where the tokenizer has none.
    """

    report: MemberReport
    tokens: Tokens
    rowless: Mapping[int, str]
    end_ids: frozenset[int]
    chat_template: str | None


def bytes_per_number(dtype: str) -> int:
    """Size of one number of a dtype by its name in torch or vLLM.

    Raises:
        ConfigError: The dtype is not known.
    """
    if dtype.startswith("fp8"):
        return 1
    if dtype not in _BYTES:
        raise ConfigError(f"the size of dtype {dtype!r} is not known; known: {', '.join(_BYTES)}, fp8")
    return _BYTES[dtype]


def read_checkpoint(name: str, source: Source, *, sharded: bool = False) -> Checkpoint:
    """Read a member's config and tokenizer, from its directory or through the hub and its cache.

    Raises:
        FamilyError: It cannot be read, or is not a decoder that generates text; the message says what to do.
    """
    from transformers import AutoConfig

    _require_directory(name, source)
    hub.require_cached(_named(name, source), source)
    try:
        config = AutoConfig.from_pretrained(source.model, revision=source.revision, trust_remote_code=False)
        _refuse_other_than_decoders(name, source, config)
        tokenizer = read_tokenizer(source.model, source.revision)
    except (OSError, ValueError, ImportError, KeyError) as error:
        if isinstance(error, FamilyError):
            raise
        raise FamilyError(f"{_named(name, source)}: {_advice(source, error)}") from error
    text = config.get_text_config()
    end_ids = _end_ids(source, config, tokenizer)
    report = _report(name, source, config, sharded)
    tokens, rowless = tokens_of(tokenizer, text.vocab_size)
    return Checkpoint(report, tokens, rowless, end_ids, read_template(tokenizer))


def read_tokenizer(model: str, revision: str | None) -> Any:
    """A tokenizer; code from its checkpoint is not run."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)


def read_template(tokenizer: Any) -> str | None:
    """A tokenizer's chat template, None where it has none.

    If there are several, transformers chooses "default", or "tool_use" where there are tools: here both become one
    template, so that the renderer need not choose.
    """
    template = tokenizer.chat_template
    if not isinstance(template, Mapping):
        return template if isinstance(template, str) else None
    usual, with_tools = template.get("default"), template.get("tool_use")
    if usual is None or with_tools is None:
        return usual
    # The plus signs keep Jinja from stripping white space of either; it always drops the last line end of each.
    with_tools, usual = with_tools.removesuffix("\n"), usual.removesuffix("\n")
    return f"{{%+ if tools +%}}{with_tools}{{%+ else +%}}{usual}{{%+ endif %}}"


def _named(name: str, source: Source) -> str:
    return f"member {name!r} ({source})"


def _require_directory(name: str, source: Source) -> None:
    path = Path(source.model)
    if not path.is_absolute():
        return
    if not path.is_dir():
        raise FamilyError(f"{_named(name, source)}: there is no such directory")
    if not (path / "config.json").is_file():
        raise FamilyError(
            f"{_named(name, source)}: the directory holds no config.json, so it is not a checkpoint"
        )


def _refuse_other_than_decoders(name: str, source: Source, config: "PreTrainedConfig") -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if config.is_encoder_decoder:
        raise FamilyError(f"{_named(name, source)}: it is an encoder-decoder; members must be decoders")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = config.model_type
        raise FamilyError(f"{_named(name, source)}: {kind!r} is not a causal language model; members must be")


def _report(name: str, source: Source, config: "PreTrainedConfig", sharded: bool) -> MemberReport:
    text = config.get_text_config()
    dtype = str(config.dtype or text.dtype or "float32").removeprefix("torch.")
    if dtype not in _BYTES:
        raise FamilyError(
            f"{_named(name, source)}: the dtype {dtype!r} is not supported; use {', '.join(_BYTES)}"
        )
    return MemberReport(
        name=name,
        model=source.model,
        revision=source.revision,
        architecture=_architecture(config),
        parameters=_count_parameters(config),
        attention_heads=text.num_attention_heads,
        kv_heads=_kv_heads(text),
        kv_bytes_per_token=_kv_numbers_per_token(text) * bytes_per_number(dtype),
        vocab_size=text.vocab_size,
        final_logit_softcapping=getattr(text, "final_logit_softcapping", None),
        max_position_embeddings=getattr(text, "max_position_embeddings", None) or _UNSTATED_CONTEXT,
        dtype=dtype,
        sharded=sharded,
        quantised=_quantised(source, config),
    )


def _quantised(source: Source, config: "PreTrainedConfig") -> Quantised | None:
    stated = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if stated is None:
        return None
    scheme = str(stated.get("quant_method") if isinstance(stated, dict) else stated.quant_method)
    tensors = _stored_tensors(source)
    if not tensors:
        return Quantised(scheme)
    plain = [tensor for tensor in tensors if tensor.dtype in _PLAIN]
    packed = sum(tensor.size_bytes for tensor in tensors if tensor.dtype not in _PLAIN)
    return Quantised(scheme, packed, sum(tensor.numbers for tensor in plain))


def _stored_tensors(source: Source) -> list[StoredTensor]:
    """The tensors of a checkpoint whose files are on this machine; none where they are only on the hub."""
    try:
        index = _cached(source, "model.safetensors.index.json")
        names = {"model.safetensors"}
        if index is not None:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [_cached(source, name) for name in sorted(names)]
        return (
            [tensor for file in files if file for tensor in read_header(file).values()] if all(files) else []
        )
    except (KeyError, ValueError):
        return []


def _cached(source: Source, filename: str) -> Path | None:
    """A file of a checkpoint if it is on this machine; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    local = Path(source.model) / filename
    if Path(source.model).is_absolute():
        return local if local.is_file() else None
    found = try_to_load_from_cache(source.model, filename, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def _architecture(config: "PreTrainedConfig") -> str:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    usual: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return str((config.architectures or [usual.__name__])[0])


def _count_parameters(config: "PreTrainedConfig") -> int:
    """parameters() yields tied weights once."""
    return sum(parameter.numel() for parameter in _skeleton(config).parameters())


def _skeleton(config: "PreTrainedConfig") -> Any:
    """The model without memory behind it."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@dataclass(frozen=True)
class Linears:
    """The linear layers that an adapter may change.

    Attributes:
        shapes: Inputs and outputs of each, by its name in transformers.
        head: The name of the output layer.
        mixtures: The names of the mixture-of-experts blocks.
    """

    shapes: Mapping[str, tuple[int, int]]
    head: str | None
    mixtures: tuple[str, ...]

    def why_not(self, module: str) -> str:
        """Why a module is not among them, for a message."""
        if module == self.head or "embed" in module.rpartition(".")[2]:
            return "an embedding or the output head, which adapters share with their reference"
        if module.startswith(tuple(f"{block}." for block in self.mixtures)):
            return "inside a mixture-of-experts block, where adapters are not supported"
        return "which is not a linear layer of the reference"


def linear_layers(source: Source) -> Linears:
    """The linear layers of a checkpoint that has been read."""
    return _linear_layers(source.model, source.revision)


@lru_cache(maxsize=64)
def _linear_layers(model: str, revision: str | None) -> Linears:
    from torch import nn
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    modules = dict(_skeleton(config).named_modules(remove_duplicate=False))
    outputs = modules[""].get_output_embeddings()
    head = next((name for name, module in modules.items() if module is outputs), None)
    mixtures = tuple(name for name, module in modules.items() if hasattr(module, "experts"))
    inside = tuple(f"{name}." for name in mixtures)
    shapes = {
        name: (module.in_features, module.out_features)
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and module is not outputs and not name.startswith(inside)
    }
    return Linears(shapes, head, mixtures)


def _kv_heads(text: Any) -> int:
    if getattr(text, "kv_lora_rank", None):
        return 1
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    own = getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None)
    return int(own or text.num_attention_heads)


def _kv_numbers_per_token(text: Any) -> int:
    layers: int = text.num_hidden_layers
    if getattr(text, "kv_lora_rank", None):
        # Multi-head latent attention caches one compressed row per layer instead of each head's keys and values.
        return layers * int(text.kv_lora_rank + text.qk_rope_head_dim)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * layers * _kv_heads(text) * int(head_dim)


def tokens_of(tokenizer: Any, rows: int) -> tuple[Tokens, dict[int, str]]:
    """The tokenizer's ids as far as the model has rows for them, and those beyond."""
    known = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    contents = {index: token for index, token in known if index < rows}
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    tokens = Tokens(contents, frozenset(index for index in added if index < rows))
    return tokens, {index: token for index, token in known if index >= rows}


def read_generation_config(source: Source) -> "GenerationConfig":
    """A checkpoint's generation config.

    Raises:
        OSError: It has no such file.
    """
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(source.model, revision=source.revision or "main")


def _end_ids(source: Source, config: "PreTrainedConfig", tokenizer: Any) -> frozenset[int]:
    try:
        stated = read_generation_config(source).eos_token_id
    except OSError:
        # The file is optional; as in vLLM, the config's field of the same name takes its place.
        stated = config.eos_token_id
    ids = stated if isinstance(stated, list) else [stated]
    return frozenset(index for index in (*ids, tokenizer.eos_token_id) if index is not None)


def _advice(source: Source, error: BaseException) -> str:
    """What went wrong and what to do."""
    if words := hub.advice(source, error):
        return words
    if "trust_remote_code" in str(error):
        return (
            "needs code from its repository, which is never run: use a checkpoint that transformers supports"
        )
    return f"cannot be read: {str(error).strip() or type(error).__name__}"
