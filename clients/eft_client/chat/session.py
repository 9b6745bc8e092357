"""A chat from its first prompt to its end: messages are sent, commands run, and errors shown."""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from eft_client.chat.behaviour import Behaviour
from eft_client.chat.columns import MIN_COLUMN, Columns, column_width
from eft_client.chat.commands import completions, run_command
from eft_client.chat.conversation import Conversation, Turn
from eft_client.chat.draft import Draft, Show
from eft_client.chat.line import Line
from eft_client.chat.screen import BOLD, Screen
from eft_client.client import AsyncEftClient
from eft_client.errors import BadAnswer, EftError, WrongArgument
from eft_client.exits import EXIT_FAILED, EXIT_INTERRUPTED
from eft_client.results import Behaviours, ModelCard, behaviours_in
from eft_client.weights import model_and_behaviour, parse_behaviour

__all__ = ["Chat", "SamplingOptions", "opened"]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen; None leaves it to the server.

    Raises:
        WrongArgument: The temperature is below 0, or not finite.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise WrongArgument(f"temperature must be a finite number from 0, not {self.temperature:g}")

    @property
    def options(self) -> dict[str, Any]:
        """The fields of a request."""
        given = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed}
        return {name: value for name, value in given.items() if value is not None}


class Chat:
    """One chat with one server.

    Attributes:
        screen: where it is shown.
        cards: the models that the server lists.
        behaviour: that of the next answer.
        compared: the two behaviours that answer side by side, while that is wanted.
        sampling: how tokens are chosen.
        conversation: what was said.
    """

    def __init__(
        self,
        client: AsyncEftClient,
        runner: asyncio.Runner,
        screen: Screen,
        cards: Sequence[ModelCard],
        behaviour: Behaviour,
    ) -> None:
        self._client = client
        self._runner = runner
        self._unanswered: str | None = None
        self.screen = screen
        self.cards = cards
        self.behaviour = behaviour
        self.compared: tuple[Behaviour, Behaviour] | None = None
        self.sampling = SamplingOptions()
        self.conversation = Conversation()
        self.over = False

    def named(self, name: str) -> Behaviour:
        """What a model of this name is asked for; weights may be in the name.

        Raises:
            WrongArgument: The server lists no such model, or the weights cannot be.
        """
        return _named(self.cards, self.behaviour.family, name)

    def run(self) -> int:
        """Read, ask and do until the end; the exit status."""
        line = Line(self.screen, lambda before, word: completions(self, before, word))
        while not self.over:
            try:
                self._take(line.read(f"{self._label}> "))
            except EOFError:
                self.screen.tell("")
                break
            except KeyboardInterrupt:
                if not self.screen.interactive:
                    return EXIT_INTERRUPTED
                self.screen.tell("")
            except EftError as error:
                self.screen.complain(str(error))
                if not self.screen.interactive:
                    return EXIT_FAILED
        return 0

    def ask(self, question: str) -> None:
        """Ask, show the answer as it comes, and remember both.

        Raises:
            EftError: There was no answer.
        """
        self._unanswered = question
        sides = self.compared or (self.behaviour,)
        drafts = [Draft(side.card.id) for side in sides]
        try:
            with self.screen.undisturbed():
                self._show(question, sides, drafts)
        except KeyboardInterrupt:
            if not self.screen.interactive:
                raise
            for draft in drafts:
                draft.stopped = draft.finish_reason is None and draft.error is None
        for draft in drafts:
            self.screen.tell(f"[{draft.summary}]")
        if any(draft.text for draft in drafts):
            self.conversation.turns.append(Turn(question, tuple(draft.answer for draft in drafts)))
            self._unanswered = None

    def retry(self) -> None:
        """Ask the last question again; its old answer is forgotten once there is a new one.

        Raises:
            WrongArgument: There is none.
            EftError: There was no answer.
        """
        turns = self.conversation.turns
        if self._unanswered is not None:
            self.ask(self._unanswered)
            return
        if not turns:
            raise WrongArgument("there is nothing to ask again yet")
        last = turns.pop()
        before = len(turns)
        try:
            self.ask(last.question)
        finally:
            if len(turns) == before:
                turns.append(last)
                self._unanswered = None

    def forget(self) -> None:
        """Forget a question that was not answered."""
        self._unanswered = None

    @property
    def _label(self) -> str:
        return " | ".join(side.label for side in self.compared) if self.compared else self.behaviour.label

    def _take(self, text: str) -> None:
        if text.startswith("/") and not text.startswith("//"):
            run_command(self, text)
        elif text.strip():
            self.ask(text[1:] if text.startswith("//") else text)

    def _show(self, question: str, sides: Sequence[Behaviour], drafts: Sequence[Draft]) -> None:
        if len(sides) == 1:
            self._show_one(question, sides[0], drafts[0], 0, self.sampling)
            return
        seed = random.randrange(2**31) if self.sampling.seed is None else self.sampling.seed
        sampling = replace(self.sampling, seed=seed)
        self.screen.tell(f"[both with seed {seed}]")
        if self.screen.interactive and column_width(self.screen.width) >= MIN_COLUMN:
            self._runner.run(self._both(question, sides, drafts, sampling))
            return
        for index, (side, draft) in enumerate(zip(sides, drafts, strict=True)):
            self.screen.say(f"{'right' if index else 'left'}: {side.label}", BOLD)
            self._show_one(question, side, draft, index, sampling)

    def _show_one(
        self, question: str, side: Behaviour, draft: Draft, index: int, sampling: SamplingOptions
    ) -> None:
        def show(text: str, thinking: bool) -> None:
            (self.screen.think if thinking else self.screen.write)(text)

        try:
            self._runner.run(self._followed(question, side, draft, index, sampling, show))
        finally:
            if draft.text or self.screen.interactive:
                self.screen.say()
            if draft.thinking and not self.screen.interactive:
                self.screen.think("\n")

    async def _both(
        self, question: str, sides: Sequence[Behaviour], drafts: Sequence[Draft], sampling: SamplingOptions
    ) -> None:
        columns = Columns(self.screen, (sides[0].label, sides[1].label))

        async def one(index: int) -> None:
            def show(text: str, _thinking: bool) -> None:
                columns.add(index, text)

            try:
                await self._followed(question, sides[index], drafts[index], index, sampling, show)
            except EftError as error:
                # The other side's answer is of use all the same.
                drafts[index].error = str(error)
                columns.add(index, f"\n[error: {error}]")
            columns.end(index)

        try:
            async with asyncio.TaskGroup() as group:
                for index in (0, 1):
                    group.create_task(one(index))
        finally:
            columns.end(0, 1)

    async def _followed(  # noqa: PLR0913 (what an answer depends on)
        self, question: str, side: Behaviour, draft: Draft, index: int, sampling: SamplingOptions, show: Show
    ) -> None:
        pieces = self._client.stream(
            self.conversation.messages(question, index),
            model=side.card.id,
            stream_options={"include_usage": True},
            **side.eft,
            **sampling.options,
        )
        await draft.follow(pieces, show)


def opened(
    client: AsyncEftClient, runner: asyncio.Runner, screen: Screen, model: str | None, url: str
) -> Chat:
    """Ask the server what it has, and begin a chat with one of its models: the first, where none is named.

    Raises:
        EftError: The server does not answer, or does not list the model.
    """
    cards = runner.run(client.models())
    if not cards:
        raise BadAnswer(f"{url} lists no model")
    family = behaviours_in(cards)
    behaviour = Behaviour(cards[0], family) if model is None else _named(cards, family, model)
    card = behaviour.card
    screen.tell(f"{card.id} at {url}")
    if card.description:
        screen.tell(card.description)
    if len(family):
        screen.tell(f"experts: {', '.join(expert.name for expert in family)}")
    screen.tell("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    return Chat(client, runner, screen, cards, behaviour)


def _named(cards: Sequence[ModelCard], family: Behaviours, name: str) -> Behaviour:
    listed = {card.id: card for card in reversed(cards)}
    model, behaviour = (name, "") if name in listed else model_and_behaviour(name)
    if model not in listed:
        raise WrongArgument(f"there is no model {model!r}; known: {', '.join(card.id for card in cards)}")
    return Behaviour(listed[model], family).changed(parse_behaviour(behaviour))
