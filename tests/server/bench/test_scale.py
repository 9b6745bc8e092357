"""The simulation of several replicas: its sizes, its cache, its engine, and what routers make of them."""

import json

import pytest
from typer import Typer
from typer.testing import CliRunner

from eft_server.bench.scale.__main__ import main, simulate
from eft_server.bench.scale.cache import PrefixCache
from eft_server.bench.scale.costs import CARDS, FAMILIES, ReplicaCosts
from eft_server.bench.scale.fleet import Fleet
from eft_server.bench.scale.routers import ROUTERS, Prefix
from eft_server.bench.scale.workload import Conversation, Traffic, Turn, conversations

COSTS = ReplicaCosts(FAMILIES["qwen25-7b"], CARDS["h100"])


def test_a_token_costs_the_sum_of_all_members_kv():
    family, base = FAMILIES["qwen25-7b"], FAMILIES["qwen25-7b/base"]
    assert (base.kv_bytes, family.kv_bytes) == (57_344, 57_344 + 2 * 12_288)
    assert round(base.parameters / 1e9, 1) == 7.6
    assert round((family.parameters - base.parameters) / 2e9, 1) == 0.5


def test_the_cache_holds_prefixes_and_evicts_ends_of_what_was_used_least_recently():
    cache = PrefixCache(160)
    first, second = [(("system", 0), 64), (("conversation", 0), 32)], [(("system", 1), 64)]
    assert cache.cached(first) == 0
    assert cache.take(first)
    assert cache.cached(first) == 96
    assert cache.take(second)
    assert not cache.take([(("system", 2), 16)])  # All of it is in use.
    cache.release([key for key, _ in first])
    assert cache.take([(("system", 2), 48)])
    assert cache.cached(first) == 16  # The system prompt has lost its end, and what follows does not count.
    assert cache.cached(second) == 64


def test_a_lone_request_takes_its_steps_and_the_next_turn_finds_its_prefix():
    turns = (Turn(100, 50, 0.0), Turn(30, 10, 5.0))
    fleet = Fleet(COSTS, 1, ROUTERS["round robin"](1, 0))
    fleet.run([Conversation(0, 1.0, 0, 1600, turns)], 60.0)
    first, second = fleet.served
    assert (first.prompt, first.cached) == (1700, 0)
    assert first.first_s - first.arrived_s == pytest.approx(COSTS.step_s(0, 1700, 0))
    decoding_s = first.ended_s - first.first_s
    assert decoding_s == pytest.approx(49 * COSTS.step_s(1, 0, 1700), rel=0.01)
    assert second.arrived_s == pytest.approx(first.ended_s + 5.0)
    assert (second.prompt, second.cached) == (1780, 1744)  # Whole blocks of 1,750 tokens.
    assert second.first_s - second.arrived_s == pytest.approx(COSTS.step_s(0, 36, 0))


def test_requests_that_find_no_room_wait_for_those_that_have_it():
    long = COSTS.kv_tokens // 2
    arriving = [Conversation(number, 0.0, number, long, (Turn(1, 20, 0.0),)) for number in range(2)]
    fleet = Fleet(COSTS, 1, ROUTERS["round robin"](1, 0))
    fleet.run(arriving, 3600.0)
    first, second = fleet.served
    assert second.first_s > first.ended_s
    assert [one.cached for one in fleet.served] == [0, 0]


def test_every_request_is_answered_once_and_a_seed_gives_the_same_run():
    traffic = Traffic(rate=8.0, seconds=20.0, systems=20)
    runs = []
    for _ in range(2):
        fleet = Fleet(COSTS, 4, ROUTERS["prefix"](4, 1))
        fleet.run(conversations(traffic, 1), 2000.0)
        runs.append([(one.replica, one.first_s, one.ended_s) for one in fleet.served])
    assert runs[0] == runs[1]
    assert len(runs[0]) == sum(len(conversation.turns) for conversation in conversations(traffic, 1))
    assert all(one.arrived_s < one.first_s <= one.ended_s for one in fleet.served)


def test_a_prefix_is_followed_until_its_replica_has_too_much_to_do():
    router = Prefix(4, 0)
    [conversation] = [Conversation(7, 0.0, 3, 100, ())]
    chosen = router.choose(conversation, [0, 0, 0, 0])
    assert {router.choose(conversation, [2, 2, 2, 2]) for _ in range(8)} == {chosen}
    other = Conversation(8, 0.0, 3, 100, ())
    assert router.choose(other, [2, 2, 2, 2]) == chosen
    full = [0, 0, 0, 0]
    full[chosen] = 40
    assert router.choose(conversation, full) != chosen


def test_routing_by_prefix_hits_more_than_by_session_and_that_more_than_by_turns():
    traffic = Traffic(rate=8.0, seconds=60.0)
    hits = {name: simulate(COSTS, 4, name, traffic, 0).hit_percent for name in ROUTERS}
    assert hits["prefix"] > hits["session hash"] > hits["round robin"] + 5


def test_the_command_writes_its_numbers_and_a_plot(tmp_path):
    app = Typer()
    app.command()(main)
    output, plot = tmp_path / "scale.json", tmp_path / "scale.png"
    options = [
        "--replicas",
        "2",
        "--seconds",
        "5",
        "--seeds",
        "2",
        "--output",
        str(output),
        "--plot",
        str(plot),
    ]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "620,038 tokens of KV a replica" in result.output
    facts = json.loads(output.read_text())
    assert [(one["replicas"], one["router"], len(one["runs"])) for one in facts] == [
        (2, n, 2) for n in ROUTERS
    ]
    assert plot.read_bytes().startswith(b"\x89PNG")
    refused = CliRunner().invoke(app, ["--card", "abacus"])
    assert (refused.exit_code, "abacus" in refused.output) == (2, True)
