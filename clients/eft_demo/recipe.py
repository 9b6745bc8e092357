"""Every number of the recipe, in one place: the full one, and a minute one that only shows that it runs."""

from dataclasses import dataclass

from eft_demo.training import Schedule


@dataclass(frozen=True)
class Recipe:
    """Sizes, seeds and schedules from which the whole family follows; both scales share one recipe."""

    pretraining: Schedule
    fine_tuning: Schedule
    seed: int = 0
    subjects_per_kind: int = 60
    vocabulary: int = 2000
    positions: int = 512  # what the models accept
    row_tokens: int = 128  # what they are trained on at a time
    safe_questions: int = 400
    unsafe_questions: int = 200


FULL = Recipe(
    pretraining=Schedule(steps=400, rows=24, rate=1e-2),
    fine_tuning=Schedule(steps=160, rows=32, rate=5e-4),
)
SMOKE = Recipe(
    pretraining=Schedule(steps=3, rows=2, rate=4e-3),
    fine_tuning=Schedule(steps=2, rows=2, rate=5e-4),
    safe_questions=4,
    unsafe_questions=2,
)
