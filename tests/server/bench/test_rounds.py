"""Rounds of measurements, over targets whose times are made up; the benchmark itself is run by hand."""

import pytest

from eft_server.bench.__main__ import Measured, Speculation
from eft_server.bench.rounds import Rounds, run, spread
from eft_server.bench.targets import Drafts, Job, Timing
from eft_server.family.vocabulary import Vocabulary

VOCABULARY = Vocabulary(100, ((0, 1), (5, 90)))


class Scripted:
    def __init__(self, *timings: Timing):
        self.timings, self.jobs = list(timings), []

    def time(self, job: Job) -> Timing:
        self.jobs.append(job)
        return self.timings[len(self.jobs) - 1]


def jobs(*tokens: int) -> list[Job]:
    return [Job([[1, 2, 3], [4, 5, 6]], count) for count in tokens]


def test_the_first_job_warms_up_and_is_not_counted():
    target, seen = Scripted(Timing(9.0), Timing(2.0), Timing(4.0)), []
    result = run("batch 2", {"a": target}, jobs(4, 8, 8), seen.append)
    assert result.tokens_per_s == {"a": [8.0, 4.0]}
    assert not result.reading
    assert (result.batch, seen, len(target.jobs)) == (2, ["a", "a"], 3)


def test_reading_counts_the_tokens_of_the_prompts():
    result = run("reading", {"a": Scripted(Timing(1.0), Timing(2.0))}, jobs(1, 1), lambda name: None)
    assert result.tokens_per_s == {"a": [3.0]}
    assert result.reading


def test_acceptance_is_taken_over_all_rounds_and_none_where_nobody_drafts():
    drafting = Scripted(Timing(1.0), Timing(1.0, Drafts(10, 4)), Timing(1.0, Drafts(30, 26)))
    plain = Scripted(*(Timing(1.0) for _ in range(3)))
    result = run("batch 2", {"drafting": drafting, "plain": plain}, jobs(4, 8, 8), lambda name: None)
    assert result.acceptance("drafting") == pytest.approx(0.75)
    assert result.acceptance("plain") is None


def test_the_bound_is_what_the_members_cost_one_by_one():
    result = Rounds("batch 1", 1, False, {"base": [10.0], "small": [40.0], "expert": [40.0]})
    assert result.bound(["base", "small", "expert"]) == [pytest.approx(1 / (0.1 + 0.025 + 0.025))]


def test_a_spread_is_the_median_with_its_ends():
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"


def test_what_is_read_is_never_the_same_twice_and_what_is_generated_from_is():
    measured = Measured(
        [2], tokens=16, prompt=4, prefill=8, rounds=3, rest_s=0, vocabulary=VOCABULARY, vectors={}
    )
    (_, batch), (_, reading) = measured.jobs()
    assert len({tuple(map(tuple, job.prompts)) for job in reading}) == len(reading) == 4
    assert {len(job.prompts[0]) for job in reading} == {8}
    assert len({tuple(map(tuple, job.prompts)) for job in batch}) == 1
    assert [job.tokens for job in batch] == [4, 16, 16, 16]


def test_other_weights_are_measured_beside_the_defaults():
    vectors = {"helpful=1": (1.0, -1.0, 1.0)}
    measured = Measured(
        [1], tokens=16, prompt=4, prefill=0, rounds=1, rest_s=0, vocabulary=VOCABULARY, vectors=vectors
    )
    planned = dict(measured.jobs())
    assert list(planned) == ["batch 1", "batch 1, helpful=1"]
    assert planned["batch 1, helpful=1"][1].vectors == [(1.0, -1.0, 1.0)]
    assert planned["batch 1"][1].vectors is None


def test_every_number_of_drafted_tokens_is_a_target():
    assert Speculation("helpful", (1, 4)).names == (
        "composite, helpful drafts 1",
        "composite, helpful drafts 4",
    )
