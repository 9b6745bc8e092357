"""Every answer that a study needs: asked for once, kept by the content of the request."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eft_client.errors import EftError, ServerAnswered
from eft_client.quality.answers import Answer, spoken
from eft_client.quality.errors import StudyError
from eft_client.quality.journal import Journal, content_key
from eft_client.quality.prompts import Prompt
from eft_client.quality.servers import Job, Servers, run_bounded
from eft_client.settings import Setting

__all__ = ["Request", "Sampling", "collect", "requests_of"]

MAX_SAMPLES = 1024


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        n: samples of each prompt.
        temperature: 0 is greedy, and allows one sample.
        max_tokens: the longest answer.
        seed: of the study; each prompt's own follows from it, the same for all settings.
        per_request: samples asked for in one request.

    Raises:
        StudyError: A number cannot be right.
    """

    n: int = 1
    temperature: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    per_request: int = 8

    def __post_init__(self) -> None:
        bounds = {"n": MAX_SAMPLES, "max_tokens": 1 << 20, "per_request": MAX_SAMPLES}
        for name, most in bounds.items():
            if not 1 <= (value := getattr(self, name)) <= most:
                raise StudyError(f"{name} is {value}; expected 1 to {most}")
        if self.seed < 0:
            raise StudyError(f"seed is {self.seed}; expected 0 or more")
        if not 0 <= self.temperature <= 2:
            raise StudyError(f"temperature is {self.temperature}; expected 0 to 2")
        if self.temperature == 0 and self.n > 1:
            raise StudyError(
                f"n is {self.n} at temperature 0, where all samples are alike; expected n to be 1"
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request of a study: some of the samples of one prompt under one setting."""

    setting: Setting
    prompt: Prompt
    sampling: Sampling
    first: int
    count: int

    @property
    def body(self) -> dict[str, Any]:
        """What is sent, but for what the client adds."""
        asked = {
            "model": self.setting.model,
            "messages": [dict(message) for message in self.prompt.messages],
            "temperature": self.sampling.temperature,
            "max_tokens": self.sampling.max_tokens,
            "n": self.count,
            "seed": self._seed,
        }
        return asked | self.setting.body

    @property
    def key(self) -> str:
        """Its name in the journal: the server's URL and the body."""
        return content_key({"url": self.setting.url, "path": "/chat/completions", "body": self.body})

    @property
    def _seed(self) -> int:
        """31 bits of the study's seed and the prompt; sample i of any split into requests gets seed + i."""
        start = zlib.crc32(f"{self.sampling.seed} {self.prompt.id}".encode("utf-8", "surrogatepass"))
        return (start & 0x3FFFFFFF) + self.first


def requests_of(
    settings: Sequence[Setting], prompts: Sequence[Prompt], sampling: Sampling
) -> Iterator[Request]:
    """All requests, prompt by prompt, so that several servers are busy at once."""
    for prompt in prompts:
        for setting in settings:
            for first in range(0, sampling.n, sampling.per_request):
                count = min(sampling.per_request, sampling.n - first)
                yield Request(setting=setting, prompt=prompt, sampling=sampling, first=first, count=count)


async def collect(
    requests: Sequence[Request],
    journal: Journal,
    servers: Servers,
    *,
    concurrency: int,
    advance: Callable[[], object] = lambda: None,
) -> Mapping[tuple[str, str], tuple[Answer, ...]]:
    """Ask what the journal does not have, and give all answers by setting's name and prompt's id.

    Raises:
        StudyError: A server refused, or gave fewer samples than asked for; what was answered is in the journal.
    """
    # Two settings may make the very same request: it is sent once.
    new = {request.key: request for request in requests if journal.get(request.key) is None}
    for _ in range(len({request.key for request in requests}) - len(new)):
        advance()

    def job(request: Request) -> Job:
        async def ask() -> None:
            journal.append(request.key, await _asked(request, servers))
            advance()

        return ask

    await run_bounded((job(request) for request in new.values()), concurrency)
    found: dict[tuple[str, str], tuple[Answer, ...]] = {}
    for request in requests:
        place = (request.setting.name, request.prompt.id)
        found[place] = found.get(place, ()) + _read(journal, request)
    return found


async def _asked(request: Request, servers: Servers) -> dict[str, Any]:
    """One request's entry for the journal."""
    body = request.body
    client = await servers.client(request.setting)
    options = {name: value for name, value in body.items() if name not in ("model", "messages", "eft")}
    try:
        result = await client.chat(body["messages"], model=body["model"], **request.setting.eft, **options)
    except ServerAnswered as error:
        raise StudyError(
            f"setting {request.setting.name!r}, prompt {request.prompt.id!r}: the server refused: {error}"
        ) from error
    except EftError as error:
        raise StudyError(f"setting {request.setting.name!r}: {error}") from error
    if len(result.choices) != request.count:
        raise StudyError(
            f"setting {request.setting.name!r}: {len(result.choices)} answers came where {request.count} were asked "
            f"for; a server without `n` needs --per-request 1"
        )
    return {
        "setting": request.setting.name,
        "prompt": request.prompt.id,
        "url": request.setting.url,
        "body": body,
        "eft": result.eft,
        "answers": [{"text": one.text, "finish_reason": one.finish_reason} for one in result.choices],
    }


def _read(journal: Journal, request: Request) -> tuple[Answer, ...]:
    entry = journal.get(request.key)
    assert entry is not None
    try:
        answers = tuple(Answer(spoken(one["text"]), one["finish_reason"]) for one in entry["answers"])
        wrong = len(answers) != request.count
    except (KeyError, TypeError):
        wrong = True
    if wrong:
        raise StudyError(f"{journal.path}: the entry {request.key[:12]}… is not as it was written; remove it")
    return answers
