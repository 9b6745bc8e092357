"""A family in this process, for programs that need no server: `load("demo").chat("Hello!")`."""

import asyncio
import atexit
import logging
import sys
import threading
import types
import weakref
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from typing_extensions import override

from eft_server.behaviour.resolve import Behaviours
from eft_server.environment import LogLevel, log_vllm, use_hub
from eft_server.errors import RequestError
from eft_server.family.file import ServerConfig
from eft_server.family.load import load_config

if TYPE_CHECKING:
    from eft_server.api.in_process import InProcess
    from eft_server.engine.launcher.plan import EnginePlan
    from eft_server.engine.launcher.stages import Stages

__all__ = ["Answer", "LoadedFamily", "load"]

T = TypeVar("T")
Messages: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A chat: OpenAI's messages, or the text of a single message of the user's."""

Prompt: TypeAlias = str | Sequence[int]
"""Text, or token ids."""

_CHAT = "/v1/chat/completions"
_COMPLETION = "/v1/completions"
_SCORE = "/v1/eft/score"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a request was answered with; printed, it is its text.

    Attributes:
        text: The first choice's text.
        body: All of it, as the server would have sent it: choices, usage, and the weights applied in `eft`.
    """

    text: str
    body: dict[str, Any]

    @override
    def __str__(self) -> str:
        return self.text


