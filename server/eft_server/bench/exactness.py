"""`python -m eft_server.bench.exactness`: the engine against plain transformers, on this machine's device.

In float32, and in a lower precision against the same precision: roundings differ, so there the tolerance is a multiple
of the rounding error of plain transformers.

Every request of a batch has different weights; the batch is run twice, the second time from the prefix cache.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eft_client.progress import Progress
from eft_server.behaviour.resolve import Behaviours
from eft_server.bench.prompts import random_ids
from eft_server.engine.launcher import fork_server
from eft_server.engine.message import KEY, Manifest, MemberWeights, extra_args
from eft_server.environment import log_vllm
from eft_server.exits import errors_in_words
from eft_server.family.file import ServerConfig
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config
from eft_server.family.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

    from eft_server.engine.launcher.plan import EnginePlan

PROMPT_TOKENS = (3, 64)
SHARED_TOKENS = 256
"""Length of a prefix that half of the prompts share, at most a quarter of the context: the prefix cache holds what one
request's members have read, and other requests may need more members."""

LOGPROBS = 5
TOLERANCE_NATS = 1e-3
"""Largest difference of a log-probability from the reference, in nats, in float32."""

TOLERANCE_NOISES = 2.0
"""Largest difference of a request's log-probabilities from the reference in lower precision, as the mean over its
positions and a multiple of the dtype's own error: the distance of plain transformers in that dtype from float32."""

console = Console()


@dataclass(frozen=True)
class Case:
    """One request: token ids, a coefficient for each member, and whether its prompt is scored instead of continued."""

    prompt: tuple[int, ...]
    coefficients: tuple[float, ...]
    vector: tuple[float, ...]
    scores_prompt: bool


@dataclass(frozen=True)
class Said:
    """The engine's output at one position of a case.

    Attributes:
        position: the place of the previous token, in prompt and continuation together.
        logprobs: id -> log-probability.
        chosen: the greedily generated id; None in a prompt.
    """

    position: int
    logprobs: Mapping[int, float]
    chosen: int | None


@dataclass(frozen=True)
class EngineAnswer:
    """A case's tokens (prompt and continuation), and the engine's output at its positions."""

    tokens: tuple[int, ...]
    said: tuple[Said, ...]


@dataclass
class Difference:
    """The differences between the engine's log-probabilities and the reference's.

    Attributes:
        largest: the largest difference, in nats.
        compared: number of compared values.
        worse_tokens: number of greedy tokens that differ from the reference's.
        noises: the worst request's mean, as a multiple of the dtype's error; 0 in float32.
    """

    largest: float = 0.0
    compared: int = 0
    worse_tokens: int = 0
    noises: float = 0.0


