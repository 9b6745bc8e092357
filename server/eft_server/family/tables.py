"""The output of `eft check`: the members and their memory, the vocabulary, warnings and vLLM's options."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eft_server.family.file import ServerConfig
from eft_server.family.inspection import FamilyReport, MemberReport
from eft_server.family.templates import MemberTemplate, family_voices
from eft_server.sizes import in_words

if TYPE_CHECKING:
    from eft_server.engine.launcher.step_memory import StepMemory

__all__ = ["print_options", "print_prompts", "print_report", "print_sampling", "print_step"]

KV_TOKENS = 1000
_SHOWN_CHARACTERS = 160
_CONVERSATION = ({"role": "user", "content": "What is the capital of France?"},)


def print_report(console: Console, report: FamilyReport, options: Mapping[str, Any]) -> None:
    """Print the members and their memory under vLLM's options (dtype, tensor parallelism)."""
    console.print(_member_table(report, options))
    shared, size = report.vocabulary.shared_count, report.vocabulary.size
    console.print(f"Vocabulary: {shared:,} of {size:,} ids are shared; the other ids cannot be generated.")
    console.print(f"Texts end with the ids {', '.join(map(str, report.end_ids)) or '(none)'}.")
    for warning in report.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))


def print_step(console: Console, step: "StepMemory") -> None:
    """Print the memory for the logits of a step."""
    kinds = {"": step.sampled, " with drafts": step.drafted, " for prompts' log-probabilities": step.prompts}
    needed = ", ".join(f"{in_words(size)}{kind}" for kind, size in kinds.items() if size is not None)
    console.print(
        f"A step takes up to {step.requests:,} requests and {step.tokens:,} tokens; "
        f"its logits need no more than {needed}."
    )


def print_sampling(console: Console, config: ServerConfig, options: Mapping[str, Any]) -> None:
    """Print the default sampling of requests."""
    stated: Mapping[str, Any] = options.get("override_generation_config") or {}
    said = ", ".join(f"{name} {value:g}" for name, value in stated.items()) or "temperature 1, nothing else"
    console.print(f"Default sampling of requests: {said} (defaults.sampling: {config.defaults.sampling}).")


def print_prompts(
    console: Console,
    config: ServerConfig,
    templates: Mapping[str, MemberTemplate],
    own_tokenizers: Collection[str],
) -> None:
    """Print how each member reads a short conversation."""
    table = Table("Members", "Template", "Tokens", "Text", title="Prompts", title_justify="left")
    for voice in family_voices(config.family, templates, own_tokenizers):
        names = [config.family.names[place] for place in voice.members]
        text, ids = voice.read(_CONVERSATION, {})
        origin = "\n".join(dict.fromkeys(templates[name].origin for name in names))
        table.add_row("\n".join(names), origin, str(len(ids)), Text(text, overflow="fold"), end_section=True)
    console.print(table)


def print_options(console: Console, options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Print the arguments and the environment that vLLM will get."""
    table = Table("Option", "Value", title="vLLM options", title_justify="left")
    for name, value in sorted(options.items()):
        table.add_row(name, Text(_shortened(repr(value)), overflow="fold"))
    for name, value in sorted(environment.items()):
        table.add_row(f"${name}", Text(_shortened(value), overflow="fold"))
    console.print(table)


def _member_table(report: FamilyReport, options: Mapping[str, Any]) -> Table:
    gpus = options.get("tensor_parallel_size") or 1
    dtype = _dtype(options, "dtype")
    weights = [member.weight_bytes(dtype) * member.weight_share(gpus) for member in report.loaded]
    kv = [_kv_bytes(member, options) * member.kv_share(gpus) for member in report.loaded]
    title = f"Memory per GPU, over {gpus} GPUs" if gpus > 1 else "Memory"
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("Member", "total")
    table.add_column("Checkpoint", overflow="fold")
    table.add_column("Architecture", overflow="fold")
    if gpus > 1:
        table.add_column("On each GPU")
    table.add_column("Parameters", f"{sum(m.parameters for m in report.loaded):,}", justify="right")
    bound = "up to " if any(member.weights_are_bounded for member in report.loaded) else ""
    table.add_column("Weights", f"{bound}{in_words(sum(weights))}", justify="right")
    table.add_column(f"KV per {KV_TOKENS:,} tokens", in_words(sum(kv)), justify="right")
    names = [*(member.name for member in report.members), "(draft)"]
    for name, member, weight, cache in zip(names, report.loaded, weights, kv, strict=False):
        placed = (f"1/{gpus}" if member.sharded else "whole",) if gpus > 1 else ()
        row = (name, Text(member.model), _kind(member), *placed, f"{member.parameters:,}")
        bound = "up to " if member.weights_are_bounded else ""
        table.add_row(*row, f"{bound}{in_words(weight)}", in_words(cache))
    return table


def _kind(member: MemberReport) -> str:
    if member.adapter_of:
        return f"adapter on {member.adapter_of}"
    return member.architecture + (f" ({member.quantised.scheme})" if member.quantised else "")


def _kv_bytes(member: MemberReport, options: Mapping[str, Any]) -> int:
    return member.kv_bytes(KV_TOKENS, _dtype(options, "kv_cache_dtype") or _dtype(options, "dtype"))


def _dtype(options: Mapping[str, Any], key: str) -> str | None:
    """The dtype that the options name; None where each checkpoint keeps its own."""
    dtype = str(options.get(key, "auto")).removeprefix("torch.")
    return None if dtype == "auto" else dtype


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"
