"""What the blend's benchmark times; how long that takes is nobody's business here."""

import torch

from eft_server.bench.blend import _ways, main


def test_filters_are_timed_with_small_and_with_large_nuclei(capsys):
    ways = {name: (held, way) for name, held, way in _ways(4, 2000, 3, torch.device("cpu"))}
    assert list(ways) == [
        "no filter",
        "expert filter, small nuclei",
        "base filter, small nuclei",
        "expert filter, large nuclei",
        "base filter, large nuclei",
    ]
    for kind in ("expert", "base"):
        small, large = (
            int(ways[f"{kind} filter, {size} nuclei"][0].replace(",", "")) for size in ("small", "large")
        )
        assert 5 * small < large
    plain, filtered = (ways[name][1]() for name in ("no filter", "base filter, small nuclei"))
    assert torch.isfinite(plain).all()
    assert filtered.isfinite().sum() < plain.numel() / 5
    main(rows=[2], vocabulary=500, members=3, rounds=2)
    assert "base filter, large nuclei" in capsys.readouterr().out