def main(
    families: Annotated[
        list[str] | None, typer.Argument(help="Bundled names or YAML files (default: demo)")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the family file; may be repeated")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests in the batch", min=1, max=512)] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens to generate per request", min=1)] = 16,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference allowed. Default: 0.001 nats in float32; else twice the dtype's error"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Compare greedy tokens, log-probabilities and prompt log-probabilities with plain transformers in the same dtype.

    Logits are float32 in both, whatever dtype the members compute in.

    The exit status is 1 if a difference exceeds the tolerance, or if nothing came from the prefix cache.
    """
    log_vllm(None)
    facts, failed = list[dict[str, Any]](), False
    for family in families or ["demo"]:
        with errors_in_words():
            fork_server.start()
            found, dtype, cached = _compare(load_config(family, overrides or ()), requests, tokens)
        failed |= _print(family, dtype, found, tolerance)
        console.print(f"{cached:,} tokens of the second run's prompts came from the prefix cache.")
        failed |= not cached
        differences = {key: vars(value) for key, value in found.items()}
        facts.append({"family": family, "dtype": dtype, "cached_tokens": cached, **differences})
    if output is not None:
        output.write_text(json.dumps(facts, indent=1) + "\n")
    raise SystemExit(int(failed))


def _compare(config: ServerConfig, requests: int, tokens: int) -> tuple[dict[str, Difference], str, int]:
    from eft_server.engine.launcher.plan import plan

    report = inspect_family(config)
    planned = plan(config, report)
    manifest = Manifest(**planned.options["hf_overrides"][KEY])
    cases = list(_cases(config, report.vocabulary, requests, planned.options["max_model_len"]))
    with Progress() as progress:
        progress.say(f"{config.name}: starting the engine, which answers {requests} requests twice")
        dtype, runs, cached = _ask(planned, cases, tokens)
    found = {"generated": Difference(), "from the prefix cache": Difference(), "prompts": Difference()}
    unshared = list(manifest.unshared_ids())
    for title, answers in zip(("generated", "from the prefix cache"), runs, strict=True):
        with Progress() as progress:
            progress.say(f"{config.name}: plain transformers, {title}")
            rows = _reference(config, cases, answers, unshared, dtype)
            exact = rows if dtype == "float32" else _reference(config, cases, answers, unshared, "float32")
        costs = [_distance(answer, *pair) for answer, *pair in zip(answers, rows, exact, strict=True)]
        usual = sum(costs) / len(costs)
        for case, answer, row_TV, cost in zip(cases, answers, rows, costs, strict=True):
            difference = found["prompts" if case.scores_prompt else title]
            _hold_against(difference, answer, row_TV, max(cost, usual))
    return found, dtype, cached


def _cases(config: ServerConfig, vocabulary: Vocabulary, count: int, context: int) -> Iterator[Case]:
    """Requests for the plain base, for each expert, and for random weights, in turns."""
    shuffled, behaviours = random.Random(0), Behaviours(config)
    shared = random_ids(min(SHARED_TOKENS, context // 4), vocabulary, shuffled)
    for number in range(count):
        weights = {
            name: shuffled.choice((0.0, 0.3, 0.5, 1.0)) / len(config.experts) for name in config.experts
        }
        asked: dict[str, Any] | None = {"weights": weights}
        vector = behaviours.resolve(config.name, asked if number % 4 else {"scale": 0.0}).coefficients.numbers
        length = shuffled.randint(*PROMPT_TOKENS)
        begin = shared if number % 8 < 4 else []
        prompt = (*begin, *random_ids(length, vocabulary, shuffled))
        yield Case(prompt, vector[: len(config.family)], vector, scores_prompt=number % 3 == 2)


def _ask(
    planned: "EnginePlan", cases: Sequence[Case], tokens: int
) -> tuple[str, list[list[EngineAnswer]], int]:
    """The engine's answers, twice; its dtype; and the number of tokens that the second run took from the cache."""
    from vllm import SamplingParams

    from eft_server.engine.launcher.launch import open_offline

    engine = open_offline(planned)
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=1 if case.scores_prompt else tokens,
            ignore_eos=True,
            logprobs=LOGPROBS,
            prompt_logprobs=LOGPROBS if case.scores_prompt else None,
            extra_args=extra_args(case.vector),
        )
        for case in cases
    ]
    prompts: Any = [{"prompt_token_ids": list(case.prompt)} for case in cases]
    outputs = [engine.generate(prompts, params, use_tqdm=False) for _ in range(2)]
    runs = [[_answer(*pair) for pair in zip(cases, run, strict=True)] for run in outputs]
    cached = sum(output.num_cached_tokens or 0 for output in outputs[1])
    dtype = str(engine.llm_engine.model_config.dtype).removeprefix("torch.")
    engine.llm_engine.engine_core.shutdown()
    return dtype, runs, cached


def _answer(case: Case, output: Any) -> EngineAnswer:
    generated = tuple(output.outputs[0].token_ids)
    if case.scores_prompt:
        rows, first, chosen = output.prompt_logprobs[1:], 0, [None] * len(case.prompt)
    else:
        rows, first, chosen = output.outputs[0].logprobs, len(case.prompt) - 1, list(generated)
    said = (
        Said(first + index, {key: value.logprob for key, value in row.items()}, token)
        for index, (row, token) in enumerate(zip(rows, chosen, strict=False))
    )
    return EngineAnswer((*case.prompt, *generated), tuple(said))


def _reference(
    config: ServerConfig,
    cases: Sequence[Case],
    answers: Sequence[EngineAnswer],
    unshared: Sequence[int],
    dtype: str,
) -> list["torch.Tensor"]:
    """The reference log-probabilities (T, V) of each answer; the members run one after the other."""
    import torch

    totals: list[Any] = [None] * len(cases)
    for place, name in enumerate(config.family.names):
        model = _plain(config, name, getattr(torch, dtype))
        for index, (case, answer) in enumerate(zip(cases, answers, strict=True)):
            if case.coefficients[place]:
                with torch.inference_mode():
                    tokens = torch.tensor([answer.tokens], device=model.device)
                    logits_TV = model(tokens).logits[0].float().cpu()
                totals[index] = _added(totals[index], case.coefficients[place], logits_TV)
        del model
    steered = [any(case.coefficients[1:]) for case in cases]
    for total_TV, mixed in zip(totals, steered, strict=True):
        if mixed:
            total_TV[:, [key for key in unshared if key < total_TV.shape[-1]]] = -torch.inf
    return [total_TV.log_softmax(-1) for total_TV in totals]


