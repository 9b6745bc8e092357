"""POST /v1/eft/score over the fake engine: what the engine is asked, what comes back, and what is refused."""

import asyncio
import json
import math
import threading
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from eft_server.api import routes
from eft_server.api.app import create_app
from eft_server.api.serving.json_pieces import written
from eft_server.family.file import ServerConfig
from eft_server.family.templates import PLAIN, MemberTemplate, Voice

from .fake_engine import FakeEngine
from .served import FAMILY, client_of, family

pytestmark = pytest.mark.asyncio

PATH = "/v1/eft/score"
HELLO = [{"role": "user", "content": "Hello world!"}]
CHAT = "<|user|>Hello world!<|end|><|assistant|>"
ALONE = {
    "base": [1.0, 0.0, 0.0, 0.0],
    "small": [0.0, 1.0, 0.0, 0.0],
    "helpful": [0.0, 0.0, 1.0, 0.0],
    "harmless": [0.0, 0.0, 0.0, 1.0],
}
ITEM = {"prompt": [1, 2, 3], "completion": [5, 6]}


@pytest.fixture
def tokenizer(engine: FakeEngine) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(engine.model_config.model)


def ids(tokenizer: AutoTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


async def ask(client: httpx.AsyncClient, *items: Any, **fields: Any) -> httpx.Response:
    return await client.post(PATH, json={"items": list(items)} | fields)


async def test_the_engine_is_asked_once_for_a_text_and_every_vector(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: AutoTokenizer
) -> None:
    item = {"messages": HELLO, "completion": "Hello the fox"}
    answer = (await ask(client, item, eft={"weights": {"helpful": 0.75}})).json()
    [params] = engine.asked
    completion = ids(tokenizer, "Hello the fox")
    assert engine.prompts == [CHAT + tokenizer.decode(completion[:-1])]
    asked = params.extra_args["eft_scoring"]
    assert asked["first"] == len(ids(tokenizer, CHAT)) - 1
    assert asked["targets"] == completion == answer["data"][0]["token_ids"]
    assert asked["vectors"] == [[1.0, -0.75, 0.75, 0.0], *ALONE.values()]
    assert params.extra_args["eft"] == asked["vectors"][0]
    assert params.max_tokens == 1


async def test_every_column_of_the_answer_is_its_own_vectors(client: httpx.AsyncClient) -> None:
    response = await ask(client, ITEM, {"prompt": "Hi", "completion": [7]}, eft={"weights": {"helpful": 1}})
    answer = response.json()
    assert response.status_code == 200
    assert answer["object"] == "eft.score"
    assert answer["model"] == answer["eft"]["model"] == "demo"
    assert answer["eft"]["weights"] == {"helpful": 1.0, "harmless": 0.0}
    first, second = answer["data"]
    assert (first["index"], second["index"]) == (0, 1)
    assert first["object"] == "eft.score.item"
    assert first["composite"] == {
        "logprobs": pytest.approx([-1.5, -1.6]),
        "total": pytest.approx(-3.1),
        "ranks": [1, 2],
        "top_logprobs": [-0.25, -0.25],
    }
    assert {name: column["total"] for name, column in first["members"].items()} == {
        "base": pytest.approx(-1.1),
        "small": pytest.approx(-3.1),
        "helpful": pytest.approx(-5.1),
        "harmless": pytest.approx(-7.1),
    }
    assert [column["ranks"] for column in first["members"].values()] == [[3, 4], [5, 6], [7, 8], [9, 10]]
    assert first["rewards"] == {
        "helpful": {"logprobs": pytest.approx([-1.0, -1.0]), "total": pytest.approx(-2.0)},
        "harmless": {"logprobs": pytest.approx([-2.0, -2.0]), "total": pytest.approx(-4.0)},
    }


async def test_tokens_are_shown_as_text_and_all_that_is_read_is_counted(
    client: httpx.AsyncClient, tokenizer: AutoTokenizer
) -> None:
    answer = (await ask(client, {"prompt": "Hello", "completion": " world!"}, members=False)).json()
    assert "".join(answer["data"][0]["tokens"]) == " world!"
    total = len(ids(tokenizer, "Hello")) + len(ids(tokenizer, " world!"))
    assert answer["usage"] == {"prompt_tokens": total, "completion_tokens": 0, "total_tokens": total}


@pytest.mark.parametrize(
    ("fields", "shown", "rewarded", "vectors"),
    [
        ({"members": False}, [], [], [[1, -1, 0.5, 0.5]]),
        ({"members": ["base"]}, ["base"], [], [[1, -1, 0.5, 0.5], ALONE["base"]]),
        (
            {"members": ["helpful"]},
            ["helpful"],
            ["helpful"],
            [[1, -1, 0.5, 0.5], ALONE["helpful"], ALONE["small"]],
        ),
        ({"members": ["base", "base"], "model": "demo/base"}, ["base"], [], [ALONE["base"]]),
        ({"members": ["base"], "eft": {"scale": 0}}, ["base"], [], [ALONE["base"]]),
        (
            {"members": False, "eft": {"filter": {"kind": "base", "top_p": 0.5}}},
            [],
            [],
            [[1, -1, 0.5, 0.5, 0, 0, 0, 0, 2, 0.5]],
        ),
    ],
)
async def test_a_vector_is_computed_once_and_only_if_it_is_needed(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    fields: dict[str, Any],
    shown: list[str],
    rewarded: list[str],
    vectors: list[list[float]],
) -> None:
    answer = (await ask(client, ITEM, **fields)).json()
    assert list(answer["data"][0]["members"]) == shown
    assert list(answer["data"][0]["rewards"]) == rewarded
    assert engine.asked[0].extra_args["eft_scoring"]["vectors"] == vectors


async def test_the_end_of_a_turn_is_scored_where_it_is_asked_for(
    client: httpx.AsyncClient, tokenizer: AutoTokenizer
) -> None:
    items = [{"prompt": "Hi", "completion": text, "end": end} for text, end in (("Hello", True), ("", True))]
    answer = (await ask(client, *items)).json()
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert [item["token_ids"] for item in answer["data"]] == [[*ids(tokenizer, "Hello"), end], [end]]


async def test_what_cannot_be_is_null(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.unlikely[6] = -math.inf
    item = (await ask(client, ITEM)).json()["data"][0]
    assert item["composite"]["logprobs"][1] is None
    assert item["composite"]["total"] is None
    assert item["rewards"]["helpful"]["logprobs"][1] is None
    assert item["rewards"]["helpful"]["total"] is None


async def test_every_column_has_statistics_where_they_are_asked_for(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    item = (await ask(client, ITEM, statistics=True, members=["base"])).json()["data"][0]
    assert engine.asked[0].extra_args["eft_scoring"]["statistics"] is True
    for column in (item["composite"], item["members"]["base"]):
        assert column["statistics"] == {
            "entropy": [2.5, 2.5],
            "sum_of_squares": [0.125, 0.125],
            "log_rest": [-0.75, -0.75],
        }
    engine.log_rest = -math.inf
    item = (await ask(client, ITEM, statistics=True)).json()["data"][0]
    assert item["members"]["small"]["statistics"]["log_rest"] == [None, None]
    plain = (await ask(client, ITEM)).json()["data"][0]
    assert "statistics" not in plain["composite"].keys() | engine.asked[-1].extra_args["eft_scoring"].keys()


async def test_statistics_count_as_scores(engine: FakeEngine) -> None:
    async with client_of(create_app(engine, family(max_scores=40))) as client:
        assert (await ask(client, ITEM, statistics=True)).status_code == 200
        response = await ask(client, {"prompt": [1], "completion": [5, 6, 7]}, statistics=True)
        assert (await ask(client, {"prompt": [1], "completion": [5, 6, 7]})).status_code == 200
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith(
        "items: 3 tokens under 5 combinations of members, each with 3 statistics, are 60 "
    )
    assert "allowed: up to 40; " in message and "do without statistics" in message


async def test_members_read_prompts_of_their_own(engine: FakeEngine, tokenizer: AutoTokenizer) -> None:
    voices = (
        Voice(MemberTemplate(PLAIN, "plain text", plain=True), tokenizer, "base", (0, 1)),
        Voice(MemberTemplate(tokenizer.chat_template, "its own"), tokenizer, "base", (2, 3)),
    )
    async with client_of(create_app(engine, family(), chat_template=PLAIN, voices=voices)) as client:
        for fields in ({}, {"model": "demo/helpful", "members": False}):
            await ask(client, {"messages": HELLO, "completion": [5, 6]}, **fields)
    plain, chat = ids(tokenizer, "# Query:\nHello world!\n\n# Response:\n"), ids(tokenizer, CHAT)
    together, alone = (params.extra_args for params in engine.asked)
    assert together["eft_prompts"] == [[*plain, 5], [*plain, 5], [*chat, 5], [*chat, 5]]
    assert together["eft_scoring"]["first"] == max(len(plain), len(chat)) - 1
    assert "eft_prompts" not in alone
    assert alone["eft_scoring"]["first"] == len(chat) - 1


async def test_the_chat_template_is_told_what_it_reads(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    item = {"messages": HELLO, "completion": [5]}
    await ask(client, item, chat_template_kwargs={"enable_thinking": False})
    assert engine.prompts == [CHAT + "<think></think>"]


async def test_an_item_may_bring_a_prompt_for_a_member(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await ask(client, {"prompt": [1, 2], "prompts": {"helpful": [3, 4, 5]}, "completion": [6, 7]})
    extra = engine.asked[0].extra_args
    assert extra["eft_prompts"] == [[1, 2, 6], [1, 2, 6], [3, 4, 5, 6], [1, 2, 6]]
    assert extra["eft_scoring"]["first"] == 2


async def test_a_prompt_for_a_member_that_does_not_count_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    item = {"prompt": [1, 2], "prompts": {"harmless": [3, 4, 5]}, "completion": [6, 7]}
    without = {"items": [item], "eft": {"weights": {"helpful": 1}}, "members": False}
    response = await client.post(PATH, json=without)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "items.0.prompts.harmless"
    assert "harmless does not count" in error["message"]
    assert "counting: base, small, helpful; " in error["message"]
    assert engine.asked == []
    for more in ({"members": ["harmless"]}, {"eft": {"weights": {"harmless": 0.5}}}):
        assert (await client.post(PATH, json=without | more)).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": ["text"]}, "items.0"),
        ({"items": [ITEM, ITEM, ITEM, ITEM, ITEM]}, "items"),
        ({"items": [ITEM, {"completion": "x"}]}, "items.1"),
        ({"items": [ITEM | {"messages": HELLO}]}, "items.0"),
        ({"items": [ITEM | {"wibble": 1}]}, "items.0.wibble"),
        ({"items": [{"prompt": "x"}]}, "items.0.completion"),
        ({"items": [{"prompt": "x", "completion": ""}]}, "items.0.completion"),
        ({"items": [{"prompt": "x", "completion": []}]}, "items.0.completion"),
        ({"items": [{"prompt": "x", "completion": [1, -1]}]}, "items.0.completion.1"),
        ({"items": [{"prompt": "x", "completion": [100000]}]}, "items.0.completion"),
        ({"items": [{"prompt": "x", "completion": ["a"]}]}, "items.0.completion"),
        ({"items": [{"prompt": ["a", "b"], "completion": "x"}]}, "items.0.prompt"),
        ({"items": [ITEM, {"prompt": "", "completion": "x"}]}, "items.1.prompt"),
        ({"items": [{"prompt": [], "completion": "x"}]}, "items.0.prompt"),
        ({"items": [ITEM | {"end": 1}]}, "items.0.end"),
        ({"items": [ITEM | {"prompts": {"nobody": "x"}}]}, "items.0.prompts.nobody"),
        ({"items": [{"messages": HELLO, "prompts": {}, "completion": "x"}]}, "items.0.prompts"),
        ({"items": [{"messages": [{"role": "x"}], "completion": "x"}]}, "items.0.messages.0.role"),
        ({"items": [ITEM, {"prompt": [1] * 500, "completion": [2] * 13}]}, "items.1.completion"),
        ({"items": [ITEM], "members": ["base", "nobody"]}, "members.1"),
        ({"items": [ITEM], "members": 1}, "members"),
        ({"items": [ITEM], "statistics": 1}, "statistics"),
        ({"items": [{"prompt": [1], "completion": [2] * 90}], "statistics": True}, "items"),
        ({"items": [ITEM], "temperature": 0.5}, "temperature"),
        ({"items": [ITEM], "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"items": [ITEM], "chat_template_kwargs": {"wibble": False}}, "chat_template_kwargs.wibble"),
        ({"items": [{"prompt": "x", "completion": "Hello" * 1000}]}, "items.0.completion"),
        ({"items": [ITEM], "eft": {"weights": {"helpful": 7}}}, "eft.weights.helpful"),
        ({"items": [ITEM], "eft": {"prompts": {"helpful": "x"}}}, "eft.prompts"),
        ({"items": [{"prompt": [1], "completion": [2] * 300}], "members": True}, "items"),
    ],
)
async def test_what_cannot_be_scored_is_refused_by_name_and_nothing_runs(
    engine: FakeEngine, body: dict, param: str
) -> None:
    async with client_of(create_app(engine, family(max_score_items=4, max_scores=1000))) as client:
        response = await client.post(PATH, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ") or param == "temperature"
    assert engine.asked == []


async def test_texts_of_exactly_the_context_are_scored(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    item = {"prompt": [1] * 500, "completion": [2] * 12}
    assert (await ask(client, item, members=False)).status_code == 200


async def test_what_the_engine_fails_at_fails_the_request(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.unlikely[6] = math.nan
    response = await ask(client, ITEM)
    assert response.status_code == 500
    assert "not finite" in response.json()["error"]["message"]
    engine.reset()
    engine.fail_at = 1
    assert (await ask(client, ITEM)).status_code == 500


async def test_a_large_request_leaves_room_for_others(engine: FakeEngine) -> None:
    async with client_of(create_app(engine, family())) as client:
        assert (await ask(client, *[ITEM] * 40, members=False)).status_code == 200
    assert len(engine.asked) == 40
    assert engine.most_running == 16


async def test_everything_is_given_up_when_the_client_leaves(engine: FakeEngine) -> None:
    engine.pause_s = 60
    app = create_app(engine, family())
    started = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not started.is_set():
            started.set()
            body = json.dumps({"items": [ITEM] * 40}).encode()
            return {"type": "http.request", "body": body, "more_body": False}
        while engine.most_running < 16:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    assert len(engine.aborted) == 16
    assert engine.running == 0


async def test_too_much_at_once_is_told_to_wait(engine: FakeEngine) -> None:
    app = create_app(engine, family(max_concurrent_requests=1, max_waiting_requests=0))
    async with client_of(app) as client:
        engine.pause_s = 0.05
        statuses = [r.status_code for r in await asyncio.gather(ask(client, ITEM), ask(client, ITEM))]
    assert sorted(statuses) == [200, 429]


async def test_coefficients_are_scored_where_they_are_allowed(engine: FakeEngine) -> None:
    config = ServerConfig.model_validate(FAMILY | {"limits": {"coefficients": {"min": -1, "max": 1}}})
    async with client_of(create_app(engine, config)) as client:
        await ask(client, ITEM, eft={"coefficients": {"helpful": 0.5}}, members=False)
    assert engine.asked[0].extra_args["eft_scoring"]["vectors"] == [[0, 0, 0.5, 0]]


async def test_the_document_describes_it_with_an_example(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schema = document["components"]["schemas"]["ScoreRequest"]
    assert set(schema["properties"]) >= {"model", "items", "members", "eft"}
    answer = (await ask(client, *schema["example"]["items"])).json()
    example = document["components"]["schemas"]["ScoreAnswer"]["example"]
    assert _shape(example["data"][0]) == _shape(answer["data"][0])
    assert example.keys() == answer.keys()
    assert example["eft"].keys() <= answer["eft"].keys()


def _shape(value: Any) -> Any:
    """The keys of an item, with one member and one expert standing for all."""
    parts = ("composite", "members", "rewards")
    columns = {part: value[part] if part == "composite" else value[part]["helpful"] for part in parts}
    return sorted(value), {part: sorted(column) for part, column in columns.items()}


async def test_an_engine_that_leaves_rows_out_scores_nothing(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.vllm_config.cache_config, "kv_sharing_fast_prefill", True)
    response = await ask(client, ITEM)
    assert response.status_code == 400
    assert "kv_sharing_fast_prefill" in response.json()["error"]["message"]


async def test_answers_are_written_beside_the_event_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def noted(value: Any) -> bytes:
        threads.append(threading.current_thread())
        return written(value)

    monkeypatch.setattr(routes.scores, "written", noted)
    body = {"items": [{"prompt": "a", "completion": " fox"}]}
    response = await client.post("/v1/eft/score", json=body)
    assert response.headers["content-type"] == "application/json"
    assert response.json()["data"][0]["tokens"] == [" fox"]
    assert threads and threads[0] is not threading.current_thread()
