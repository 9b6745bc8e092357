"""What a member has no row for never reaches the engine, whichever way it comes; nor do tokens that nobody says."""

from typing import Any

import httpx
import pytest
from vllm.sampling_params import SamplingParams

from eft_server.api.app import create_app
from eft_server.api.edge.rooms import Room
from eft_server.api.serving import renderer
from eft_server.api.serving.guarded_engine import Guarded
from eft_server.engine.message import KEY, EngineRequest, Manifest, MemberWeights

from .fake_engine import FakeEngine
from .served import client_of, family

ASK = {"max_tokens": 2}


@pytest.fixture
def last(engine: FakeEngine) -> int:
    """The last id, which `harmless` has no row for; it is written <rare>."""
    return engine.model_config.get_vocab_size() - 1


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    return await client.post(path, json=body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a <rare>"}),
        ("/v1/completions", {"prompt": "a <rare>", "stream": True}),
        ("/v1/completions", {"prompt": ["a", "b<rare>"]}),
        ("/v1/completions", {"prompt": "a", "eft": {"prompts": {"harmless": "<rare>"}}}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a <rare>"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a <rare>"}], "stream": True}),
        ("/v1/responses", {"input": "a <rare>"}),
        ("/v1/responses", {"input": "a <rare>", "stream": True}),
        ("/v1/eft/score", {"items": [{"prompt": "a <rare>", "completion": "b"}]}),
        ("/v1/eft/score", {"items": [{"prompt": "a", "completion": "<rare> b"}]}),
    ],
)
async def test_a_prompt_that_a_member_cannot_read_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, last: int, path: str, body: dict[str, Any]
) -> None:
    response = await post(client, path, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == ("items.0" if "items" in body else next(iter(body)))
    for part in (str(last), "<rare>", "'harmless'", f"0 to {last - 1}"):
        assert part in error["message"]
    assert engine.asked == []


async def test_ids_are_held_against_the_same_rows(client: httpx.AsyncClient, last: int) -> None:
    assert (await post(client, "/v1/completions", prompt=[5, last], **ASK)).status_code == 400
    assert (await post(client, "/v1/completions", prompt=[5, last - 1], **ASK)).status_code == 200


@pytest.mark.parametrize("model", ["demo/base", "demo/helpful", "demo-helpful"])
async def test_who_does_not_count_need_not_read(client: httpx.AsyncClient, model: str) -> None:
    response = await post(client, "/v1/completions", model=model, prompt="a <rare>", **ASK)
    assert response.status_code == 200


async def test_a_member_with_a_prompt_of_its_own_need_not_read_everybodys(client: httpx.AsyncClient) -> None:
    own = {"prompts": {"harmless": "a"}}
    response = await post(client, "/v1/completions", prompt="a <rare>", eft=own, **ASK)
    assert response.status_code == 200


async def test_of_the_allowed_tokens_one_has_to_be_everybodys(client: httpx.AsyncClient, last: int) -> None:
    alone = await post(client, "/v1/completions", prompt="a", allowed_token_ids=[last], **ASK)
    assert alone.status_code == 400
    assert alone.json()["error"]["param"] == "allowed_token_ids"
    beside = await post(client, "/v1/completions", prompt="a", allowed_token_ids=[last, 7], **ASK)
    assert beside.status_code == 200
    base = await post(
        client, "/v1/completions", model="demo/base", prompt="a", allowed_token_ids=[last], **ASK
    )
    assert base.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_but_allowed_tokens_is_ever_answered(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    engine.heeds = False
    body = {"prompt": "a", "allowed_token_ids": [7], "bad_words": ["b"], "stream": stream}
    response = await post(client, "/v1/completions", **body, **ASK)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "allowed_token_ids"
    assert "bad_words" in response.json()["error"]["message"]


async def test_who_only_drafts_need_not_read() -> None:
    members = ("base", "small", "helpful")
    manifest = Manifest(
        ("LlamaForCausalLM",),
        tuple(MemberWeights(name, "unread") for name in members[1:]),
        (),
        (1.0, *(0.0,) * 7),
        (9, 8, 8),
        draft="helpful",
    )
    alone = EngineRequest.read({KEY: [1.0, 0.0, 0.0]}, manifest)
    assert alone.needed == (True, False, True)
    assert alone.reading == (True, False, False)
    steered = EngineRequest.read({KEY: [1.0, -1.0, 1.0]}, manifest)
    assert steered.reading == (True, True, True)


async def test_a_request_that_nobody_weighed_is_an_error(engine: FakeEngine) -> None:
    guarded = Guarded(engine, Room([8, 8000]), salted=False)
    with pytest.raises(RuntimeError, match="without its coefficients or per-member prompts"):
        guarded.generate({"prompt_token_ids": [1]}, SamplingParams(), "one")
    assert engine.asked == []


async def test_a_request_that_lost_its_members_prompts_is_an_error(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderer, "MEMBER_PROMPTS", "elsewhere")
    asked = {"prompt": "a", "eft": {"prompts": {"helpful": "b c d"}}, **ASK}
    assert (await post(client, "/v1/completions", **asked)).status_code == 500
    assert engine.asked == []


async def test_keys_do_not_see_what_others_have_cached(engine: FakeEngine) -> None:
    async with client_of(create_app(engine, family(), api_keys=["one", "two"])) as client:
        for key, salt in (("one", None), ("two", None), ("one", "mine"), ("two", "mine")):
            body = {"prompt": "a", **ASK} | ({"cache_salt": salt} if salt else {})
            for path, asked in (("/v1/completions", body), ("/v1/responses", {"input": "a"})):
                headers = {"authorization": f"Bearer {key}"}
                assert (await client.post(path, json=asked, headers=headers)).status_code == 200
    first, second, mine, others = engine.salts[::2]
    assert len({first, second, mine, others}) == 4
    assert engine.salts[1::2] == [first, second] * 2
    assert not any("one" in str(salt) or "two" in str(salt) for salt in engine.salts)


async def test_without_keys_or_where_the_operator_says_so_the_cache_is_everybodys(
    engine: FakeEngine, client: httpx.AsyncClient
) -> None:
    await post(client, "/v1/completions", prompt="a", **ASK)
    await post(client, "/v1/completions", prompt="a", cache_salt="b", **ASK)
    shared = create_app(engine, family(share_prefix_cache=True), api_keys=["one"])
    async with client_of(shared) as other:
        headers = {"authorization": "Bearer one"}
        await other.post("/v1/completions", json={"prompt": "a", **ASK}, headers=headers)
    assert engine.salts == [None, "b", None]
