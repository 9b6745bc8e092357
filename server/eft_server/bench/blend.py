"""`python -m eft_server.bench.blend`: the equation alone, in torch and in the kernels, on random logits."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from eft_server.bench.rounds import spread

if TYPE_CHECKING:
    import torch

TOP_P = 0.9
SHARPNESS = {"small nuclei": 4.0, "large nuclei": 1.0}
"""Standard deviations of the logits: a trained model's are far apart, a random one's are not."""

console = Console()
console.width = max(console.width, 112)


class BlendStep(NamedTuple):
    """One way in which rows are blended.

    Attributes:
        name: what it is.
        logits_M: the members' logits.
        vector: one row's numbers, `engine.worker.columns`; all rows have the same.
        held: how many tokens are in a row's nucleus.
    """

    name: str
    logits_M: list["torch.Tensor"]
    vector: list[float]
    held: float | None


class Cost(NamedTuple):
    """What one step costs, in units that do not depend on its size.

    Attributes:
        launches: kernels.
        waits: for the device.
        traffic: bytes that are moved, in those of each member's logits and of one float32 row a row.
        peak: the largest number of bytes at a time, the members' logits among them, in those of a float32 row a row.
    """

    launches: int
    waits: int
    traffic: float
    peak: float


@dataclass(frozen=True)
class BlendSizes:
    """What is blended."""

    rows: int
    vocabulary: int = 152_064
    member_vocabulary: int = 151_936
    unshared: int = 399
    members: int = 3
    dtype: str = "bfloat16"

    @property
    def unshared_ids(self) -> range:
        """The last of the base's."""
        return range(self.vocabulary - self.unshared, self.vocabulary)


def main(
    rows: Annotated[
        list[int] | None,
        typer.Option(help="Rows of logits; may be given several times (default: 2; on a GPU 1, 16, 128)"),
    ] = None,
    vocabulary: Annotated[int, typer.Option(help="The base's ids", min=2)] = 152_064,
    member_vocabulary: Annotated[int, typer.Option(help="The other members' ids", min=2)] = 151_936,
    unshared: Annotated[int, typer.Option(help="Of the base's ids, those not shared", min=0)] = 399,
    members: Annotated[int, typer.Option(help="Members of the family", min=3)] = 3,
    dtype: Annotated[str, typer.Option(help="Of the logits: bfloat16, float16 or float32")] = "bfloat16",
    rounds: Annotated[int, typer.Option(help="How often each is timed", min=1)] = 15,
) -> None:
    """Count what the blend asks of a device, plain and with a filter of either kind on every row, and time it.

    Traffic is in units of what has to be moved: each member's logits read once, one float32 row written. What the
    kernels take for a nucleus is less than what is counted, the most. The peak is in float32 rows for each row, the
    members' logits among them. The kernels run on a GPU alone; their counts need none.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    for count in rows or ((1, 16, 128) if on_gpu else (2,)):
        sizes = BlendSizes(count, vocabulary, member_vocabulary, unshared, members, dtype)
        title = f"{count} rows, {vocabulary:,} ids, {members} members, {dtype}, {device}"
        table = Table(title=f"{title}; ms are medians of {rounds}", show_edge=False)
        for name in ("", "nucleus", "", "launches", "waits", "traffic", "peak", "ms"):
            table.add_column(name, no_wrap=True)
        for step in steps(sizes, device):
            held = "" if step.held is None else f"{step.held:,.0f}"
            for name, way in (("torch", in_torch), ("kernels", in_kernels)):
                cost = counted(way, step, sizes, run=on_gpu)
                runs = on_gpu or way is in_torch
                ms = spread(_timed(way(step, sizes), step.logits_M, rounds)) if runs else ""
                figures = (f"{cost.launches}", f"{cost.waits}", f"{cost.traffic:.2f}", f"{cost.peak:.2f}")
                table.add_row(step.name, held, name, *figures, ms)
            table.add_section()
        console.print(table)


def steps(sizes: BlendSizes, device: "torch.device") -> Iterator[BlendStep]:
    """What is measured: no filter, and filters where the nucleus holds few tokens, and many."""
    import torch

    from eft_server.behaviour.coefficients import BASE_FILTER, EXPERT_FILTER
    from eft_server.behaviour.equation import nucleus

    chance = torch.Generator(device).manual_seed(0)
    widths = [sizes.vocabulary] + [sizes.member_vocabulary] * (sizes.members - 1)
    dtype = getattr(torch, sizes.dtype)
    drawn_M = [torch.randn((sizes.rows, width), generator=chance, device=device) for width in widths]
    rest = [0.5] * (sizes.members - 3)
    none = [0.0] * (sizes.members - 3)
    steered = [1.0, -1.0, 1.0, *rest]
    plain = [*steered, 0.0, 0.0, 0.0, *none, 0.0, 0.0]
    yield BlendStep("no filter", [logits_RV.to(dtype) for logits_RV in drawn_M], plain, None)
    for sized, sharpness in SHARPNESS.items():
        logits_M = [(logits_RV * sharpness).to(dtype) for logits_RV in drawn_M]
        for name, kind, place, weights in (
            ("expert", EXPERT_FILTER, 2, [0.0, 0.0, 1.0, *none]),
            ("base", BASE_FILTER, 0, steered),
        ):
            top_p_R = torch.full((sizes.rows,), TOP_P, device=device)
            held = nucleus(logits_M[place].float(), top_p_R).sum(dim=-1).float().mean().item()
            vector = [*weights, 1.0, -1.0, 0.0, *rest, float(kind), TOP_P]
            yield BlendStep(f"{name}, {sized}", logits_M, vector, held)


Make = Callable[[int, int], list["torch.Tensor"]]
"""Brings the logits of the members from one on and before another."""

Way = Callable[[Make], "torch.Tensor"]


def in_torch(step: BlendStep, sizes: BlendSizes) -> Way:
    """Prepare to blend a step with `blend.blend`, which wants all members' logits at once."""
    import torch

    from eft_server.behaviour.equation import blend
    from eft_server.engine.worker.columns import taken_apart

    device = step.logits_M[0].device
    coefficients_RM, filters = taken_apart(torch.tensor([step.vector] * sizes.rows, device=device))
    unshared_U = torch.tensor(sizes.unshared_ids, dtype=torch.int64, device=device)
    chosen = filters if step.vector[-2] else None
    return lambda make: blend(make(0, sizes.members), coefficients_RM, unshared_U, chosen)


