"""The client: a server's chats, completions, scores and models, asynchronously."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from typing_extensions import override

from eft_client.bodies import (
    UNSET,
    Activations,
    ScoreItem,
    Unset,
    beside_scores,
    chat_body,
    eft_body,
    explain_body,
    score_body,
    text_body,
)
from eft_client.connection import MAX_CONNECTIONS, Connection
from eft_client.errors import BadAnswer, WrongArgument
from eft_client.results import (
    Behaviours,
    ChatResult,
    Explanation,
    ModelCard,
    Piece,
    ScoreResult,
    TextResult,
    behaviours_in,
    chat_result,
    explanation,
    model_cards,
    pieces_in,
    score_result,
    text_result,
)
from eft_client.settings import DEFAULT_URL
from eft_client.text import Mender

__all__ = ["AsyncEftClient"]

Filter = Mapping[str, Any] | Literal[Unset.UNSET] | None
T = TypeVar("T")


class AsyncEftClient:
    """An EFT server, or any that is OpenAI-compatible, asked with weights of your choice.

    Where nothing is said of behaviour (weights, scale, amplify, filter, coefficients), the field `eft` is not sent at
    all. Safe to use by many tasks of one event loop at once.

    Args:
        base_url: The server's URL; one that names only a host gets /v1.
        api_key: Its key; None takes $EFT_API_KEY, else $OPENAI_API_KEY, else sends none.
        model: The model to ask where a call names none; None takes the first that the server lists.
        timeout_s: How long an answer, or the next piece of one, may take; `math.inf` is for ever. Connecting has 10
            seconds at most.
        retries: How often a request is sent again when the server is busy (429, 503; its Retry-After is kept to, up to
            a minute) or the connection is refused or breaks before an answer. Nothing else is tried again.
        max_connections: How many requests are under way at once; others wait their turn, and no deadline runs.
        transport: What carries requests in place of a socket: a test's, or an engine's of this process. It is entered
            with the client (`async with`; EftClient does so at once), in the event loop that it works in, and closed
            with it.

    Raises:
        WrongArgument: The URL, the key or a number cannot be right.
    """

    def __init__(  # noqa: PLR0913 (one for each option)
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        model: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 4,
        max_connections: int = MAX_CONNECTIONS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = Connection(
            base_url,
            api_key,
            timeout_s=timeout_s,
            retries=retries,
            max_connections=max_connections,
            transport=transport,
        )
        self._model = model
        self._asking = asyncio.Lock()

    async def chat(  # noqa: PLR0913 (one for each option)
        self,
        /,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        amplify: float | None = None,
        filter: Filter = UNSET,  # noqa: A002 (the field's name)
        coefficients: Mapping[str, float] | None = None,
        report: bool = False,
        **options: Any,
    ) -> ChatResult:
        """Answer a chat.

        Args:
            messages: The chat so far, or one message of the user.
            model: A name that the server lists; weights may follow it, as in ``demo:helpful=0.7``.
            weights: A number for each expert; one that is not named counts 0.
            scale: The factor on all weights.
            amplify: The factor on the up-scaling delta.
            filter: ``{"kind": "expert" or "base", "top_p": number}``; None turns the model's own off.
            coefficients: A number for each member, in place of weights.
            report: Whether the result has a `report` of what the experts changed, beside the base.
            **options: Any further field of the request: temperature, max_tokens, n, seed, stop, logprobs … The
                server refuses those that it does not know, by name.

        Raises:
            WrongArgument: An argument cannot be right; nothing was sent.
            EftError: There was no answer, or one that is an error.
        """
        asked = _asked(options, weights, scale, amplify, filter, coefficients, report=report)
        body = chat_body(messages, asked, _whole(options))
        return chat_result(await self._post("/chat/completions", body, model))

    def stream(  # noqa: PLR0913 (one for each option)
        self,
        /,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        amplify: float | None = None,
        filter: Filter = UNSET,  # noqa: A002 (the field's name)
        coefficients: Mapping[str, float] | None = None,
        report: bool = False,
        **options: Any,
    ) -> AsyncGenerator[Piece, None]:
        """Answer a chat piece by piece; the arguments are those of `chat`.

        Closing the iterator, or cancelling the task that waits for it, closes the connection, and the server stops
        working on the answer. A loop that is left early closes it; `contextlib.aclosing` does so at a known place.

        Raises:
            WrongArgument: An argument cannot be right, at once; nothing was sent.
            EftError: While iterating: there was no answer, it broke off, or it ended in an error.
        """
        asked = _asked(options, weights, scale, amplify, filter, coefficients, report=report)
        if not options.pop("stream", True):
            raise WrongArgument(
                "stream=False: this gives the answer piece by piece; chat() gives the whole answer"
            )
        return self._pieces(chat_body(messages, asked, options) | {"stream": True}, model)

    async def complete(  # noqa: PLR0913 (one for each option)
        self,
        /,
        prompt: str | Sequence[int],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        amplify: float | None = None,
        filter: Filter = UNSET,  # noqa: A002 (the field's name)
        coefficients: Mapping[str, float] | None = None,
        report: bool = False,
        **options: Any,
    ) -> TextResult:
        """Continue a text, or token ids; the other arguments are those of `chat`.

        Raises:
            WrongArgument: An argument cannot be right; nothing was sent.
            EftError: There was no answer, or one that is an error.
        """
        asked = _asked(options, weights, scale, amplify, filter, coefficients, report=report)
        return text_result(await self._post("/completions", text_body(prompt, asked, _whole(options)), model))

    async def chat_many(  # noqa: PLR0913 (one for each option)
        self,
        /,
        chats: Sequence[str | Sequence[Mapping[str, Any]]],
        *,
        at_once: int | None = None,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        amplify: float | None = None,
        filter: Filter = UNSET,  # noqa: A002 (the field's name)
        coefficients: Mapping[str, float] | None = None,
        report: bool = False,
        **options: Any,
    ) -> list[ChatResult]:
        """Answer several chats as a batch, all with the same arguments, which are those of `chat`.

        Args:
            chats: The chats, each as `chat` takes it.
            at_once: How many may be under way at once; None makes use of every connection of the client.
            model: As in `chat`, and so are weights, scale, amplify, filter, coefficients and report.
            weights: As in `chat`.
            scale: As in `chat`.
            amplify: As in `chat`.
            filter: As in `chat`.
            coefficients: As in `chat`.
            report: As in `chat`.
            **options: As in `chat`.

        Returns:
            The answers, in the order of the chats.

        Raises:
            WrongArgument: An argument cannot be right.
            EftError: The first error of any of them; the others are given up.
        """
        asked = _asked(options, weights, scale, amplify, filter, coefficients, report=report)
        chat = partial(self.chat, model=model, **asked, **options)
        return await self._in_order(
            [partial(chat, messages) for messages in _listed("chats", chats)], at_once
        )

    async def complete_many(  # noqa: PLR0913 (one for each option)
        self,
        /,
        prompts: Sequence[str | Sequence[int]],
        *,
        at_once: int | None = None,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        amplify: float | None = None,
        filter: Filter = UNSET,  # noqa: A002 (the field's name)
        coefficients: Mapping[str, float] | None = None,
        report: bool = False,
        **options: Any,
    ) -> list[TextResult]:
        """Continue several texts as a batch; the arguments are those of `chat_many`, the prompts those of `complete`.

        Raises:
            WrongArgument: An argument cannot be right.
            EftError: The first error of any of them; the others are given up.
        """
        asked = _asked(options, weights, scale, amplify, filter, coefficients, report=report)
        complete = partial(self.complete, model=model, **asked, **options)
        return await self._in_order(
            [partial(complete, prompt) for prompt in _listed("prompts", prompts)], at_once
        )

    async def answer_many(
        self, /, calls: Sequence[Mapping[str, Any]], *, at_once: int | None = None
    ) -> list[TextResult]:
        """Answer several requests as a batch, each with arguments of its own, such as its weights.

        Args:
            calls: The arguments of each by name: with `messages` those of `chat`, with `prompt` those of `complete`.
            at_once: As in `chat_many`.

        Returns:
            The answers, in the order of the calls.

        Raises:
            WrongArgument: An argument cannot be right.
            EftError: The first error of any of them; the others are given up.
        """
        given = [self._call(place, call) for place, call in enumerate(_listed("calls", calls))]
        return await self._in_order(given, at_once)

    async def score(  # noqa: PLR0913 (one for each option)
        self,
        /,
        items: Sequence[ScoreItem | Mapping[str, Any]],
        *,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        amplify: float | None = None,
        filter: Filter = UNSET,  # noqa: A002 (the field's name)
        coefficients: Mapping[str, float] | None = None,
        members: bool | Sequence[str] = True,
        statistics: bool = False,
        activations: Activations | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ScoreResult:
        """Log-probabilities of given completions, under the weights and under members, and implicit rewards.

        Args:
            items: What to score: ScoreItems, or objects of the same fields.
            model: As in `chat`, and so are weights, scale, amplify, filter and coefficients.
            weights: As in `chat`.
            scale: As in `chat`.
            amplify: As in `chat`.
            filter: As in `chat`.
            coefficients: As in `chat`.
            members: The members whose own scores are wanted beside the composite's: all, none, or those named.
            statistics: Whether every column also gets the `statistics` of each token's whole distribution.
            activations: The states inside members that are wanted, too: Activations, or an object of the same fields.
            **options: Any further field of the request.

        Raises:
            WrongArgument: An argument cannot be right; nothing was sent.
            EftError: There was no answer, or one that is an error (NotFound from a server that does not score).
        """
        asked = _asked(options, weights, scale, amplify, filter, coefficients)
        body = score_body(items, members, beside_scores(statistics, activations), asked, options)
        return score_result(await self._post("/eft/score", body, model), len(items))

    async def explain(  # noqa: PLR0913 (one for each option)
        self,
        /,
        messages: str | Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: str | Sequence[int] | None = None,
        completion: str | Sequence[int] | None = None,
        model: str | None = None,
        weights: Mapping[str, float] | None = None,
        scale: float | None = None,
        amplify: float | None = None,
        filter: Filter = UNSET,  # noqa: A002 (the field's name)
        coefficients: Mapping[str, float] | None = None,
        **options: Any,
    ) -> Explanation:
        """What each expert did to each token of a completion, or of one that is generated for it.

        Args:
            messages: The chat that it answers, as in `chat`; or
            prompt: The text, or the token ids, that it continues.
            completion: The completion, or its token ids; by default, one is generated.
            model: As in `chat`, and so are weights, scale, amplify, filter and coefficients.
            weights: As in `chat`.
            scale: As in `chat`.
            amplify: As in `chat`.
            filter: As in `chat`.
            coefficients: As in `chat`.
            **options: Any further field of the request: top_logprobs, span, temperature, top_p, max_tokens …

        Raises:
            WrongArgument: An argument cannot be right; nothing was sent.
            EftError: There was no answer, or one that is an error (NotFound from a server that does not explain).
        """
        asked = _asked(options, weights, scale, amplify, filter, coefficients)
        body = explain_body(messages, prompt, completion, asked, options)
        return explanation(await self._post("/eft/explain", body, model))

    async def models(self) -> list[ModelCard]:
        """The names that the server answers to.

        Raises:
            EftError: There was no answer, or one that is an error.
        """
        return model_cards(await self._connection.get("/models"))

    async def behaviours(self) -> Behaviours:
        """The experts with their default weights and bounds, the aliases, and the members.

        Raises:
            EftError: There was no answer, or one that is an error.
        """
        return behaviours_in(await self.models())

    async def aclose(self) -> None:
        """Close every connection; the client is of no use afterwards."""
        await self._connection.aclose()

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.base_url!r}, model={self._model!r})"

    async def _post(self, path: str, body: dict[str, Any], model: str | None) -> dict[str, Any]:
        return await self._connection.post(path, {"model": model or await self._default_model(), **body})

    def _call(self, place: int, call: Mapping[str, Any]) -> Callable[[], Coroutine[Any, Any, TextResult]]:
        if not isinstance(call, Mapping) or ("messages" in call) == ("prompt" in call):
            raise WrongArgument(
                f"calls[{place}] must be an object with either messages or a prompt, not {call!r:.200}"
            )
        return partial(self.chat if "messages" in call else self.complete, **call)

    async def _in_order(
        self, calls: Sequence[Callable[[], Coroutine[Any, Any, T]]], at_once: int | None
    ) -> list[T]:
        """What the calls give, of which so many are under way at once; the first error ends the others."""
        if at_once is not None and at_once < 1:
            raise WrongArgument(f"at_once must be 1 or more, not {at_once}")
        pending, results = iter(enumerate(calls)), dict[int, T]()

        async def work() -> None:
            for place, call in pending:
                results[place] = await call()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once or self._connection.max_connections, len(calls))):
                    group.create_task(work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [results[place] for place in range(len(calls))]

    async def _pieces(self, body: dict[str, Any], model: str | None) -> AsyncGenerator[Piece, None]:
        named = {"model": model or await self._default_model(), **body}
        ends, mender = _Ends(body.get("n")), Mender()
        async with aclosing(self._connection.events("/chat/completions", named, ends.are_all)) as events:
            async for event in events:
                for piece in pieces_in(event):
                    ends.take(piece)
                    last = piece.finish_reason is not None
                    yield piece.model_copy(update={"text": mender.mend(piece.index, piece.text, last=last)})

    async def _default_model(self) -> str:
        """The client's model; where it has none, the first that the server lists, asked for once."""
        async with self._asking:
            if self._model is None:
                cards = await self.models()
                if not cards:
                    raise BadAnswer(f"{self._connection.base_url} lists no model; name one")
                self._model = cards[0].id
            return self._model


