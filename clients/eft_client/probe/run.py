"""`eft probe`: collect activations, fit probes, write the report and print what it says."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from eft_client.pairs.engine import opened
from eft_client.pairs.results import make_folder
from eft_client.probe.autoencoder import ACTIVE, PASSES, WIDTH, codes_of
from eft_client.probe.changes import Changes, measure_changes
from eft_client.probe.collection import collect, require_same_weights
from eft_client.probe.errors import ProbeError
from eft_client.probe.features import PosedRows, features_of, posed, token_counts, token_rows
from eft_client.probe.members import Probing, members_of_family, members_of_server
from eft_client.probe.options import ProbeOptions
from eft_client.probe.output.page import as_page
from eft_client.probe.output.tables import DIFFERENCE_HEADER, difference_rows, estimate_header, estimate_rows
from eft_client.probe.report import ProbeReport, as_json
from eft_client.probe.statistics.folds import require_prompts
from eft_client.probe.store import Store, Wanted
from eft_client.probe.study import Source, fits, probe
from eft_client.probe.summary import EXPERT, REFERENCE, TOKENS, Verdict, judged, sentence
from eft_client.progress import Progress
from eft_client.report.terminal import as_table
from eft_client.sync import EftClient

__all__ = ["run"]

_OWN_ENGINE = ("server.activations=true", "server.max_activation_bytes=268435456")
"""An engine that serves nobody else gives activations."""

Opened = Callable[..., AbstractContextManager[EftClient]]


def run(options: ProbeOptions, console: Console, opens: Opened = opened) -> ProbeReport:
    """Probe, write the report and print what it says.

    Args:
        options: The command's.
        console: Where sentences and tables go.
        opens: What gives a client, for tests.

    Raises:
        EftError: Something that was given is wrong, or the engine or the server does not do what is needed.
    """
    command = shlex.join(["eft", *sys.argv[1:]])
    require_prompts(options.examples.prompts, options.folds, options.data)
    make_folder(options.output, ProbeError)
    with ExitStack() as stack:
        stores, probing = _collected(options, opens, stack)
        changes = measure_changes(*probing.folders) if probing.folders else None
        report = _probed(options, probing, stores, changes)
    folder = options.output
    (folder / "summary.json").write_text(as_json(report, command), encoding="utf-8", errors="replace")
    as_page(report, command).write(folder / "report.html")
    for verdict in report.verdicts:
        _print(verdict, console)
    for note in report.notes:
        console.print(Text(note))
    console.print(Text(f"{folder}: report.html, summary.json, activations"))
    return report


def _collected(options: ProbeOptions, opens: Opened, stack: ExitStack) -> tuple[dict[str, Store], Probing]:
    """A full store for each way of pooling. An engine starts only where something is missing."""
    engine = _Engine(options, opens, stack)
    if options.url is None:
        probing = members_of_family(options.family or "", options.overrides, options.expert)
    else:
        probing = members_of_server(engine.client, options.model, options.expert)
    texts, stores = options.examples.texts, dict[str, Store]()
    for pool in dict.fromkeys(options.pool_of(target) for target in options.targets):
        wanted = _wanted(options, probing, pool)
        store = stack.enter_context(Store(options.output / "activations" / pool, wanted))
        done = sum(store.has(text.key) for text in texts)
        if options.url is not None or 0 < done < len(texts):
            require_same_weights(engine.client, texts, store)
        if done < len(texts):
            client = engine.client
            with Progress() as watcher:
                step = watcher.begin(f"activations (pool {pool})", len(texts), done=done)
                collect(client, texts, store, step)
        stores[pool] = store
    engine.close()
    return stores, probing


@dataclass
class _Engine:
    """A client that is opened when it is first needed."""

    options: ProbeOptions
    opens: Opened
    stack: ExitStack
    opened: EftClient | None = None
    mine: ExitStack = field(default_factory=ExitStack)

    @property
    def client(self) -> EftClient:
        if self.opened is None:
            options = self.options
            own = () if options.url is not None else (*_OWN_ENGINE, *_limits(options))
            self.stack.enter_context(self.mine)
            self.opened = self.mine.enter_context(
                self.opens(
                    options.family,
                    options.url,
                    (*own, *options.overrides),
                    model=options.model,
                    api_key_env=options.api_key_env,
                )
            )
        return self.opened

    def close(self) -> None:
        """Free what it holds, for probes need the memory."""
        self.mine.close()


def _limits(options: ProbeOptions) -> Iterator[str]:
    """The weights of `--over` are allowed by an engine that serves nobody else."""
    if options.weights:
        largest = max(2.0, *(abs(weight) for weight in options.weights))
        yield from (
            f"limits.weight.max={largest}",
            f"limits.weight.min={-largest}",
            f"limits.total={largest}",
        )


def _wanted(options: ProbeOptions, probing: Probing, pool: str) -> Wanted:
    return Wanted(
        model=probing.model,
        checkpoints=probing.signature,
        expert=probing.expert,
        reference=probing.reference,
        site=options.site,
        pool=pool,
        layers=options.asked_layers,
        rows=options.rows if pool == "none" else 1,
        texts=len(options.examples.texts),
        data=options.examples.digest,
        over=options.weights,
        seed=options.seed if pool == "none" else 0,
    )


def _probed(
    options: ProbeOptions, probing: Probing, stores: Mapping[str, Store], changes: Changes | None
) -> ProbeReport:
    posed_in = [
        (store := stores[options.pool_of(target)], posed(options.examples, store, target, weight))
        for target in options.targets
        for weight in (None, *(options.weights if target.endswith("reward") else ()))
    ]
    codes = _Codes(options, changes)
    with Progress() as watcher:
        verdicts = [_verdict(options, store, rows, codes, watcher) for store, rows in posed_in]
    notes = []
    if options.unused:
        notes.append(
            f"The last {options.unused:,} lines of the data are not used; --limit is {options.limit:,}."
        )
    if options.examples.alike:
        notes.append(f"{options.examples.alike} pairs of two equal answers were left out.")
    if repeated := options.examples.repeated:
        notes.append(
            f"{repeated:,} of {len(options.examples.texts):,} answers are given to several prompts, so that a probe "
            "may have met one before it is judged by it: look at the bag of tokens, which has met it, too."
        )
    if changes is None:
        notes.append("How much each layer's parameters changed is not known: the checkpoints are not here.")
    first = next(iter(stores.values()))
    return ProbeReport(
        examples=options.examples,
        wanted=first.wanted,
        verdicts=verdicts,
        changes=changes,
        settings=_settings(options, probing, stores),
        notes=notes,
    )


def _verdict(
    options: ProbeOptions, store: Store, rows: PosedRows, codes: "_Codes", watcher: Progress
) -> Verdict:
    sources = {
        EXPERT: _source(store, rows, store.wanted.expert),
        REFERENCE: _source(store, rows, store.wanted.reference),
        TOKENS: Source([0], lambda _: token_counts(rows)),
    }
    if options.autoencoder:
        sources[f"{EXPERT}'s codes"] = codes.source(store, rows, store.wanted.expert)
        sources[f"{REFERENCE}'s codes"] = codes.source(store, rows, store.wanted.reference)
    count = fits(sources, folds=options.folds, shuffles=options.shuffles)
    step = watcher.begin(f"probes ({rows.problem.target})", count)
    finding = probe(
        rows.problem,
        sources,
        folds=options.folds,
        shuffles=options.shuffles,
        seed=options.seed,
        advance=step,
    )
    notes = [f"{rows.left_out} rows have no finite target and were left out."] if rows.left_out else []
    return judged(finding, repeats=options.repeats, seed=options.seed, notes=notes)


def _source(store: Store, rows: PosedRows, member: str) -> Source:
    def at(layer: int) -> NDArray[np.float64]:
        return features_of(rows, store, partial(store.states, member, layer))

    return Source(store.layers, at)


@dataclass
class _Codes:
    """Codes of autoencoders, each trained once."""

    options: ProbeOptions
    changes: Changes | None
    known: dict[tuple[str, int], NDArray[np.float64]] = field(default_factory=dict)

    def source(self, store: Store, rows: PosedRows, member: str) -> Source:
        """The codes at the layers that changed most, or at all where that is not known."""
        layers = [layer for layer in store.layers if self.changes is None or layer in self.changes.most]
        used, _ = token_rows(rows.reads, store.wanted.rows)

        def at(layer: int) -> NDArray[np.float64]:
            if (member, layer) not in self.known:
                states = store.states(member, layer, used)
                self.known[member, layer] = codes_of(states, self.options.seed)
            codes = self.known[member, layer]
            return features_of(rows, store, lambda places: codes[np.searchsorted(used, places)])

        return Source(layers or store.layers, at)


def _settings(options: ProbeOptions, probing: Probing, stores: Mapping[str, Store]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "family": probing.model,
        "expert": probing.expert,
        "reference": probing.reference,
        "data": options.data,
        "site": options.site,
        "pool": ", ".join(stores),
        "folds": options.folds,
        "shuffles": options.shuffles,
        "resamples": options.repeats,
        "seed": options.seed,
    }
    if "none" in stores:
        settings["tokens of a text, at most"] = stores["none"].wanted.rows
    if options.autoencoder:
        settings["autoencoder"] = f"TopK, {WIDTH} × hidden features, {ACTIVE} of them active, {PASSES} passes"
    return settings


def _print(verdict: Verdict, console: Console) -> None:
    console.print(as_table(estimate_header(verdict), estimate_rows(verdict)))
    console.print(as_table(DIFFERENCE_HEADER, difference_rows(verdict)))
    for warning in verdict.warnings:
        console.print(Text(warning))
    console.print(Text(sentence(verdict)))
