"""A language model as judge: pairwise against the baseline, in both orders, over any OpenAI-compatible endpoint.

Models tend to prefer the answer that comes first (Zheng et al., arXiv 2306.05685); so every pair is judged in both
orders, and the rate at which these disagree is reported, too.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from typing_extensions import override

from eft_client.errors import EftError
from eft_client.quality.answers import Answers, spoken
from eft_client.quality.errors import StudyError
from eft_client.quality.journal import Journal, content_key
from eft_client.quality.metrics import Metric
from eft_client.quality.prompts import Prompt
from eft_client.quality.servers import Job, Servers, run_bounded
from eft_client.quality.word_boundaries import visible
from eft_client.settings import Setting
from eft_client.text import read_text

__all__ = ["Agreement", "PairwiseJudge", "Preferences", "read_template", "verdict_in"]

MAX_TEMPLATE_BYTES = 1 << 16
#: Longer answers are cut, and the prompt says so.
MAX_ANSWER_CHARS = 8000
_PLACES = ("question", "first", "second", "nonce")
#: Markup that is written in letters: LaTeX's commands, HTML's tags, and the tokens that end a turn. What ends in a
#: verdict's last word is no tag.
_LETTERS = re.compile(
    r"\\[a-z]+|<\|[^<>]*\|>|</?(?![^<>]*\b(?:first|second|tie)>)[a-z][^<>]*>", re.IGNORECASE
)
_WORD = re.compile(r"[^\W_]+")
_WORTH = {"first": 1.0, "second": 0.0, "tie": 0.5}


def read_template(path: Path | None = None) -> str:
    """The judge's instructions; without a path, the package's own.

    Raises:
        StudyError: The file cannot be read, is too long, or lacks a place: {question}, {first}, {second} or {nonce}.
    """
    source = path or files("eft_client.quality.judges") / "pairwise.txt"
    text = read_text(source, MAX_TEMPLATE_BYTES, StudyError)
    if missing := [place for place in _PLACES if f"{{{place}}}" not in text]:
        raise StudyError(
            f"{source}: lacks {{{missing[0]}}}; expected a template with {{{'}, {'.join(_PLACES)}}}"
        )
    return text


def filled(template: str, question: str, first: str, second: str) -> tuple[str, str]:
    """The judge's prompt, and the nonce that its verdict has to repeat.

    The nonce follows from everything that the judge reads, so no author of an answer could know it: an
    answer that says "verdict: first" says it without the nonce. All places are filled in one pass; what answers say
    is never looked at for places.
    """
    nonce = content_key({"template": template, "question": question, "first": first, "second": second})[:8]
    values = {"question": question, "first": _cut(first), "second": _cut(second), "nonce": nonce}
    return re.sub(r"\{(question|first|second|nonce)\}", lambda place: values[place[1]], template), nonce


def _cut(answer: str) -> str:
    if len(answer) <= MAX_ANSWER_CHARS:
        return answer
    return answer[:MAX_ANSWER_CHARS] + f"\n[cut after {MAX_ANSWER_CHARS:,} characters]"


def verdict_in(reply: str, nonce: str) -> float | None:
    """1 for the first answer, 0 for the second, 0.5 for a tie; None where the last line is no verdict with the nonce.

    Nothing but the last line with a word counts, and its words have to be just the verdict; how it is set (bold, as
    code, in brackets, as an item of a list, numbered or not, with an end of turn) does not matter.
    """
    plain = unicodedata.normalize("NFKC", visible(spoken(reply)))
    lines = [
        words for line in plain.splitlines() if (words := _WORD.findall(_LETTERS.sub(" ", line.lower())))
    ]
    if not lines:
        return None
    *said, last = lines[-1]
    number = 1 if said and said[0].isdecimal() else 0
    return _WORTH.get(last) if said[number:] == ["verdict", nonce.lower()] else None


@dataclass(frozen=True)
class Agreement:
    """How a judge's two orders went together.

    Attributes:
        pairs: judged in both orders, with a readable verdict in each.
        disagreements: of those, whose two verdicts differ (once the order is undone).
        first_preferred: of all readable verdicts that are no tie, the share that went to whichever came first; 0.5
            is fair.
        unreadable: verdicts that were none; their pairs do not count.
        equal: pairs of equal texts, ties without a request.
    """

    pairs: int
    disagreements: int
    first_preferred: float
    unreadable: int
    equal: int

    @property
    def disagreement(self) -> float:
        """The share of judged pairs whose two orders differ."""
        return self.disagreements / self.pairs if self.pairs else float("nan")

    @override
    def __str__(self) -> str:
        """How it went, in a line."""
        unread = f"; {self.unreadable:,} verdicts could not be read" if self.unreadable else ""
        if not self.pairs:
            return f"no pair was judged in both orders{unread}"
        return f"the two orders disagree on {100 * self.disagreement:.1f} % of {self.pairs:,} pairs{unread}"


@dataclass(frozen=True)
class Preferences:
    """What a pairwise judge found: by setting's name and prompt's id, the mean outcome against the baseline."""

    values: Mapping[tuple[str, str], float]
    agreement: Agreement


@dataclass(frozen=True, kw_only=True)
class _JudgeRequest:
    """One question to the judge: whether the setting's answer came first, and what to send."""

    place: tuple[str, str]
    sample: int
    ours_first: bool
    body: Mapping[str, Any]
    nonce: str
    key: str