class _Ends:
    """The choices of a stream that have come, and those of them that have ended."""

    def __init__(self, asked: Any) -> None:
        self._asked = asked if isinstance(asked, int) else 1
        self._come: set[int] = set()
        self._ended: set[int] = set()

    def take(self, piece: Piece) -> None:
        self._come.add(piece.index)
        if piece.finish_reason is not None:
            self._ended.add(piece.index)

    def are_all(self) -> bool:
        return len(self._ended) >= max(self._asked, len(self._come))


def _listed(name: str, values: Sequence[T]) -> Sequence[T]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise WrongArgument(f"{name} must be a list, one for each answer, not {values!r:.200}")
    return values


def _whole(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call that waits for the whole answer."""
    if options.get("stream"):
        raise WrongArgument(
            "stream=True: this waits for the whole answer; stream() gives a chat's piece by piece"
        )
    return options


def _asked(  # noqa: PLR0913 (one for each option)
    options: Mapping[str, Any],
    weights: Mapping[str, float] | None,
    scale: float | None,
    amplify: float | None,
    keep: Filter,
    coefficients: Mapping[str, float] | None,
    *,
    report: bool = False,
) -> dict[str, Any]:
    """The behaviour that a call names, whose options may bring a whole `eft` instead."""
    asked: dict[str, Any] = dict(
        weights=weights, scale=scale, amplify=amplify, filter=keep, coefficients=coefficients, report=report
    )
    if "eft" in options and eft_body(**asked):
        raise WrongArgument("give weights, scale, amplify, filter, coefficients and report, or eft, not both")
    return asked
