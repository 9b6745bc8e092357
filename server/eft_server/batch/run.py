"""Run a batch: open its files, start the engine, keep it busy, and leave the rest for another time."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from eft_client.progress import Progress
from eft_server.api.edge.signals import STOP_SIGNALS
from eft_server.api.in_process import InProcess, open_in_process
from eft_server.batch.answers import AnswerFile, made_with
from eft_server.batch.requests import BatchRequest, Defaults, RequestFile
from eft_server.engine.launcher.plan import EnginePlan
from eft_server.engine.launcher.stages import Stages
from eft_server.errors import BatchError
from eft_server.family.file import ServerConfig

__all__ = ["Batch", "EngineStoppedError", "run"]


class EngineStoppedError(Exception):
    """The engine stopped by itself while requests were under way."""


@dataclass
class Batch:
    """Requests, and the answers that some of them have.

    Attributes:
        requests: The input.
        answers: The output, open.
        defaults: What the command line says about behaviour.
        total: How many requests the input holds.
        skipped: How many of them were answered before.
        written: How many were answered since.
        refused: How many of these are errors.
    """

    requests: RequestFile
    answers: AnswerFile
    defaults: Defaults
    total: int
    skipped: int
    written: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)

    @classmethod
    def opened(
        cls, config: ServerConfig, paths: tuple[Path, Path], defaults: Defaults, *, force: bool = False
    ) -> "Batch":
        """Check the whole input, then open the output.

        Raises:
            BatchError: One of them cannot be used.
        """
        source, target = paths
        if target.exists() and source.exists() and source.samefile(target):
            raise BatchError(f"{target}: is the input; name another output")
        requests = RequestFile(source, config.server.max_body_bytes)
        names = requests.custom_ids()
        answers = AnswerFile(target, made_with(config, defaults), force=force)
        return cls(requests, answers, defaults, len(names), len(names & answers.done))

    @property
    def left(self) -> int:
        """How many requests have no answer yet."""
        return self.total - self.skipped - self.written

    def pending(self) -> Iterator[BatchRequest]:
        """The requests that had no answer when the output was opened, in the input's order."""
        return (request for request in self.requests if request.custom_id not in self.answers.done)

    async def answer(self, request: BatchRequest, server: InProcess) -> None:
        """Have a request answered and write the answer down, whatever it is.

        Raises:
            EngineStoppedError: There is no engine any more; nothing was written.
        """
        answered = await server.post(request.url, self.defaults.complete(request.body))
        if server.engine.errored:
            raise EngineStoppedError
        self.answers.write(request.custom_id, answered)
        self.written += 1
        self.refused += answered.status >= 400


def run(batch: Batch, config: ServerConfig, plan: EnginePlan, stages: Stages) -> None:
    """Answer what is left of a batch.

    Raises:
        KeyboardInterrupt: A signal came; every answer until then is written.
        EngineStoppedError: The engine stopped by itself; every answer until then is written.
        BatchError: An answer cannot be written.
    """
    try:
        uvloop.run(_run(batch, config, plan, stages))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _run(batch: Batch, config: ServerConfig, plan: EnginePlan, stages: Stages) -> None:
    async with open_in_process(config, plan, stages) as server:
        task = asyncio.current_task()
        assert task is not None
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await answer_all(batch, server, config.server.max_concurrent_requests)


async def answer_all(batch: Batch, server: InProcess, at_once: int) -> None:
    """Answer what is left, so many requests at once; lines are read as places become free.

    Raises:
        EngineStoppedError: The engine stopped by itself.
        BatchError: An answer cannot be written.
    """
    pending = batch.pending()

    async def work() -> None:
        for request in pending:
            await batch.answer(request, server)
            advance()

    with Progress() as progress:
        advance = progress.begin("answers", batch.total, done=batch.skipped, unit="requests")
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once, batch.left)):
                    group.create_task(work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