def _plain(config: ServerConfig, name: str, dtype: "torch.dtype") -> Any:
    """A member in plain transformers, with logits in float32 and an adapter's terms added to its reference's layers."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    member = config.family[name]
    model = AutoModelForCausalLM.from_pretrained(member.checkpoint.model, dtype=dtype).to(device).eval()
    head = model.get_output_embeddings()
    head.forward = lambda x: torch.nn.functional.linear(
        x.float(), head.weight.float(), None if head.bias is None else head.bias.float()
    )
    if member.adapter is not None:
        _adapt(model, MemberWeights(name, member.adapter.model, member.adapter.revision))
    return model


def _adapt(model: Any, checkpoint: MemberWeights) -> None:
    """Add an adapter's terms, x ↦ scaling · B(Ax), by its names for the layers."""
    from safetensors.torch import load_file

    from eft_server.engine.worker.adapters import scaling_of
    from eft_server.family.adapter import WEIGHTS, adapter_file, module_of

    weights = load_file(adapter_file(checkpoint.model, checkpoint.revision, WEIGHTS))
    matrices = {
        (module_of(key), key.rsplit(".", 2)[1]): value.to(model.device) for key, value in weights.items()
    }
    for module in sorted({module for module, _ in matrices}):
        a_RI, b_OR = matrices[module, "lora_A"], scaling_of(checkpoint, module) * matrices[module, "lora_B"]
        layer = model.get_submodule(module)

        def added(_: Any, given: Any, product: Any, a_RI: Any = a_RI, b_OR: Any = b_OR) -> Any:
            return product + (given[0] @ a_RI.T.to(product.dtype)) @ b_OR.T.to(product.dtype)

        layer.register_forward_hook(added)


def _added(total_TV: Any, coefficient: float, logits_TV: "torch.Tensor") -> "torch.Tensor":
    if total_TV is None:
        return coefficient * logits_TV
    width = min(total_TV.shape[-1], logits_TV.shape[-1])
    total_TV[:, :width] += coefficient * logits_TV[:, :width]
    return total_TV  # type: ignore[no-any-return]


def _distance(answer: EngineAnswer, row_TV: "torch.Tensor", other_TV: "torch.Tensor") -> float:
    """The mean distance between two references, in nats, over the values in the engine's answer."""
    away = [
        abs(float(row_TV[said.position][key]) - float(other_TV[said.position][key]))
        for said in answer.said
        for key in said.logprobs
    ]
    return sum(away) / len(away)


def _hold_against(difference: Difference, answer: EngineAnswer, rows_TV: "torch.Tensor", cost: float) -> None:
    away = list[float]()
    for said in answer.said:
        row = rows_TV[said.position]
        away.extend(abs(value - float(row[key])) for key, value in said.logprobs.items())
        if said.chosen is not None and int(row.argmax()) != said.chosen:
            difference.worse_tokens += 1
    # A NaN or a missing value counts as infinitely far away: `max` would skip it.
    away = [math.inf if math.isnan(value) else value for value in away] or [math.inf]
    difference.compared += len(away)
    difference.largest = max(difference.largest, *away)
    if cost:
        difference.noises = max(difference.noises, sum(away) / len(away) / cost)


def _print(family: str, dtype: str, found: Mapping[str, Difference], tolerance: float | None) -> bool:
    """Print the differences, and return whether any exceeds the tolerance."""
    exact = dtype == "float32"
    allowed = tolerance if tolerance is not None else TOLERANCE_NATS if exact else TOLERANCE_NOISES
    table = Table("", "values compared", "largest difference, nats", "other greedy tokens")
    if not exact:
        table.add_column(f"worst request, as a multiple of the error of {dtype}")
    for title, difference in found.items():
        shown = [title, f"{difference.compared:,}", f"{difference.largest:.2g}", f"{difference.worse_tokens}"]
        table.add_row(*shown, *([] if exact else [f"{difference.noises:.2f}"]))
    within = all((item.largest if exact else item.noises) <= allowed for item in found.values())
    unit = "" if exact else f" times the error of {dtype}"
    table.title = f"{family}, {dtype}: {'within' if within else 'above'} the tolerance of {allowed:g}{unit}"
    console.print(table)
    return not within


if __name__ == "__main__":
    typer.run(main)
