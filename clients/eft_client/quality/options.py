"""From the command's options to a plan and questions; every mistake is found before anything is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eft_client.quality.diversity.ead import VOCABULARY
from eft_client.quality.diversity.measures import load_measure, metrics_of
from eft_client.quality.errors import StudyError
from eft_client.quality.generations import Sampling
from eft_client.quality.judges.judge import AnswerJudge, load_own_judge
from eft_client.quality.judges.match import MatchJudge
from eft_client.quality.judges.pairwise import PairwiseJudge, read_template
from eft_client.quality.judges.refusal import RefusalJudge, RefusalRules
from eft_client.quality.judges.reward import RewardJudge
from eft_client.quality.metrics import Metric
from eft_client.quality.prompt_option import prompts_of
from eft_client.quality.prompts import Prompt
from eft_client.quality.statistics.frontier import Constraint
from eft_client.quality.statistics.gap import Gap
from eft_client.quality.study import Plan
from eft_client.quality.summary import Questions
from eft_client.settings import Setting, parse_setting, read_settings, sweep

__all__ = ["StudyOptions", "planned"]

DEFAULT_JUDGES = ("match", "refusal")


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The command's options, as they were given; `eft bench quality --help` says what each means."""

    prompts: str
    limit: int | None = None
    setting: Sequence[str] = ()
    settings: Path | None = None
    sweep: Sequence[str] = ()
    url: str
    model: str | None = None
    n: int = 1
    temperature: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    per_request: int = 8
    concurrency: int = 8
    timeout_s: float = 600.0
    baseline: str | None = None
    judge: Sequence[str] = ()
    judge_prompt: Path | None = None
    judge_samples: int = 1
    judge_key_env: str | None = None
    refusals: Path | None = None
    diversity: Sequence[str] = ()
    vocabulary: int = VOCABULARY
    frontier: str | None = None
    constraint: str | None = None
    gap: Sequence[str] = ()
    repeats: int = 10_000
    output: Path


def planned(options: StudyOptions) -> tuple[Plan, Questions]:
    """The plan and the questions; every mistake is found here, before anything is asked."""
    settings = _settings(options)
    judges, pairwise, reward = _judges(options)
    for asked in (*settings, *(judge.endpoint for judge in pairwise), *([reward.endpoint] if reward else [])):
        _ = asked.api_key  # raises where the variable that it names is not set
    plan = Plan(
        settings=settings,
        prompts=prompts_of(options.prompts, options.seed, options.limit),
        sampling=Sampling(
            n=options.n,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            seed=options.seed,
            per_request=options.per_request,
        ),
        baseline=options.baseline or settings[0].name,
        judges=judges,
        pairwise=pairwise,
        reward=reward,
        diversity=[
            load_measure(text, vocabulary=options.vocabulary)
            for text in options.diversity or ["ead"]
            if text != "none"
        ],
        folder=options.output,
        concurrency=options.concurrency,
    )
    questions = _questions(options, plan)
    return plan, questions


def _settings(options: StudyOptions) -> list[Setting]:
    found = [parse_setting(text, url=options.url) for text in options.setting]
    if options.settings is not None:
        found += read_settings(options.settings, url=options.url)
    for text in options.sweep:
        found += sweep(text, model=options.model, url=options.url)
    if not found:
        raise StudyError("no setting: give --setting, --settings or --sweep, as in --sweep 'helpful=0:1:0.1'")
    return found


def _judges(options: StudyOptions) -> tuple[list[AnswerJudge], list[PairwiseJudge], RewardJudge | None]:
    """The judges that `--judge` names, by their kinds."""
    simple, pairwise, reward = list[AnswerJudge](), list[PairwiseJudge](), None
    for text in options.judge or DEFAULT_JUDGES:
        kind, _, rest = text.partition(":")
        if kind in DEFAULT_JUDGES and not rest:
            rules = RefusalRules.read(options.refusals) if kind == "refusal" else None
            simple.append(RefusalJudge(rules) if rules else MatchJudge())
        elif kind == "llm" and rest:
            endpoint = _endpoint(text, rest, options)
            template = read_template(options.judge_prompt)
            pairwise.append(
                PairwiseJudge(endpoint=endpoint, template=template, samples=options.judge_samples)
            )
        elif kind == "reward":
            endpoint = (
                parse_setting(rest, url=options.url)
                if rest
                else Setting("reward", options.model, options.url)
            )
            reward = RewardJudge(endpoint=endpoint)
        elif rest:
            simple.append(load_own_judge(text))
        else:
            raise StudyError(
                f"judge {text!r}: expected match, refusal, reward, reward:MODEL@URL, llm:MODEL@URL or "
                "FILE.py:function"
            )
    return simple, pairwise, reward


def _endpoint(text: str, rest: str, options: StudyOptions) -> Setting:
    """The model that judges, and its server: the server that is judged is no default for it."""
    parsed = parse_setting(rest, url=options.url)
    if not parsed.model or "@" not in rest.split(maxsplit=1)[0]:
        raise StudyError(f"judge {text!r}: expected llm:MODEL@URL, as in llm:judge@http://127.0.0.1:8001/v1")
    return Setting(parsed.name, parsed.model, parsed.url, parsed.eft, options.judge_key_env)


def _questions(options: StudyOptions, plan: Plan) -> Questions:
    metrics = [metric for judge in plan.judges for metric in judge.metrics]
    metrics += [judge.metric for judge in plan.pairwise]
    metrics += [metric for measure in plan.diversity for metric in metrics_of(measure)]
    constraint = Constraint.parse(options.constraint) if options.constraint else None
    questions = Questions(
        frontier=_pair(options.frontier, metrics, plan.prompts, constraint),
        constraint=constraint,
        gaps=[Gap.parse(text) for text in options.gap],
        repeats=options.repeats,
        seed=options.seed,
    )
    names = [setting.name for setting in plan.settings]
    questions.check(metrics, names, rewards=plan.reward is not None)
    return questions


def _pair(
    text: str | None, metrics: Sequence[Metric], prompts: Sequence[Prompt], constraint: Constraint | None
) -> tuple[str, str] | None:
    """The frontier's two metrics: those given, or helpfulness and harmlessness where prompts for both are there."""
    if text is not None:
        names = [part.strip() for part in text.split(",")]
        if len(names) != 2 or names[0] == names[1]:
            raise StudyError(f"frontier {text!r}: expected two metrics, as in helpfulness,harmlessness")
        return names[0], names[1]
    known = {metric.name for metric in metrics}
    if {"helpfulness", "harmlessness"} <= known and len({prompt.harmful for prompt in prompts}) == 2:
        return "helpfulness", "harmlessness"
    if constraint is not None:
        raise StudyError("a constraint needs a frontier: give --frontier METRIC,METRIC")
    return None
