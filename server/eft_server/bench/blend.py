"""`python -m eft_server.bench.blend`: only the equation, in torch and in the kernels, on random logits."""

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
"""Standard deviations of the logits: large for a trained model, small for a random one."""

console = Console()
console.width = max(console.width, 112)


class BlendStep(NamedTuple):
    """One configuration of rows to blend.

    Attributes:
        name: its name.
        logits_M: the members' logits.
        vector: one row's numbers, `engine.worker.columns`; all rows have the same.
        held: number of tokens in a row's nucleus.
    """

    name: str
    logits_M: list["torch.Tensor"]
    vector: list[float]
    held: float | None


class Cost(NamedTuple):
    """The cost of one step, in units that do not depend on its size.

    Attributes:
        launches: kernel launches.
        waits: waits for the device.
        traffic: bytes moved, as a multiple of each member's logits plus one float32 row per row.
        peak: peak memory including the members' logits, as a multiple of one float32 row per row.
    """

    launches: int
    waits: int
    traffic: float
    peak: float


@dataclass(frozen=True)
class BlendSizes:
    """The sizes of a blend."""

    rows: int
    vocabulary: int = 152_064
    member_vocabulary: int = 151_936
    unshared: int = 399
    members: int = 3
    dtype: str = "bfloat16"

    @property
    def unshared_ids(self) -> range:
        """The unshared ids: the last ids of the base."""
        return range(self.vocabulary - self.unshared, self.vocabulary)


def main(
    rows: Annotated[
        list[int] | None,
        typer.Option(help="Rows of logits; may be repeated (default: 2; on a GPU 1, 16, 128)"),
    ] = None,
    vocabulary: Annotated[int, typer.Option(help="Vocabulary size of the base", min=2)] = 152_064,
    member_vocabulary: Annotated[
        int, typer.Option(help="Vocabulary size of the other members", min=2)
    ] = 151_936,
    unshared: Annotated[int, typer.Option(help="Ids of the base that are not shared", min=0)] = 399,
    members: Annotated[int, typer.Option(help="Number of members", min=3)] = 3,
    dtype: Annotated[
        str, typer.Option(help="Dtype of the logits: bfloat16, float16 or float32")
    ] = "bfloat16",
    rounds: Annotated[int, typer.Option(help="Timed runs of each blend", min=1)] = 15,
) -> None:
    """Count and time the blend's work on a device, plain and with a filter of each kind on every row.

    Traffic is a multiple of the minimum: each member's logits read once, one float32 row written. For a nucleus, the
    count is an upper bound on the kernels' traffic. The peak is in float32 rows per row, including the members'
    logits. The kernels run only on a GPU; their counts need none.
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
    """The steps to measure: no filter, and filters with small and with large nuclei."""
    import torch

    from eft_server.behaviour.coefficients import BASE_FILTER, EXPERT_FILTER
    from eft_server.behaviour.equation import nucleus

    rng = torch.Generator(device).manual_seed(0)
    widths = [sizes.vocabulary] + [sizes.member_vocabulary] * (sizes.members - 1)
    dtype = getattr(torch, sizes.dtype)
    drawn_M = [torch.randn((sizes.rows, width), generator=rng, device=device) for width in widths]
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
"""Makes the logits of a range of members: from the first, up to but not including the second."""

Way = Callable[[Make], "torch.Tensor"]


def in_torch(step: BlendStep, sizes: BlendSizes) -> Way:
    """Prepare to blend a step with `blend.blend`, which needs all members' logits at once."""
    import torch

    from eft_server.behaviour.equation import blend
    from eft_server.engine.worker.columns import split_vectors

    device = step.logits_M[0].device
    coefficients_RM, filters = split_vectors(torch.tensor([step.vector] * sizes.rows, device=device))
    unshared_U = torch.tensor(sizes.unshared_ids, dtype=torch.int64, device=device)
    chosen = filters if step.vector[-2] else None
    return lambda make: blend(make(0, sizes.members), coefficients_RM, unshared_U, chosen)


def in_kernels(step: BlendStep, sizes: BlendSizes) -> Way:
    """Prepare to blend a step with `worker.v2.blending`, which takes as many members' logits as there is room for."""
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
    """The cost of one way to blend a step.

    Args:
        way: `in_torch` or `in_kernels`.
        step: the step.
        sizes: its sizes.
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
    """Milliseconds of each round, after a warm-up."""
    import torch

    wait: Callable[[], object] = torch.cuda.synchronize if logits_M[0].is_cuda else lambda: None
    taken_ms = []
    for _ in range(rounds + 1):
        # The result may overwrite the base's logits.
        own_M = [logits_M[0].clone(), *logits_M[1:]]
        wait()
        start = time.perf_counter()
        way(lambda first, end, own_M=own_M: own_M[first:end])  # type: ignore[misc]
        wait()
        taken_ms.append((time.perf_counter() - start) * 1000)
    return taken_ms[1:]


if __name__ == "__main__":
    typer.run(main)
