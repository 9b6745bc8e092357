"""The arithmetic, on records made by hand."""

import pytest

from eft_client.load.arrivals import ClosedLoop, OpenLoop, Trace, is_open
from eft_client.load.statistics.measures import (
    FIGURES,
    concurrency_over_time,
    errors,
    measure,
    tokens_over_time,
)

from .made import failure, record


def test_latencies_are_vllm_s() -> None:
    one = record()
    assert one.ttft_ms == 50
    assert one.e2e_ms == 150
    assert one.tpot_ms == pytest.approx(100 / 7)
    assert one.itl_ms == [20, 20, 60]


def test_a_request_of_one_token_has_no_time_per_further_token() -> None:
    one = record(chunks_ms=(150.0,), output_tokens=1)
    assert one.tpot_ms is None
    assert one.itl_ms == []
    assert measure([one], {"tpot_ms": 1.0})["goodput_per_s"] == pytest.approx(1 / 0.26)
    assert measure([one], {})["tpot_ms_mean"] is None


def test_rates_are_over_the_round_from_its_start_to_its_last_end() -> None:
    figures = measure([record(), record(sent_ms=0.0, chunks_ms=(500.0, 2000.0), end_ms=2000.0)], {})
    assert figures["duration_s"] == 2.0
    assert figures["requests_per_s"] == 1.0
    assert figures["output_tokens_per_s"] == 8.0
    assert figures["total_tokens_per_s"] == 20.0
    assert figures["input_tokens"] == 12
    assert figures["tokens_per_chunk"] == pytest.approx(16 / 6)


def test_failures_are_in_no_latency_and_no_throughput_but_in_the_time() -> None:
    figures = measure([record(), failure("timeout", end_ms=1000.0)], {})
    assert figures["completed"] == 1
    assert figures["failed"] == 1
    assert figures["requests_per_s"] == 1.0
    assert figures["ttft_ms_mean"] == 50


def test_what_an_interrupt_cut_off_is_no_failure() -> None:
    figures = measure([record(), failure("interrupted"), failure("HTTP 500")], {})
    assert (figures["completed"], figures["failed"], figures["interrupted"]) == (1, 1, 1)
    assert errors([failure("timeout"), failure("timeout"), record()]) == {"timeout": 2}


def test_percentiles_are_interpolated() -> None:
    rounds = [record(sent_ms=100.0 - wait, scheduled_ms=90.0 - wait) for wait in (0, 10, 20, 30, 40)]
    figures = measure(rounds, {})
    assert figures["ttft_ms_mean"] == 70
    assert figures["ttft_ms_p50"] == 70
    assert figures["ttft_ms_p90"] == pytest.approx(86)
    assert figures["ttft_ms_p99"] == pytest.approx(89.6)
    assert figures["late_ms_p99"] == pytest.approx(10)


def test_in_open_loops_latencies_run_from_the_scheduled_time_too() -> None:
    late = record(load="4 requests/s", scheduled_ms=20.0)
    figures = measure([late, late], {"ttft_ms": 60.0, "tpot_ms": 100.0})
    assert (figures["ttft_ms_p50"], figures["ttft_scheduled_ms_p50"]) == (50, 130)
    assert (figures["e2e_ms_p99"], figures["e2e_scheduled_ms_p99"]) == (150, 230)
    assert (figures["goodput_per_s"], figures["goodput_scheduled_per_s"]) == (pytest.approx(2 / 0.26), 0)


def test_closed_loops_have_no_schedule() -> None:
    figures = measure([record(load=ClosedLoop(2).label)], {"ttft_ms": 60.0})
    assert {value for name, value in figures.items() if "scheduled" in name} == {None}
    assert [is_open(load.label) for load in (ClosedLoop(2), OpenLoop(4), Trace("concurrency 2", (0.0,)))] == [
        False,
        True,
        True,
    ]


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    quick, slow = record(), record(sent_ms=0.0)
    assert measure([quick, slow], {"ttft_ms": 50.0})["goodput_per_s"] == pytest.approx(1 / 0.26)
    assert measure([quick, slow], {"ttft_ms": 150.0, "e2e_ms": 250.0})["goodput_per_s"] == pytest.approx(
        2 / 0.26
    )
    assert measure([quick, slow], {"ttft_ms": 150.0, "tpot_ms": 14.0})["goodput_per_s"] == 0
    assert measure([quick, slow], {})["goodput_per_s"] is None


def test_concurrency_is_the_mean_and_the_peak_of_what_was_under_way() -> None:
    spans = [(0.0, 100.0), (0.0, 50.0), (50.0, 100.0)]
    rounds = [record(sent_ms=a, scheduled_ms=a, chunks_ms=(b,), end_ms=b) for a, b in spans]
    figures = measure(rounds, {})
    assert figures["concurrency"] == 2.0
    assert figures["concurrency_peak"] == 2


def test_tokens_are_counted_by_pieces_where_the_server_does_not_count() -> None:
    assert measure([record(output_tokens=None)], {})["output_tokens"] == 4
    assert measure([record(prompt_tokens=None)], {})["input_tokens"] is None


def test_over_time_every_token_and_every_request_is_somewhere() -> None:
    rounds = [record(), record(sent_ms=0.0, chunks_ms=(500.0, 2000.0), end_ms=2000.0)]
    seconds, rates = tokens_over_time(rounds, 10)
    assert sum(rates) * 0.2 == pytest.approx(16)
    assert seconds[0] == pytest.approx(0.1)
    seconds, counts = concurrency_over_time(rounds, 10)
    assert sum(counts) * 0.2 == pytest.approx(2.0 + 0.16)
    assert counts[-1] == pytest.approx(1.0)


def test_a_round_without_a_completed_request_has_no_latencies() -> None:
    figures = measure([failure("connection", end_ms=0.0, sent_ms=0.0, scheduled_ms=0.0)], {"ttft_ms": 1.0})
    assert figures["completed"] == 0
    assert figures["requests_per_s"] is None
    assert figures["e2e_ms_p99"] is None
    assert set(figures) == {figure.name for figure in FIGURES}
