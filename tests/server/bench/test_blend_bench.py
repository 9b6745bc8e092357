"""What the blend's benchmark counts; how long anything takes is nobody's business here."""

import pytest
import torch

from eft_server.bench.blend import BlendSizes, BlendStep, counted, in_kernels, in_torch, main, steps

CPU = torch.device("cpu")


def sizes(members: int = 3, dtype: str = "bfloat16", rows: int = 2) -> BlendSizes:
    return BlendSizes(rows, 20_480, 20_000, 480, members, dtype)


def by_name(measured: BlendSizes) -> dict[str, BlendStep]:
    return {step.name: step for step in steps(measured, CPU)}


def test_filters_are_measured_with_small_and_with_large_nuclei() -> None:
    measured = sizes()
    found = by_name(measured)
    assert list(found) == [
        "no filter",
        "expert, small nuclei",
        "base, small nuclei",
        "expert, large nuclei",
        "base, large nuclei",
    ]
    for kind in ("expert", "base"):
        small, large = (found[f"{kind}, {size} nuclei"].held for size in ("small", "large"))
        assert small is not None and large is not None and 5 * small < large
    step = found["base, small nuclei"]
    blended = in_torch(step, measured)(lambda first, end: step.logits_M[first:end])
    assert blended.isfinite().sum(dim=-1).float().mean().item() == pytest.approx(step.held, rel=0.05)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("members", [3, 5, 7])
def test_the_kernels_keep_to_what_they_are_for(members: int, dtype: str) -> None:
    """Two launches for three members, six with filters, no wait, and two float32 rows beside one member's logits."""
    measured = sizes(members, dtype)
    room = 2 + getattr(torch, dtype).itemsize / 4 + 0.01
    for name, step in by_name(measured).items():
        cost = counted(in_kernels, step, measured, run=False)
        assert cost.waits == 0
        assert cost.peak <= room
        if step.held is None:
            assert cost.launches == 2 + (members - 3 + 1) // 2
            assert cost.traffic < (1.05 if members == 3 else 2)
        else:
            assert cost.launches == members + 3, name


def test_counts_do_not_depend_on_how_many_rows_there_are() -> None:
    few, more = (
        [counted(in_kernels, step, measured, run=False) for step in steps(measured, CPU)]
        for measured in (sizes(rows=1), sizes(rows=6))
    )
    for one, other in zip(few, more, strict=True):
        assert one == pytest.approx(other, rel=0.001)


def test_what_torch_launches_makes_and_waits_for_is_counted() -> None:
    found = by_name(sizes())
    plain = counted(in_torch, found["no filter"], sizes(), run=False)
    filtered = counted(in_torch, found["expert, large nuclei"], sizes(), run=False)
    assert 15 < plain.launches < 40 and 60 < filtered.launches < 150
    assert plain.waits == 0 < filtered.waits
    assert 3 < plain.traffic < filtered.traffic
    assert 3.5 < plain.peak < filtered.peak


def test_the_table_holds_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    main(rows=[1], vocabulary=500, member_vocabulary=490, unshared=10, members=3, dtype="float16", rounds=1)
    printed = capsys.readouterr().out
    assert "base, large nuclei" in printed
    assert printed.count("kernels") == printed.count("torch") == 5
