"""Targets beside each other."""

import json

import pytest

from eft_client.load.output.plots import draw_latencies
from eft_client.load.output.summary import as_json
from eft_client.load.output.tables import figure_rows, ratio_rows
from eft_client.load.statistics.comparison import Spread, compare

from .made import failure, header, record


def runs(*ends_ms: tuple[str, int, float]):
    """One request a round: target, repeat, and when it ended."""
    return [
        record(
            contestant=name, repeat=repeat, sent_ms=0.0, scheduled_ms=0.0, chunks_ms=(100.0, end), end_ms=end
        )
        for name, repeat, end in ends_ms
    ]


def test_ratios_are_taken_repeat_by_repeat() -> None:
    # The machine is twice as slow in the second repeat; b is always half as fast.
    comparison = compare(header(), runs(("a", 0, 1000), ("b", 0, 2000), ("b", 1, 4000), ("a", 1, 2000)))
    baseline, other = comparison.under("concurrency 2")
    assert comparison.baseline("concurrency 2") is baseline
    assert other.ratios(baseline, "requests_per_s") == Spread(0.5, 0.5, 0.5)
    assert other.spread("requests_per_s") == Spread(0.375, 0.25, 0.5)


def test_a_repeat_that_the_baseline_missed_gives_no_ratio() -> None:
    comparison = compare(header(), runs(("a", 0, 1000), ("b", 1, 2000)))
    baseline, other = comparison.under("concurrency 2")
    assert other.ratios(baseline, "requests_per_s") is None


def test_warm_up_counts_nowhere() -> None:
    records = [record(), record(index=1, warm_up=True, load="warm-up", end_ms=1e6)]
    (outcome,) = compare(header(), records).outcomes
    assert outcome.records == records[:1]


def test_a_spread_says_median_lowest_and_highest() -> None:
    assert Spread.of([3.0, None, 1.0, 2.0]) == Spread(2, 1, 3)
    assert Spread.of([None]) is None
    assert Spread(1234.5, 1, 3000).text(1) == "1,234.5 (1.0 to 3,000.0)"
    assert Spread(2, 2, 2).text(2) == "2.00"


def test_tables_have_both_times_where_there_is_a_schedule() -> None:
    loads = ["concurrency 2", "4 requests/s"]
    records = [record(contestant=name, load=load) for load in loads for name in "ab"]
    comparison = compare(header(loads=loads), records)
    closed, opened = ({row[0]: row[1:] for row in figure_rows(comparison, load).rows} for load in loads)
    assert not [title for title in closed if "from schedule" in title]
    assert opened["TTFT p50, ms"] == ["50.00"] * 2
    assert opened["TTFT from schedule p50, ms"] == ["60.00"] * 2
    assert opened["E2E from schedule p99, ms"] == ["160.00"] * 2
    closed_ratios, open_ratios = (ratio_rows(comparison, load) for load in loads)
    assert closed_ratios
    assert open_ratios
    more = {row[0] for row in open_ratios.rows} - {row[0] for row in closed_ratios.rows}
    assert more == {f"{name} from schedule {at}" for name in ("TTFT", "E2E") for at in ("p50", "p99")}
    summary = json.loads(as_json(comparison))
    assert [one["figures"]["ttft_scheduled_ms_p50"] is None for one in summary["outcomes"]] == [
        True,
        True,
        False,
        False,
    ]


def test_open_loops_are_drawn_from_both_times() -> None:
    loads = ["concurrency 2", "4 requests/s"]
    comparison = compare(header(loads=loads), [record(load=load) for load in loads])
    closed, opened = (draw_latencies(comparison, load) for load in loads)
    assert [len(place.lines) for place in closed.axes] == [1, 1, 1, 1]
    assert [len(place.lines) for place in opened.axes] == [2, 1, 1, 2]


def test_the_summary_is_strict_json_with_figures_and_ratios() -> None:
    records = [
        *runs(("a", 0, 1000), ("b", 0, 2000)),
        failure("timeout", contestant="b", index=1, end_ms=1500.0),
    ]
    summary = json.loads(
        as_json(compare(header(limits={"ttft_ms": 100.0}), records)), parse_constant=pytest.fail
    )
    a, b = summary["outcomes"]
    assert summary["run"]["baseline"] == "a"
    assert a["ratios"] == {}
    assert b["ratios"]["requests_per_s"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert b["errors"] == {"timeout": 1}
    assert b["figures"]["goodput_per_s"]["median"] == 0.5
    assert b["rounds"][0]["repeat"] == 0