@dataclass(frozen=True, kw_only=True)
class PairwiseJudge:
    """Asks a model which of two answers is better; the metric is the share that a setting wins, ties counting half.

    Attributes:
        endpoint: the judge's server, model and key, and anything else that a setting can say.
        template: its instructions.
        samples: how many samples of each prompt are compared, each with the baseline's of the same number.
        max_tokens: the longest reply.
    """

    endpoint: Setting
    template: str
    samples: int = 1
    max_tokens: int = 1024

    @property
    def metric(self) -> Metric:
        """Its name says which model judged."""
        return Metric(
            name=f"preference.{self.endpoint.model}",
            meaning=f"share of answers that {self.endpoint.model} prefers to the baseline's, ties counting half",
            counts="all prompts whose verdicts can be read",
            share=True,
        )

    async def judge(  # noqa: PLR0913 (what it judges, and how)
        self,
        answers: Answers,
        prompts: Sequence[Prompt],
        *,
        baseline: str,
        journal: Journal,
        servers: Servers,
        concurrency: int,
        begin: Callable[[int], Callable[[], object]] = lambda _: lambda: None,
    ) -> Preferences:
        """Compare every other setting with the baseline; `begin` is called with the number of requests.

        Raises:
            StudyError: The judge's server refused or failed; what was judged is in the journal.
        """
        requests, equal = self._requests(answers, prompts, baseline)
        new = {request.key: request for request in requests if journal.get(request.key) is None}
        advance = begin(len(new))

        def job(request: _JudgeRequest) -> Job:
            async def ask() -> None:
                journal.append(
                    request.key, {"judge": self.endpoint.model, "reply": await self._ask(request, servers)}
                )
                advance()

            return ask

        await run_bounded((job(request) for request in new.values()), concurrency)
        return _count(requests, equal, journal, baseline, prompts)

    def _requests(
        self, answers: Answers, prompts: Sequence[Prompt], baseline: str
    ) -> tuple[list[_JudgeRequest], list[tuple[str, str]]]:
        """What is to be asked, and the places of pairs that are equal without asking."""
        requests, equal = list[_JudgeRequest](), list[tuple[str, str]]()
        known = {prompt.id: prompt for prompt in prompts}
        for place, ours in answers.items():
            if place[0] == baseline or place[1] not in known:
                continue
            theirs = answers[baseline, place[1]]
            for sample in range(min(self.samples, len(ours), len(theirs))):
                pair = (ours[sample].text, theirs[sample].text)
                if pair[0] == pair[1]:
                    equal.append(place)
                else:
                    requests += self._both_orders(place, sample, known[place[1]].text, pair)
        return requests, equal

    def _both_orders(
        self, place: tuple[str, str], sample: int, question: str, pair: tuple[str, str]
    ) -> Iterator[_JudgeRequest]:
        for ours_first in (True, False):
            first, second = pair if ours_first else pair[::-1]
            prompt, nonce = filled(self.template, question, first, second)
            body = {
                "model": self.endpoint.model,
                "messages": [{"role": "user", "content": prompt}],
                "temperature": 0,
                "max_tokens": self.max_tokens,
            } | self.endpoint.body
            key = content_key({"url": self.endpoint.url, "path": "/chat/completions", "body": body})
            yield _JudgeRequest(
                place=place, sample=sample, ours_first=ours_first, body=body, nonce=nonce, key=key
            )

    async def _ask(self, request: _JudgeRequest, servers: Servers) -> str:
        try:
            result = await (await servers.client(self.endpoint)).chat(
                request.body["messages"],
                model=self.endpoint.model,
                temperature=0,
                max_tokens=self.max_tokens,
                **self.endpoint.eft,
            )
        except EftError as error:
            raise StudyError(f"judge {self.endpoint.model!r} at {self.endpoint.url}: {error}") from error
        return result.text


def _count(
    requests: Sequence[_JudgeRequest],
    equal: Sequence[tuple[str, str]],
    journal: Journal,
    baseline: str,
    prompts: Sequence[Prompt],
) -> Preferences:
    """Join the two orders of each pair, and the pairs of each prompt."""
    verdicts: dict[tuple[tuple[str, str], int], dict[bool, float | None]] = {}
    for request in requests:
        entry = journal.get(request.key) or {}
        raw = verdict_in(str(entry.get("reply", "")), request.nonce)
        verdicts.setdefault((request.place, request.sample), {})[request.ours_first] = raw
    outcomes: dict[tuple[str, str], list[float]] = {}
    pairs = disagreements = 0
    for (place, _), orders in verdicts.items():
        ahead, behind = orders[True], orders[False]
        if ahead is None or behind is None:
            continue
        pairs += 1
        disagreements += ahead != 1 - behind
        outcomes.setdefault(place, []).append((ahead + 1 - behind) / 2)
    for place in equal:
        outcomes.setdefault(place, []).append(0.5)
    readable = [raw for orders in verdicts.values() for raw in orders.values() if raw is not None]
    decided = [raw for raw in readable if raw != 0.5]
    agreement = Agreement(
        pairs=pairs,
        disagreements=disagreements,
        first_preferred=sum(decided) / len(decided) if decided else float("nan"),
        unreadable=len(requests) - len(readable),
        equal=len(equal),
    )
    values = {place: sum(found) / len(found) for place, found in outcomes.items()}
    return Preferences(values | {(baseline, prompt.id): 0.5 for prompt in prompts}, agreement)
