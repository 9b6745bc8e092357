"""Which batches the cost of reports is measured on."""

from eft_server.bench.reports import ReportBatch, batches


def test_each_batch_is_compared_with_the_one_in_which_nobody_asks() -> None:
    one, many = batches(["demo"], [1, 16])
    assert one == [ReportBatch("demo", 1, 0), ReportBatch("demo", 1, 1)]
    assert many == [ReportBatch("demo", 16, 0), ReportBatch("demo", 16, 1), ReportBatch("demo", 16, 16)]
