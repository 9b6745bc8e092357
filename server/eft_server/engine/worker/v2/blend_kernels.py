"""The kernels behind `blending`, in Triton. A program has one row and one block of ids, or a whole row.

Arguments with one value for each member of a launch are tuples: `member_ptr` its logits, `member_stride` and
`member_size` their row stride and number of ids, `member_rows_ptr` the map of rows or None, `member_index` its place in
the family. A filtered row's place among the filtered rows is its slot. Every sum of a row has a fixed order, whatever
the order of programs on the device, so the same rows give the same bits.
"""

import torch
from vllm.triton_utils import tl, triton

from eft_server.behaviour.coefficients import EXPERT_FILTER

_EXPERT = tl.constexpr(EXPERT_FILTER)
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_LARGEST_KEY = tl.constexpr(2**31 - 1)


@triton.jit  # type: ignore[untyped-decorator]
def add_kernel(
    total_ptr: tl.tensor,
    total_stride: tl.tensor,
    peaks_ptr: tl.tensor,
    extra_ptr: tl.tensor,
    member_peaks_ptr: tl.tensor,
    member_masses_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    vectors_ptr: tl.tensor,
    vectors_stride: tl.tensor,
    unshared_ptr: tl.tensor,
    member_ptr: tl.tensor,
    member_stride: tl.tensor,
    member_size: tl.tensor,
    member_rows_ptr: tl.tensor,
    member_index: tl.tensor,
    vocabulary: tl.tensor,
    members: tl.tensor,
    FIRST: tl.constexpr,
    FILTERED: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add COUNT members to one block of one row, and store the values that its filter will need.

    For an expert filter these are the sum of u_m · z_m in the extra row, and each block's part of log-sum-exp z_m; for
    a base filter the base's row and its blocks' maxima.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocabulary
    row_ptr = total_ptr + row * total_stride
    vector_ptr = vectors_ptr + row * vectors_stride
    unshared = _is_unshared(unshared_ptr, ids, inside)
    slot, by_expert, by_base = _filter(slots_ptr, vector_ptr, row, members, FILTERED)
    touched = (row >= 0) if FIRST else (row < 0)
    noted = touched & (by_expert | by_base)
    for n in tl.static_range(COUNT):
        place = _place(member_rows_ptr[n], row)
        of_total, of_delta, judges = _reads(vector_ptr, member_index[n], members, place, by_expert, by_base)
        touched = touched | of_total
        noted = noted | of_delta | judges
    changing = tl.where(touched, inside, False)
    noting = tl.where(noted, inside, False)
    total = tl.zeros((BLOCK,), tl.float32)
    extra = tl.zeros((BLOCK,), tl.float32)
    extra_row_ptr = extra_ptr + slot * vocabulary
    if not FIRST:
        total = tl.load(row_ptr + ids, mask=changing, other=0.0)
        if FILTERED:
            extra = tl.load(extra_row_ptr + ids, mask=noting, other=0.0)
    for n in tl.static_range(COUNT):
        index = member_index[n]
        place = _place(member_rows_ptr[n], row)
        of_total, of_delta, judges = _reads(vector_ptr, index, members, place, by_expert, by_base)
        own = inside & (ids < member_size[n])
        loaded = tl.where(of_total | of_delta | judges, own, False)
        z = tl.load(member_ptr[n] + place * member_stride[n] + ids, mask=loaded, other=0.0).to(tl.float32)
        # The first product is not added to zero, which would lose the sign of −0.
        added = _plus(total, z, tl.load(vector_ptr + index), FIRST and n == 0)
        total = tl.where(tl.where(of_total, own, False), added, total)
        if FILTERED:
            shared = tl.where(own & ~unshared, z, float("-inf"))
            added = tl.fma(z, tl.load(vector_ptr + members + index), extra)
            extra = tl.where(tl.where(of_delta, own, False), added, tl.where(judges, shared, extra))
            if of_delta | judges:
                at = (slot * members + index) * tl.num_programs(1) + block
                peak = _peak(shared, inside)
                tl.store(member_peaks_ptr + at, peak)
                tl.store(member_masses_ptr + at, _mass(shared, peak))
    steered = _is_steered(vector_ptr, members, WIDTH) | by_expert | by_base
    total = tl.where(tl.where(steered, unshared, False), float("-inf"), total)
    tl.store(row_ptr + ids, total, mask=changing)
    tl.store(peaks_ptr + row * tl.num_programs(1) + block, _peak(total, inside), mask=touched)
    if FILTERED:
        tl.store(extra_row_ptr + ids, extra, mask=noting)


@triton.jit  # type: ignore[untyped-decorator]
def nucleus_kernel(
    least_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    total_ptr: tl.tensor,
    total_stride: tl.tensor,
    peaks_ptr: tl.tensor,
    extra_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    member_peaks_ptr: tl.tensor,
    member_masses_ptr: tl.tensor,
    vectors_ptr: tl.tensor,
    vectors_stride: tl.tensor,
    vocabulary: tl.tensor,
    members: tl.tensor,
    blocks: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Find a filtered row's smallest logit in the nucleus (NaN if it is broken) and sum u_m · log-sum-exp z_m."""
    slot = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + slot).to(tl.int64)
    vector_ptr = vectors_ptr + row * vectors_stride
    kind = tl.load(vector_ptr + 2 * members)
    top_p = tl.load(vector_ptr + 2 * members + 1)
    own_ptr = slot * members * blocks
    block = tl.arange(0, BLOCKS)
    judged_ptr = total_ptr + row * total_stride
    judged_peaks_ptr = peaks_ptr + row * blocks
    if kind != _EXPERT:
        judged_ptr = extra_ptr + slot * vocabulary
        judged_peaks_ptr = member_peaks_ptr + own_ptr
    highest = tl.max(
        tl.load(peaks_ptr + row * blocks + block, mask=block < blocks, other=float("-inf")), axis=0
    )
    top = tl.max(tl.load(judged_peaks_ptr + block, mask=block < blocks, other=float("-inf")), axis=0)
    broken = (tl.abs(highest) == float("inf")) | (tl.abs(top) == float("inf"))
    # Sums of float32 reach 1 before the last token.
    least = tl.full((), _LOWEST, tl.float32)
    if (kind != 0) & ~broken & ~(top_p >= 1):
        least = _least_inside(judged_ptr, top, top_p, vocabulary, BLOCK)
    tl.store(least_ptr + slot, tl.where(broken, float("nan"), least))
    member = tl.arange(0, WIDTH)
    share = tl.load(vector_ptr + members + member, mask=member < members, other=0.0)
    counts = tl.where(kind == _EXPERT, share != 0, False)
    at = own_ptr + member[:, None] * blocks + block[None, :]
    noted = counts[:, None] & (block[None, :] < blocks)
    peak = tl.load(member_peaks_ptr + at, mask=noted, other=float("-inf"))
    mass = tl.load(member_masses_ptr + at, mask=noted, other=0.0)
    total = _log_sum_exp(peak, mass, 1)
    tl.store(shift_ptr + slot, tl.sum(tl.where(counts, share * total, 0.0), axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def filter_kernel(
    least_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    total_ptr: tl.tensor,
    total_stride: tl.tensor,
    peaks_ptr: tl.tensor,
    extra_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    vectors_ptr: tl.tensor,
    vectors_stride: tl.tensor,
    vocabulary: tl.tensor,
    members: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Filter one block of one filtered row."""
    slot = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    row = tl.load(rows_ptr + slot).to(tl.int64)
    kind = tl.load(vectors_ptr + row * vectors_stride + 2 * members)
    least = tl.load(least_ptr + slot)
    shift = tl.load(shift_ptr + slot)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    inside = tl.where(kind != 0, ids < vocabulary, False)
    total = tl.load(total_ptr + row * total_stride + ids, mask=inside, other=0.0)
    extra = tl.load(extra_ptr + slot * vocabulary + ids, mask=inside, other=0.0)
    by_expert = kind == _EXPERT
    # A broken row has no nucleus: then a base filter leaves nothing, and an expert filter leaves the broken values.
    likely = tl.where(by_expert, total, extra) >= least
    added = tl.where(likely, extra - shift, 0.0)
    filtered = tl.where(by_expert, total + added, tl.where(likely, total, float("-inf")))
    tl.store(total_ptr + row * total_stride + ids, filtered, mask=inside)
    tl.store(peaks_ptr + row * tl.num_programs(1) + block, _peak(filtered, inside), mask=kind != 0)


@triton.jit  # type: ignore[untyped-decorator]
def finish_kernel(
    total_ptr: tl.tensor,
    total_stride: tl.tensor,
    peaks_ptr: tl.tensor,
    vocabulary: tl.tensor,
    blocks: tl.tensor,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Make a row NaN throughout if its maximum is not finite."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    peak = tl.load(peaks_ptr + row * blocks + block, mask=block < blocks, other=float("-inf"))
    if tl.abs(tl.max(peak, axis=0)) == float("inf"):
        for start in range(0, vocabulary, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            spoilt = tl.full((BLOCK,), float("nan"), tl.float32)
            tl.store(total_ptr + row * total_stride + ids, spoilt, mask=ids < vocabulary)


@triton.jit(do_not_specialize=["vectors"])  # type: ignore[untyped-decorator]
def score_kernel(
    chosen_ptr: tl.tensor,
    peaks_ptr: tl.tensor,
    masses_ptr: tl.tensor,
    likelier_ptr: tl.tensor,
    targets_ptr: tl.tensor,
    vectors_ptr: tl.tensor,
    vectors_stride: tl.tensor,
    unshared_ptr: tl.tensor,
    member_ptr: tl.tensor,
    member_stride: tl.tensor,
    member_size: tl.tensor,
    member_rows_ptr: tl.tensor,
    member_index: tl.tensor,
    vocabulary: tl.tensor,
    members: tl.tensor,
    vectors: tl.tensor,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Blend one block of one row for each vector; store its maximum, its mass and how many ids beat the target."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocabulary
    unshared = _is_unshared(unshared_ptr, ids, inside)
    target = tl.load(targets_ptr + row)
    target_unshared = _is_unshared(unshared_ptr, target, target < vocabulary)
    for k in range(vectors):
        vector_ptr = vectors_ptr + k * vectors_stride
        total = tl.zeros((BLOCK,), tl.float32)
        goal = tl.full((), 0.0, tl.float32)
        for n in tl.static_range(COUNT):
            place = _place(member_rows_ptr[n], row)
            weight = tl.load(vector_ptr + member_index[n])
            reads = (weight != 0) & (place >= 0)
            own_ptr = member_ptr[n] + place * member_stride[n]
            own = tl.where(reads, inside & (ids < member_size[n]), False)
            z = tl.load(own_ptr + ids, mask=own, other=0.0).to(tl.float32)
            total = tl.where(own, tl.fma(z, weight, total), total)
            held = (target < member_size[n]) & reads
            target_z = tl.load(own_ptr + target, mask=held, other=0.0).to(tl.float32)
            goal = tl.where(held, tl.fma(target_z, weight, goal), goal)
        steered = _is_steered(vector_ptr, members, WIDTH)
        total = tl.where(tl.where(steered, unshared, False) | ~inside, float("-inf"), total)
        goal = tl.where(target_unshared & steered, float("-inf"), goal)
        peak = _peak(total, inside)
        at = (row * vectors + k) * tl.num_programs(1) + block
        tl.store(peaks_ptr + at, peak)
        tl.store(masses_ptr + at, _mass(total, peak))
        tl.store(likelier_ptr + at, tl.sum((total > goal).to(tl.int32), axis=0))
        tl.store(chosen_ptr + k * tl.num_programs(0) + row, goal, mask=block == 0)


@triton.jit  # type: ignore[untyped-decorator]
def scored_kernel(
    chosen_ptr: tl.tensor,
    likeliest_ptr: tl.tensor,
    ranks_ptr: tl.tensor,
    peaks_ptr: tl.tensor,
    masses_ptr: tl.tensor,
    likelier_ptr: tl.tensor,
    blocks: tl.tensor,
    BLOCKS: tl.constexpr,
) -> None:
    """Combine one row's blocks for one vector."""
    row = tl.program_id(0).to(tl.int64)
    vector = tl.program_id(1)
    block = tl.arange(0, BLOCKS)
    at = (row * tl.num_programs(1) + vector) * blocks + block
    peak = tl.load(peaks_ptr + at, mask=block < blocks, other=float("-inf"))
    mass = tl.load(masses_ptr + at, mask=block < blocks, other=0.0)
    likelier = tl.sum(tl.load(likelier_ptr + at, mask=block < blocks, other=0), axis=0)
    highest = tl.max(peak, axis=0)
    broken = tl.abs(highest) == float("inf")
    total = tl.where(broken, float("nan"), _log_sum_exp(peak, mass, 0))
    place = vector * tl.num_programs(0) + row
    tl.store(chosen_ptr + place, tl.load(chosen_ptr + place) - total)
    tl.store(likeliest_ptr + place, highest - total)
    tl.store(ranks_ptr + place, tl.where(broken, 0, likelier) + 1)


@triton.jit  # type: ignore[untyped-decorator]
def _is_unshared(unshared_ptr: tl.tensor, ids: tl.tensor, inside: tl.tensor) -> tl.tensor:
    words = tl.load(unshared_ptr + (ids >> 5), mask=inside, other=0)
    return ((words >> (ids & 31).to(tl.int32)) & 1) != 0


@triton.jit  # type: ignore[untyped-decorator]
def _is_steered(vector_ptr: tl.tensor, members: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """Whether a vector differs from (1, 0, …, 0)."""
    member = tl.arange(0, WIDTH)
    weight = tl.load(vector_ptr + member, mask=member < members, other=0.0)
    return tl.sum((weight != (member == 0).to(tl.float32)).to(tl.int32), axis=0) > 0


@triton.jit  # type: ignore[untyped-decorator]
def _filter(
    slots_ptr: tl.tensor, vector_ptr: tl.tensor, row: tl.tensor, members: tl.tensor, FILTERED: tl.constexpr
) -> tl.tensor:
    """A row's slot, and whether it has an expert filter or a base filter."""
    slot = row
    by_expert = row < 0
    by_base = row < 0
    if FILTERED:
        slot = tl.load(slots_ptr + row).to(tl.int64)
        kind = tl.load(vector_ptr + 2 * members)
        by_expert = (slot >= 0) & (kind == _EXPERT)
        by_base = (slot >= 0) & (kind != 0) & (kind != _EXPERT)
    return slot, by_expert, by_base


@triton.jit  # type: ignore[untyped-decorator]
def _reads(
    vector_ptr: tl.tensor,
    index: tl.tensor,
    members: tl.tensor,
    place: tl.tensor,
    by_expert: tl.tensor,
    by_base: tl.tensor,
) -> tl.tensor:
    """Whether a member contributes to a row's sum, to its filter's delta, and to its filter's nucleus."""
    there = place >= 0
    of_total = (tl.load(vector_ptr + index) != 0) & there
    of_delta = (tl.load(vector_ptr + members + index) != 0) & there & by_expert
    return of_total, of_delta, there & by_base & (index == 0)


@triton.jit  # type: ignore[untyped-decorator]
def _plus(total: tl.tensor, z: tl.tensor, weight: tl.tensor, ALONE: tl.constexpr) -> tl.tensor:
    added = z * weight
    if not ALONE:
        added = tl.fma(z, weight, total)
    return added


@triton.jit  # type: ignore[untyped-decorator]
def _place(rows_ptr: tl.tensor, row: tl.tensor) -> tl.tensor:
    """A row's place in a member's logits, negative if it has none."""
    place = row
    if rows_ptr is not None:
        place = tl.load(rows_ptr + row).to(tl.int64)
    return place


@triton.jit  # type: ignore[untyped-decorator]
def _peak(values: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """The largest value; +inf if one is NaN, which also makes the row broken."""
    return tl.max(
        tl.where(inside, tl.where(values < float("inf"), values, float("inf")), float("-inf")), axis=0
    )


@triton.jit  # type: ignore[untyped-decorator]
def _mass(values: tl.tensor, peak: tl.tensor) -> tl.tensor:
    """The sum of exp(values − peak)."""
    return tl.sum(tl.exp(values - tl.where(peak == float("-inf"), 0.0, peak)), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _log_sum_exp(peak: tl.tensor, mass: tl.tensor, AXIS: tl.constexpr) -> tl.tensor:
    """Log-sum-exp from the blocks' values; NaN if there was a NaN or +inf."""
    top = tl.max(peak, axis=AXIS, keep_dims=True)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(mass * tl.exp(peak - top), axis=AXIS, keep_dims=True)
    return tl.sum(top + tl.log(total), axis=AXIS)


@triton.jit  # type: ignore[untyped-decorator]
def _least_inside(
    row_ptr: tl.tensor, top: tl.tensor, top_p: tl.tensor, vocabulary: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """The smallest logit of a row such that the larger ones hold less than top_p; at most `top`, the largest logit.

    The search uses keys, integers in the order of the floats. Their range (low, high] always holds the result; each
    round cuts it in four and shrinks it to existing keys. So it ends after at most 16 rounds, and after a few if the
    logits around the nucleus's edge are far apart.
    """
    low = _key(top - float("inf")).to(tl.int64)
    high = _key(top).to(tl.int64)
    b = _key(top - 16.0).to(tl.int64)
    c = _key(top - 4.0).to(tl.int64)
    whole, above_b, above_c, smallest, largest = _round(row_ptr, top, low, high, low, b, c, vocabulary, BLOCK)
    wanted = top_p * whole
    low, high = _narrowed(low, high, low, b, c, whole < wanted, above_b < wanted, above_c < wanted)
    low, high = tl.maximum(low, smallest - 1), tl.minimum(high, largest)
    while high - low > 1:
        a = low + (high - low) // 4
        b = low + (high - low) // 2
        c = high - (high - low) // 4
        above_a, above_b, above_c, smallest, largest = _round(
            row_ptr, top, low, high, a, b, c, vocabulary, BLOCK
        )
        low, high = _narrowed(low, high, a, b, c, above_a < wanted, above_b < wanted, above_c < wanted)
        low, high = tl.maximum(low, smallest - 1), tl.minimum(high, largest)
    key = high.to(tl.int32)
    return tl.where(key < 0, key ^ _LARGEST_KEY, key).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _round(
    row_ptr: tl.tensor,
    top: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    vocabulary: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Sum exp(z − top) above each of three keys; find the smallest and the largest key in (low, high]."""
    above_a = tl.zeros((BLOCK,), tl.float32)
    above_b = tl.zeros((BLOCK,), tl.float32)
    above_c = tl.zeros((BLOCK,), tl.float32)
    smallest = tl.full((BLOCK,), _LARGEST_KEY, tl.int32)
    largest = tl.full((BLOCK,), -_LARGEST_KEY, tl.int32)
    for start in tl.range(0, vocabulary, BLOCK, num_stages=3):
        ids = start + tl.arange(0, BLOCK)
        z = tl.load(row_ptr + ids, mask=ids < vocabulary, other=float("-inf"))
        key = _key(z)
        mass = tl.exp(z - top)
        above_a += tl.where(key > a, mass, 0.0)
        above_b += tl.where(key > b, mass, 0.0)
        above_c += tl.where(key > c, mass, 0.0)
        between = (key > low) & (key <= high)
        smallest = tl.minimum(smallest, tl.where(between, key, _LARGEST_KEY))
        largest = tl.maximum(largest, tl.where(between, key, -_LARGEST_KEY))
    return (
        tl.sum(above_a, axis=0),
        tl.sum(above_b, axis=0),
        tl.sum(above_c, axis=0),
        tl.min(smallest, axis=0).to(tl.int64),
        tl.max(largest, axis=0).to(tl.int64),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _narrowed(
    low: tl.tensor,
    high: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    a_inside: tl.tensor,
    b_inside: tl.tensor,
    c_inside: tl.tensor,
) -> tl.tensor:
    """The part of (low, high] that holds the smallest key inside, if a ≤ b ≤ c cut it in four."""
    lowest = tl.where(a_inside, low, tl.where(b_inside, a, tl.where(c_inside, b, c)))
    highest = tl.where(a_inside, a, tl.where(b_inside, b, tl.where(c_inside, c, high)))
    return lowest, highest


@triton.jit  # type: ignore[untyped-decorator]
def _key(value: tl.tensor) -> tl.tensor:
    """An int32 in the order of the floats; −0 comes just before 0, which does not affect the result."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ _LARGEST_KEY, bits)
