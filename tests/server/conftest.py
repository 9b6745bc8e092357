"""Family files and checkpoints without weights, written on the spot."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eft_server.family.file import ServerConfig
from eft_server.family.load import load_config

WORDS = tuple(f"w{index}" for index in range(20))
SPECIAL = ("<bos>", "<eos>")

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 32,
    "bos_token_id": 20,
    "eos_token_id": 21,
    "pad_token_id": None,
    "dtype": "float32",
}

WriteFamily = Callable[..., Path]
WriteCheckpoint = Callable[..., Path]


@pytest.fixture(autouse=True)
def vllms_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run in this process start no fork server in it."""
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


@pytest.fixture
def words() -> tuple[str, ...]:
    """The ordinary tokens that a checkpoint has by default, with the ids from 0 on."""
    return WORDS


@pytest.fixture
def special() -> tuple[str, ...]:
    """The special tokens that follow them: begin and end of text."""
    return SPECIAL


@pytest.fixture
def shape() -> dict[str, Any]:
    """The sizes that a checkpoint has by default."""
    return dict(SHAPE)


@pytest.fixture
def write_family(tmp_path: Path) -> WriteFamily:
    """Write a family file: two experts on one reference, its top-level keys replaced by what is given."""

    def write(**keys: Any) -> Path:
        family: dict[str, Any] = {
            "name": "fam",
            "base": "./base",
            "references": {"small": "./small"},
            "experts": {"helpful": "./helpful", "harmless": "./harmless"},
        }
        family |= keys
        path = tmp_path / "family.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in family.items() if v is not None}, sort_keys=False))
        return path

    return write


@pytest.fixture
def make_config(write_family: WriteFamily) -> Callable[..., ServerConfig]:
    """Load such a family."""
    return lambda **keys: load_config(write_family(**keys))


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> WriteCheckpoint:
    """Write a config and a word-level tokenizer as a member's directory."""

    def write(
        name: str,
        model_type: str = "llama",
        words: Iterable[str] = WORDS,
        special: Iterable[str] = SPECIAL,
        chat_template: str | dict[str, str] | None = "{{ messages }}",
        **shape: Any,
    ) -> Path:
        from transformers import CONFIG_MAPPING

        config = CONFIG_MAPPING[model_type](**(SHAPE | shape))
        config.save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name, tuple(words), tuple(special), chat_template)
        return tmp_path / name

    return write


def save_tokenizer(
    folder: Path, words: tuple[str, ...], special: tuple[str, ...], template: str | dict[str, str] | None
) -> None:
    """The words get the ids from 0 on, the special tokens those that follow; the second one ends texts."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[1])
    fast.chat_template = template
    fast.save_pretrained(folder)
