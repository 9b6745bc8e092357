"""The sums over a request's generated tokens."""

import math

from eft_server.behaviour.report import Report


def test_a_report_is_of_all_tokens_of_all_texts() -> None:
    report, other = Report(), Report()
    report.add([(1.0, 0.5), (0.0, 0.1)])
    other.add([(0.0, 0.3), (1.0, 0.1)])
    report.add_report(other)
    assert report.fields == {"tokens": 4, "changed": 0.5, "kl": 0.25}


def test_no_token_is_no_report_and_infinity_is_null() -> None:
    report = Report()
    assert report.fields is None
    report.add([(1.0, math.inf)])
    assert report.fields == {"tokens": 1, "changed": 1.0, "kl": None}