class LoadedFamily:
    """A family on an engine of its own; `load` makes one.

    Requests go through the same checks, handlers and errors as the server's. Methods may be called from several
    threads. Close it, or use it in a ``with`` statement, to stop the engine; the end of the program does, too.
    """

    def __init__(self, config: ServerConfig, plan: "EnginePlan", stages: "Stages") -> None:
        self._config = config
        self._loop = asyncio.new_event_loop()
        engine = AsyncExitStack()
        thread = threading.Thread(target=self._loop.run_forever, name="eft-engine", daemon=True)
        thread.start()
        self._close = weakref.finalize(self, _close, self._loop, thread, engine)
        try:
            with _without_main_module():
                self._server = self._wait(_open(engine, config, plan, stages))
        except BaseException:
            self.close()
            raise
        # Registered last, so it runs before multiprocessing would kill the engine at the end of the program.
        self._close.atexit = False
        atexit.register(self._close)

    @property
    def name(self) -> str:
        """The family's name."""
        return self._config.name

    @property
    def models(self) -> tuple[str, ...]:
        """Every name that a request's model may have: the family, its aliases, and each member alone."""
        return tuple(served.id for served in Behaviours(self._config).served_models())

    def close(self) -> None:
        """Stop the engine; a second call does nothing."""
        self._close()
        atexit.unregister(self._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def chat(
        self,
        messages: Messages,
        *,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        model: str | None = None,
        **fields: Any,
    ) -> Answer:
        """Answer a chat.

        Args:
            messages: OpenAI's messages, or the text of a single message of the user's.
            weights: A number for each expert; an expert that is not named counts 0. None means the model's own.
            scale: The factor on all weights; None means the model's own.
            model: The family (None), one of its aliases, or a member alone.
            fields: Any other field of a chat completion: temperature, max_tokens, seed, response_format, …

        Raises:
            RequestError: The request was refused, or failed.
        """
        return self.chat_many([messages], weights=weights, scale=scale, model=model, **fields)[0]

    def complete(
        self,
        prompt: Prompt,
        *,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        model: str | None = None,
        **fields: Any,
    ) -> Answer:
        """Continue text or token ids; arguments and errors are those of `chat`, and fields a completion's."""
        return self.complete_many([prompt], weights=weights, scale=scale, model=model, **fields)[0]

    def chat_many(
        self,
        chats: Iterable[Messages],
        *,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        model: str | None = None,
        **fields: Any,
    ) -> list[Answer]:
        """Answer several chats as a batch, all with the same arguments, which are those of `chat`."""
        common = _common(weights, scale, model, fields)
        return self.answer_many({"messages": _messages(chat), **common} for chat in chats)

    def complete_many(
        self,
        prompts: Iterable[Prompt],
        *,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        model: str | None = None,
        **fields: Any,
    ) -> list[Answer]:
        """Continue several prompts as a batch, all with the same arguments, which are those of `chat`."""
        common = _common(weights, scale, model, fields)
        return self.answer_many({"prompt": _prompt(prompt), **common} for prompt in prompts)

    def answer_many(self, bodies: Iterable[Mapping[str, Any]]) -> list[Answer]:
        """Answer several requests as a batch, each with weights of its own.

        Args:
            bodies: Requests as the server takes them: with `messages` chats, with `prompt` completions.

        Raises:
            RequestError: One of them was refused, or failed; the others are given up.
        """
        return self._wait(_answer_all(self._server, list(bodies)))

    def score(
        self,
        items: Iterable[Mapping[str, Any]],
        *,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        model: str | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Score given completions under the composite and its members; nothing is generated.

        Args:
            items: As the server takes them: `messages` or `prompt`, and `completion`.
            weights: As for `chat`.
            scale: As for `chat`.
            model: As for `chat`.
            fields: Any other field of the request: members, eft.

        Returns:
            What the server would have sent: an item of `data` for each completion.

        Raises:
            RequestError: The request was refused, or failed.
        """
        body = {"items": [dict(item) for item in items], **_common(weights, scale, model, fields)}
        return self._wait(_post(self._server, _SCORE, body))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._close.alive:
            work.close()
            raise RuntimeError(f"the family {self.name!r} is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def load(  # noqa: PLR0913 (the options of `eft serve` that matter here)
    family: str | Path,
    *,
    overrides: Sequence[str] = (),
    revision: str | None = None,
    offline: bool = False,
    cache_dir: str | Path | None = None,
    quiet: bool = False,
) -> LoadedFamily:
    """Start an engine for a family and return the family, ready to be asked.

    Args:
        family: A bundled family's name, or a family file.
        overrides: What replaces keys of the file, such as ``vllm.max_model_len=4096``.
        revision: The hub revision of the base; every other member keeps its own.
        offline: Read from the hub's cache alone.
        cache_dir: The hub's cache; None means HF_HUB_CACHE or HF_HOME/hub.
        quiet: Show nothing on stderr while the engine starts.

    Raises:
        ConfigError: The family file or an option is wrong.
        FamilyError: The checkpoints cannot be read, or are no family.
    """
    config = load_config(family, overrides, revision=revision)
    use_hub(offline=offline, cache_dir=None if cache_dir is None else Path(cache_dir))
    log_vllm(None, default=LogLevel.ERROR)
    from eft_server.engine.launcher.stages import Stages

    with Stages(quiet=quiet) as stages:
        stages.begin("importing vLLM and PyTorch")
        from eft_server.engine.launcher import fork_server

        fork_server.start()
        stages.begin("reading the members' configs and tokenizers")
        from eft_server.engine.launcher.plan import plan
        from eft_server.family.inspection import inspect_family

        report = inspect_family(config)
        for warning in report.warnings:
            _logger.warning("%s", warning)
        return LoadedFamily(config, plan(config, report), stages)


async def _open(
    engine: AsyncExitStack, config: ServerConfig, plan: "EnginePlan", stages: "Stages"
) -> "InProcess":
    from eft_server.api.in_process import open_in_process

    return await engine.enter_async_context(open_in_process(config, plan, stages))


def _close(loop: asyncio.AbstractEventLoop, thread: threading.Thread, engine: AsyncExitStack) -> None:
    asyncio.run_coroutine_threadsafe(engine.aclose(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Keep the engine's process from running the caller's script again, which multiprocessing's spawn would do."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


async def _answer_all(server: "InProcess", bodies: Sequence[Mapping[str, Any]]) -> list[Answer]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_answer(server, body)) for body in bodies]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _answer(server: "InProcess", body: Mapping[str, Any]) -> Answer:
    is_chat = "messages" in body
    answered = await _post(server, _CHAT if is_chat else _COMPLETION, body)
    choice = answered["choices"][0]
    return Answer((choice["message"]["content"] if is_chat else choice["text"]) or "", answered)


async def _post(server: "InProcess", path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answered = await server.post(path, body)
    if answered.status != 200:
        raise RequestError(answered.status, answered.body["error"])
    return answered.body


def _common(
    weights: Mapping[str, float] | None, scale: float | None, model: str | None, fields: Mapping[str, Any]
) -> dict[str, Any]:
    asked: dict[str, Any] = {} if weights is None else {"weights": dict(weights)}
    if scale is not None:
        asked["scale"] = scale
    if asked and "eft" in fields:
        raise TypeError("give weights and scale, or eft, not both")
    return {**fields, **({"eft": asked} if asked else {}), **({"model": model} if model is not None else {})}


def _messages(chat: Messages) -> list[dict[str, Any]]:
    if isinstance(chat, str):
        return [{"role": "user", "content": chat}]
    if not all(isinstance(message, Mapping) for message in chat):
        raise TypeError("a chat is a text or a list of messages; for several chats use chat_many")
    return [dict(message) for message in chat]


def _prompt(prompt: Prompt) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if not all(isinstance(token_id, int) for token_id in prompt):
        raise TypeError("a prompt is a text or a list of token ids; for several prompts use complete_many")
    return list(prompt)