def in_kernels(step: BlendStep, sizes: BlendSizes) -> Way:
    """Prepare to blend a step with `worker.v2.blending`, which wants as many members' logits as there is room for."""
    import torch

    from eft_server.engine.worker.v2.blending import Blending, Logits, Rows, SharedIds

    device = step.logits_M[0].device
    vectors_RW = torch.tensor([step.vector] * sizes.rows, device=device)
    vocabulary = SharedIds.of(sizes.vocabulary, sizes.unshared_ids, device)
    filtered = Rows.of(range(sizes.rows), sizes.rows, device) if step.vector[-2] else None

    def blend(make: Make) -> torch.Tensor:
        blending = Blending(vocabulary, vectors_RW, filtered)
        member = 0
        while member < sizes.members:
            end = min(member + blending.at_once(member), sizes.members)
            blending.add(*map(Logits, range(member, end), make(member, end)))
            member = end
        return blending.finish()

    return blend


def counted(
    way: Callable[[BlendStep, BlendSizes], Way], step: BlendStep, sizes: BlendSizes, *, run: bool
) -> Cost:
    """What one way to blend a step costs.

    Args:
        way: `in_torch` or `in_kernels`.
        step: what is blended.
        sizes: of that.
        run: whether to launch our kernels; the costs do not depend on it.
    """
    from eft_server.bench.launches import Launches

    def make(first: int, end: int) -> list["torch.Tensor"]:
        with launches.others_work():
            return [logits_RV.clone() for logits_RV in step.logits_M[first:end]]

    blended = way(step, sizes)
    with Launches() as launches, launches.of_our_kernels(run=run):
        blended(make)
    row = 4 * sizes.rows * sizes.vocabulary
    least = row + sum(logits_RV.nbytes for logits_RV in step.logits_M)
    traffic = launches.moved_bytes / least
    return Cost(launches.count, launches.waits, traffic, launches.peak_bytes / row)


def _timed(way: Way, logits_M: Sequence["torch.Tensor"], rounds: int) -> list[float]:
    """Milliseconds of each round, after one to warm up."""
    import torch

    wait: Callable[[], object] = torch.cuda.synchronize if logits_M[0].is_cuda else lambda: None
    taken_ms = []
    for _ in range(rounds + 1):
        # The result may take the base's place.
        own_M = [logits_M[0].clone(), *logits_M[1:]]
        wait()
        start = time.perf_counter()
        way(lambda first, end, own_M=own_M: own_M[first:end])  # type: ignore[misc]
        wait()
        taken_ms.append((time.perf_counter() - start) * 1000)
    return taken_ms[1:]


if __name__ == "__main__":
    typer.run(main)
