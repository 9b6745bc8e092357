"""The client: a server's chats, completions, scores and models, asynchronously."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Self

import httpx
from typing_extensions import override

from eft_client.bodies import UNSET, ScoreItem, Unset, chat_body, score_body, text_body
from eft_client.connection import Connection
from eft_client.errors import BadAnswer, WrongArgument
from eft_client.results import (
    Behaviours,
    ChatResult,
    ModelCard,
    Piece,
    ScoreResult,
    TextResult,
    behaviours_in,
    chat_result,
    model_cards,
    pieces_in,
    score_result,
    text_result,
)
from eft_client.settings import DEFAULT_URL
from eft_client.text import Mender

__all__ = ["AsyncEftClient"]

Filter = Mapping[str, Any] | Literal[Unset.UNSET] | None


class AsyncEftClient:
    """An EFT server, or any that is OpenAI-compatible, asked with weights of your choice.

    Where nothing is said of behaviour (weights, scale, amplify, filter, coefficients), the field `eft` is not sent at
    all. Safe to use by many tasks of one event loop at once.

    Args:
        base_url: The server's URL; one that names only a host gets /v1.
        api_key: Its key; None takes $EFT_API_KEY, else $OPENAI_API_KEY, else sends none.
        model: The model to ask where a call names none; None takes the first that the server lists.
        timeout_s: How long an answer, or the next piece of one, may take. Connecting has 10 seconds at most.
        retries: How often a request is sent again when the server is busy (429, 503; its Retry-After is kept to, up to
            a minute) or the connection is refused or breaks before an answer. Nothing else is tried again.
        transport: What carries requests in place of a socket, for tests.

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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = Connection(
            base_url, api_key, timeout_s=timeout_s, retries=retries, transport=transport
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
        **options: Any,
    ) -> ChatResult:
        """Answer a chat.

        Args:
            messages: The chat so far, or one message of the user.
            model: A name that the server lists.
            weights: A number for each expert; one that is not named counts 0.
            scale: The factor on all weights.
            amplify: The factor on the up-scaling delta.
            filter: ``{"kind": "expert" or "base", "top_p": number}``; None turns the model's own off.
            coefficients: A number for each member, in place of weights.
            **options: Any further field of the request: temperature, max_tokens, n, seed, stop, logprobs … The
                server refuses those that it does not know, by name.

        Raises:
            WrongArgument: An argument cannot be right; nothing was sent.
            EftError: There was no answer, or one that is an error.
        """
        asked = _asked(weights, scale, amplify, filter, coefficients)
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
        **options: Any,
    ) -> AsyncGenerator[Piece, None]:
        """Answer a chat piece by piece; the arguments are those of `chat`.

        Closing the iterator, or cancelling the task that waits for it, closes the connection, and the server stops
        working on the answer. A loop that is left early closes it; `contextlib.aclosing` does so at a known place.

        Raises:
            WrongArgument: An argument cannot be right, at once; nothing was sent.
            EftError: While iterating: there was no answer, it broke off, or it ended in an error.
        """
        asked = _asked(weights, scale, amplify, filter, coefficients)
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
        **options: Any,
    ) -> TextResult:
        """Continue a text, or token ids; the other arguments are those of `chat`.

        Raises:
            WrongArgument: An argument cannot be right; nothing was sent.
            EftError: There was no answer, or one that is an error.
        """
        asked = _asked(weights, scale, amplify, filter, coefficients)
        return text_result(await self._post("/completions", text_body(prompt, asked, _whole(options)), model))

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
            **options: Any further field of the request.

        Raises:
            WrongArgument: An argument cannot be right; nothing was sent.
            EftError: There was no answer, or one that is an error (NotFound from a server that does not score).
        """
        asked = _asked(weights, scale, amplify, filter, coefficients)
        body = score_body(items, members, asked, options)
        return score_result(await self._post("/eft/score", body, model), len(items))

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


def _whole(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call that waits for the whole answer."""
    if options.get("stream"):
        raise WrongArgument(
            "stream=True: this waits for the whole answer; stream() gives a chat's piece by piece"
        )
    return options


def _asked(
    weights: Mapping[str, float] | None,
    scale: float | None,
    amplify: float | None,
    keep: Filter,
    coefficients: Mapping[str, float] | None,
) -> dict[str, Any]:
    return dict(weights=weights, scale=scale, amplify=amplify, filter=keep, coefficients=coefficients)
