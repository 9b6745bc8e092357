"""EFT's implicit reward as a judge: how much each expert's fine-tuning prefers an answer.

r(x, y) = log π_expert(y | x) − log π_reference(y | x), summed over the answer's tokens, its end of turn included where
the model ended it (Mitchell et al., arXiv 2310.12962, §3). Asked of an EFT server's /v1/eft/score, which may judge the
answers of any other server.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eft_client.bodies import ScoreItem
from eft_client.errors import EftError, NotFound
from eft_client.quality.answers import Answer, Answers
from eft_client.quality.errors import StudyError
from eft_client.quality.journal import Journal, content_key
from eft_client.quality.metrics import Metric
from eft_client.quality.prompts import Prompt
from eft_client.quality.servers import Job, Servers, run_bounded
from eft_client.settings import Setting

__all__ = ["RewardJudge", "Rewards"]


@dataclass(frozen=True)
class Rewards:
    """The mean reward of each expert by setting's name and prompt's id.

    Attributes:
        metrics: one for each expert.
        values: by metric's name, then by place; a place is missing where no reward was finite.
        not_finite: rewards left out because a model gave the answer no probability at all.
    """

    metrics: Sequence[Metric]
    values: Mapping[str, Mapping[tuple[str, str], float]]
    not_finite: int


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Some answers to one prompt, in one request."""

    prompt: Prompt
    answers: tuple[Answer, ...]
    key: str


@dataclass(frozen=True, kw_only=True)
class RewardJudge:
    """Scores answers at an EFT server.

    Attributes:
        endpoint: that server; its `model` says which family, None the first that it lists.
        per_request: answers to one prompt that are scored in one request.
    """

    endpoint: Setting
    per_request: int = 8

    async def judge(  # noqa: PLR0913 (what it judges, and how)
        self,
        answers: Answers,
        prompts: Sequence[Prompt],
        *,
        journal: Journal,
        servers: Servers,
        concurrency: int,
        begin: Callable[[int], Callable[[], object]] = lambda _: lambda: None,
    ) -> Rewards:
        """The reward of every answer; equal answers to a prompt are scored once.

        Raises:
            StudyError: The server cannot score, refused, or failed.
        """
        batches = list(self._batches(answers, prompts))
        new = {batch.key: batch for batch in batches if journal.get(batch.key) is None}
        advance = begin(len(new))

        def job(batch: _Batch) -> Job:
            async def ask() -> None:
                journal.append(batch.key, {"judge": "reward", "rewards": await self._ask(batch, servers)})
                advance()

            return ask

        await run_bounded((job(batch) for batch in new.values()), concurrency)
        known = {
            (batch.prompt.id, answer): rewards
            for batch in batches
            for answer, rewards in zip(batch.answers, _read(journal, batch), strict=True)
        }
        return _mean(answers, known)

    def _batches(self, answers: Answers, prompts: Sequence[Prompt]) -> Iterator[_Batch]:
        for prompt in prompts:
            distinct = {
                answer: None
                for (_, asked), samples in answers.items()
                if asked == prompt.id
                for answer in samples
                if answer.text or answer.finished
            }
            ordered = sorted(distinct, key=lambda answer: (answer.text, answer.finished))
            for start in range(0, len(ordered), self.per_request):
                chosen = tuple(ordered[start : start + self.per_request])
                yield _Batch(prompt=prompt, answers=chosen, key=self._key(prompt, chosen))

    def _key(self, prompt: Prompt, answers: Sequence[Answer]) -> str:
        texts = [[answer.text, answer.finished] for answer in answers]
        asked: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": list(prompt.messages),
            "texts": texts,
        }
        return content_key({"url": self.endpoint.url, "path": "/eft/score", "body": asked})

    async def _ask(self, batch: _Batch, servers: Servers) -> list[dict[str, float | None]]:
        items = [
            ScoreItem(completion=answer.text, messages=batch.prompt.messages, end=answer.finished)
            for answer in batch.answers
        ]
        place = f"the implicit reward at {self.endpoint.url}"
        try:
            client = await servers.client(self.endpoint)
            result = await client.score(items, model=self.endpoint.model, members=True)
        except NotFound as error:
            raise StudyError(
                f"{place}: only EFT servers have it (POST /v1/eft/score), for a model that has experts: {error}"
            ) from error
        except EftError as error:
            raise StudyError(f"{place}, prompt {batch.prompt.id!r}: {error}") from error
        if not all(item.rewards for item in result):
            raise StudyError(
                f"{place}: the answer has no reward; expected a model that has experts, not {self.endpoint.model!r}"
            )
        return [
            {name: one.total if math.isfinite(one.total) else None for name, one in item.rewards.items()}
            for item in result
        ]


def _read(journal: Journal, batch: _Batch) -> list[Mapping[str, float | None]]:
    rewards = (journal.get(batch.key) or {}).get("rewards")
    if (
        not isinstance(rewards, list)
        or len(rewards) != len(batch.answers)
        or not all(isinstance(one, dict) and one for one in rewards)
    ):
        raise StudyError(f"{journal.path}: the entry {batch.key[:12]}… is not as it was written; remove it")
    return rewards


def _mean(answers: Answers, known: Mapping[tuple[str, Answer], Mapping[str, float | None]]) -> Rewards:
    experts = list(dict.fromkeys(name for rewards in known.values() for name in rewards))
    values: dict[str, dict[tuple[str, str], float]] = {f"reward.{name}": {} for name in experts}
    missing = 0
    for place, samples in answers.items():
        for name in experts:
            found = [known[place[1], answer].get(name) for answer in samples if (place[1], answer) in known]
            finite = [value for value in found if value is not None]
            missing += len(found) - len(finite)
            if finite:
                values[f"reward.{name}"][place] = sum(finite) / len(finite)
    metrics = [
        Metric(
            name=f"reward.{name}",
            meaning=f"mean of log π({name}) − log π(its reference) over the answers, in nats",
            counts="all prompts",
        )
        for name in experts
    ]
    return Rewards(metrics, values, missing)
