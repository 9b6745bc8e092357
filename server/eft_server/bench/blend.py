"""`python -m eft_server.bench.blend`: the equation alone, on random logits, on the device that is here."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from eft_server.bench.rounds import spread

if TYPE_CHECKING:
    import torch

ROWS = (1, 16, 128)
TOP_P = 0.9
SHARPNESS = {"small nuclei": 4.0, "large nuclei": 1.0}
"""Standard deviations of the logits: a trained model's are far apart, a random one's are not."""

console = Console()


def main(
    rows: Annotated[
        list[int] | None,
        typer.Option(help="Rows of logits; may be given several times (default: 1, 16, 128)"),
    ] = None,
    vocabulary: Annotated[int, typer.Option(help="Ids in a row", min=2)] = 49_152,
    members: Annotated[int, typer.Option(help="Members of the family", min=3)] = 3,
    rounds: Annotated[int, typer.Option(help="How often each is measured", min=1)] = 15,
) -> None:
    """Time the blend of the members' logits, plain and with a filter of either kind on every row.

    Filters cost more where the nucleus holds many tokens, so they are timed with few and with many.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    title = f"{vocabulary:,} ids, {members} members, {device}: ms, median of {rounds} (lowest to highest)"
    table = Table("rows", "", "tokens in a nucleus", "ms", title=title)
    for count in rows or ROWS:
        for name, held, way in _ways(count, vocabulary, members, device):
            _ms(way, device)
            table.add_row(f"{count}", name, held, spread([_ms(way, device) for _ in range(rounds)]))
        table.add_section()
    console.print(table)


def _ways(
    rows: int, vocabulary: int, members: int, device: "torch.device"
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """What is timed: its name, the tokens in a nucleus, and how to do it once."""
    import torch

    from eft_server.blend import Filters, blend, nucleus
    from eft_server.mixture import BASE_FILTER, EXPERT_FILTER

    def per_row(*numbers: float) -> torch.Tensor:
        return torch.tensor([[*numbers] + [0.0] * (members - len(numbers))], device=device).repeat(rows, 1)

    chance = torch.Generator(device).manual_seed(0)
    drawn_M = [torch.randn((rows, vocabulary), generator=chance, device=device) for _ in range(members)]
    unshared_U = torch.tensor([], dtype=torch.int64, device=device)
    steered_RM = per_row(1.0, -1.0, 1.0)
    top_p_R = torch.full((rows,), TOP_P, device=device)
    yield "no filter", "", partial(blend, drawn_M, steered_RM, unshared_U)
    for sized, sharpness in SHARPNESS.items():
        logits_M = [logits_RV * sharpness for logits_RV in drawn_M]
        for name, kind, place, coefficients_RM in (
            ("expert", EXPERT_FILTER, 2, per_row(0.0, 0.0, 1.0)),
            ("base", BASE_FILTER, 0, steered_RM),
        ):
            kind_R = torch.full((rows,), float(kind), device=device)
            filters = Filters(per_row(1.0, -1.0), kind_R, top_p_R)
            held = nucleus(logits_M[place], top_p_R).sum(dim=-1).float().mean()
            way = partial(blend, logits_M, coefficients_RM, unshared_U, filters)
            yield f"{name} filter, {sized}", f"{held:,.0f}", way


def _ms(way: Callable[[], object], device: "torch.device") -> float:
    import torch

    start = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    typer.run(main)
