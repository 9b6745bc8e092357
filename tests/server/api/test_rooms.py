"""Who finds no room waits in a row, and nobody's place is lost."""

import asyncio
import random

import pytest

from eft_server.api.edge import rooms
from eft_server.api.edge.rooms import Room

pytestmark = pytest.mark.asyncio


async def test_first_come_first_served() -> None:
    room, served = Room([2]), []

    async def one(name: str, amount: int) -> None:
        async with room.take("", amount):
            served.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(one("a", 2), one("b", 1), one("c", 2), one("d", 1))
    assert served == ["a", "b", "c", "d"]


async def test_more_than_a_keys_share_counts_whole() -> None:
    room = Room([4], share=0.5)
    async with room.take("a", 3):
        assert not room.take_at_once("b", 2)
        assert not room.take_at_once("a", 1)
        assert room.take_at_once("b", 1)


async def test_more_than_all_of_it_is_all_of_it() -> None:
    room = Room([2, 10])
    async with room.take("", 5, 3):
        assert not room.take_at_once("", 1, 1)
    assert room.take_at_once("", 2, 10)


async def test_who_waits_for_the_same_key_does_not_hold_up_the_rest() -> None:
    room, served = Room([4], share=0.5), []
    release = asyncio.Event()

    async def one(key: str) -> None:
        async with room.take(key, 1):
            served.append(key)
            await release.wait()

    tasks = [asyncio.create_task(one(key)) for key in "aaabb"]
    await asyncio.sleep(0.01)
    assert served == ["a", "a", "b", "b"]
    assert room.waiting == 1
    release.set()
    await asyncio.gather(*tasks)
    assert served[4:] == ["a"]


async def test_a_large_request_of_a_key_that_has_its_share_does_not_hold_up_the_rest() -> None:
    """It fits neither its key's share nor what is left of all."""
    room, served = Room([100], share=0.5), []
    release = asyncio.Event()

    async def one(name: str, amount: int) -> None:
        async with room.take(name[0], amount):
            served.append(name)
            await release.wait()

    asked = [("a1", 50), ("b1", 1), ("a2", 50), ("b2", 1), ("c1", 1)]
    tasks = [asyncio.create_task(one(*each)) for each in asked]
    await asyncio.sleep(0.01)
    assert served == ["a1", "b1", "b2", "c1"]
    release.set()
    await asyncio.gather(*tasks)
    assert served[4:] == ["a2"]


async def test_small_requests_of_other_keys_pass_a_large_one_so_many_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rooms, "_PASSES", 3)
    room, served = Room([10], share=0.5), []
    free = {name: asyncio.Event() for name in ("b0", "a0", "b", "c", "d", "e")}

    async def one(name: str, amount: int) -> None:
        async with room.take(name[0], amount):
            served.append(name)
            await free[name].wait()

    asked = [("b0", 2), ("a0", 9), ("b", 1), ("c", 1), ("d", 1), ("e", 1)]
    tasks = [asyncio.create_task(one(*each)) for each in asked]
    await asyncio.sleep(0.01)
    assert served == ["b0", "b", "c", "d"]
    for name in ("b0", "b", "c", "d"):
        free[name].set()
    await asyncio.sleep(0.01)
    assert served[4:] == ["a0", "e"]
    for event in free.values():
        event.set()
    await asyncio.gather(*tasks)


async def test_a_long_row_of_many_keys_costs_no_more_than_a_short_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who waits is looked at so often, counted: 100 keys, a large request in front."""
    looked: list[str] = []
    fits = Room._key_fits
    monkeypatch.setattr(Room, "_key_fits", lambda room, key, a: looked.append(key) or fits(room, key, a))

    async def looks(waiting: int) -> float:
        room, release = Room([100], share=0.5), asyncio.Event()

        async def one(key: str, amount: int) -> None:
            async with room.take(key, amount):
                await release.wait()

        looked.clear()
        asked = [("first", 60), ("large", 50), *((f"k{i % 100}", 41) for i in range(waiting))]
        tasks = [asyncio.create_task(one(*each)) for each in asked]
        await asyncio.sleep(0.01)
        release.set()
        await asyncio.gather(*tasks)
        return len(looked) / waiting

    assert await looks(2000) < 1.5 * await looks(500)


async def test_whoever_is_cancelled_leaves_nothing_behind() -> None:
    room, rng = Room([3, 30], share=0.7), random.Random(0)

    async def one() -> None:
        async with room.take(rng.choice("abc"), rng.randint(1, 4), rng.randint(1, 40)):
            await asyncio.sleep(rng.random() / 500)

    tasks = [asyncio.create_task(one()) for _ in range(400)]
    for task in tasks:
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() / 1000)
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {type(None), asyncio.CancelledError}
    assert room.waiting == 0
    assert room.take_at_once("a", 1, 1)
    room.give_back("a", 1, 1)
    async with asyncio.timeout(1), room.take("d", 3, 30):
        pass


async def test_a_long_row_is_not_gone_through_for_each_who_comes_or_goes() -> None:
    class Key(str):
        looked_up = 0

        def __hash__(self) -> int:
            Key.looked_up += 1
            return super().__hash__()

    room, count = Room([1]), 200
    key = Key("a")

    async def have() -> None:
        async with room.take(key, 1):
            await asyncio.sleep(0)

    await asyncio.gather(*(have() for _ in range(count)))
    assert room.waiting == 0
    assert Key.looked_up < 30 * count
