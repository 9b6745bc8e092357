"""The targets: engines and the loop, each in a separate process, all alive at once so that rounds interleave."""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

import psutil

from eft_server.bench.loop import TransformersLoop
from eft_server.engine.launcher.fork_server import process_context
from eft_server.engine.launcher.launch import environment
from eft_server.engine.launcher.plan import EnginePlan
from eft_server.engine.message import KEY, extra_args
from eft_server.family.file import ServerConfig

READY_TIMEOUT_S = 900
"""A large engine on a slow disk may take minutes to start."""


@dataclass(frozen=True)
class Job:
    """One measurement: tokens generated after each prompt, as one batch. A single token measures prefill.

    Attributes:
        prompts: token ids.
        tokens: number of tokens to generate after each.
        vectors: for the composite, `Coefficients.numbers` of the requests, in turns; None for the defaults.
        skipped: for the composite, the number of first prompt tokens that each member skips; None for none.
    """

    prompts: Sequence[Sequence[int]]
    tokens: int
    vectors: Sequence[tuple[float, ...]] | None = None
    skipped: tuple[int, ...] | None = None

    @property
    def reads(self) -> bool:
        """Whether this measures prefill."""
        return self.tokens == 1

    @property
    def counted(self) -> int:
        """The number of tokens in the reported rate: those generated, or for prefill those read."""
        return sum(len(prompt) if self.reads else self.tokens for prompt in self.prompts)

    def extra_args(self, index: int, defaults: Sequence[float] | None) -> dict[str, Any]:
        """The extra_args of one prompt, as the server sends them; `defaults` is the family's vector."""
        prompt = self.prompts[index]
        numbers = self.vectors[index % len(self.vectors)] if self.vectors is not None else defaults
        if numbers is None:
            return {}
        own = None if self.skipped is None else [prompt[count:] for count in self.skipped]
        return extra_args(numbers, own)


@dataclass(frozen=True)
class Drafts:
    """Number of tokens drafted in a job, and of those accepted."""

    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Timing:
    """A job's time in seconds, and its drafts."""

    seconds: float
    drafts: Drafts = Drafts()


class Timed(Protocol):
    """A target that can time a job."""

    def time(self, job: Job) -> Timing:
        """Run a job."""


class Generator(Protocol):
    """A text generator, whose output does not matter here."""

    def generate(self, job: Job) -> None:
        """Run a job to its end."""

    def drafts(self) -> Drafts:
        """All drafts so far."""


class Target:
    """A generator in a separate process."""

    def __init__(self, name: str, build: Callable[..., Generator], *arguments: Any) -> None:
        self.name = name
        context = process_context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, arguments))  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Block until it has loaded.

        Raises:
            RuntimeError: it did not start.
        """
        if not self._pipe.poll(READY_TIMEOUT_S) or self._receive() != "ready":
            raise RuntimeError(f"{self.name} did not start within {READY_TIMEOUT_S} s")

    def time(self, job: Job) -> Timing:
        """Run a job."""
        self._pipe.send(job)
        timing: Timing = self._receive()
        return timing

    def close(self) -> None:
        """Kill it and the processes that it started; there is nothing to save."""
        if self._process.pid is None or not self._process.is_alive():
            return
        # Processes from the fork server are not its children, and end by themselves.
        _kill_children(self._process.pid)
        self._process.kill()
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} died: its output is above") from None


@dataclass(frozen=True)
class Variant:
    """A target with changed jobs.

    Attributes:
        target: the target.
        changes: the attributes of the job to change.
    """

    target: Target
    changes: Mapping[str, Any]

    def time(self, job: Job) -> Timing:
        """Run a job."""
        return self.target.time(replace(job, **self.changes))


def _serve(pipe: Connection, build: Callable[..., Generator], arguments: Sequence[Any]) -> None:
    try:
        generator = build(*arguments)
        pipe.send("ready")
        while True:
            pipe.send(_timing(generator, pipe.recv()))
    except (EOFError, BrokenPipeError):
        return  # The parent is gone, perhaps killed.
    finally:
        # Otherwise the interpreter would wait for an engine's processes for ever.
        _kill_children(os.getpid())
        for child in multiprocessing.active_children():
            child.kill()


def _timing(generator: Generator, job: Job) -> Timing:
    before, start = generator.drafts(), time.perf_counter()
    generator.generate(job)
    seconds, after = time.perf_counter() - start, generator.drafts()
    return Timing(seconds, Drafts(after.drafted - before.drafted, after.accepted - before.accepted))


def _kill_children(process: int) -> None:
    with suppress(psutil.NoSuchProcess):  # It has died, and its error is shown above.
        for child in psutil.Process(process).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # A worker ends by itself once its engine is gone.
                child.kill()


_QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
"""Show only errors, since half a dozen engines start at once."""


class Engine:
    """vLLM, offline; greedy."""

    def __init__(self, options: Mapping[str, Any], variables: Mapping[str, str]) -> None:
        from vllm import LLM

        with environment({**variables, **_QUIET}):
            # vLLM's statistics count the drafts.
            self._drafting = bool(options.get("speculative_config"))
            self._engine = LLM(**options, disable_log_stats=not self._drafting)
        self._defaults = options.get("hf_overrides", {}).get(KEY, {}).get("defaults")

    def generate(self, job: Job) -> None:
        """Run a job to its end."""
        from vllm import SamplingParams

        greedy: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": job.tokens,
            "ignore_eos": True,
            "detokenize": False,
        }
        params: Any = [
            SamplingParams(**greedy, extra_args=job.extra_args(i, self._defaults))
            for i in range(len(job.prompts))
        ]
        prompts: Any = [{"prompt_token_ids": list(prompt)} for prompt in job.prompts]
        self._engine.generate(prompts, params, use_tqdm=False)

    def drafts(self) -> Drafts:
        """All drafts so far, as vLLM counts them."""
        if not self._drafting:
            return Drafts()
        counted: dict[str, int] = {
            metric.name: getattr(metric, "value", 0) for metric in self._engine.get_metrics()
        }
        prefix = "vllm:spec_decode_num_"
        return Drafts(counted[f"{prefix}draft_tokens"], counted[f"{prefix}accepted_tokens"])


_COMPOSITE_ONLY = ("hf_overrides", "scheduler_cls", "worker_cls", "speculative_config", "served_model_name")


def composite(name: str, plan: EnginePlan) -> Target:
    """The family, as this package serves it."""
    return Target(name, Engine, dict(plan.options), dict(plan.environment))


def member(name: str, config: ServerConfig, plan: EnginePlan) -> Target:
    """A single member in plain vLLM, otherwise with the composite's settings."""
    spec = config.family[name].checkpoint
    options = {key: value for key, value in plan.options.items() if key not in _COMPOSITE_ONLY}
    options |= {"model": spec.model, "revision": spec.revision, "tokenizer_revision": spec.revision}
    variables = {key: value for key, value in plan.environment.items() if "NANS" not in key}
    return Target(name, Engine, options, variables)


def loop(name: str, config: ServerConfig, coefficients: Sequence[float]) -> Target:
    """All members in transformers, one after the other, with KV caches, as research code does it."""
    models = [config.family[member].checkpoint.model for member in config.family.names]
    dtype = str(config.vllm.get("dtype", "auto"))
    weightless = config.vllm.get("load_format") == "dummy"
    return Target(name, TransformersLoop, models, list(coefficients), dtype, weightless)
