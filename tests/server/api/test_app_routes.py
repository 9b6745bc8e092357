"""What the endpoints answer when all is well."""

import json
import re
from typing import Any

import httpx
import pytest
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics

from eft_server.api.app import create_app

from .fake_engine import TEXT, FakeEngine
from .served import client_of, family

pytestmark = pytest.mark.asyncio

NEUTRAL = {"scale": 1.0, "amplify": 1.0, "filter": None}
HELLO = [{"role": "user", "content": "Hi"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON events of a stream that ended properly."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_chat_is_answered_with_the_weights_that_were_applied(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {"model": "demo", "messages": HELLO, "max_tokens": 4, "eft": {"weights": {"helpful": 0.75}}}
    response = await client.post("/v1/chat/completions", json=body)
    answer = response.json()
    assert response.status_code == 200
    assert answer["choices"][0]["message"]["content"] == TEXT
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["eft"] == {"model": "demo", "weights": {"helpful": 0.75, "harmless": 0.0}} | NEUTRAL


async def test_the_engine_gets_one_coefficient_per_member(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {"prompt": "Hi", "eft": {"weights": {"helpful": 0.75, "harmless": 0.25}, "scale": 0.5}}
    await client.post("/v1/completions", json=body)
    assert engine.asked[0].extra_args == {"eft": [1.0, -0.5, 0.375, 0.125]}


async def test_without_eft_the_defaults_apply(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = (await client.post("/v1/completions", json={"prompt": "Hi"})).json()
    assert answer["eft"] == {"model": "demo", "weights": {"helpful": 0.5, "harmless": 0.5}} | NEUTRAL
    assert engine.asked[0].extra_args == {"eft": [1.0, -1.0, 0.5, 0.5]}


async def test_flat_xargs_say_the_same_as_eft(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    flat = {"eft.helpful": 0.75, "eft.scale": 0.5}
    await client.post("/v1/completions", json={"prompt": "Hi", "vllm_xargs": flat})
    nested = {"weights": {"helpful": 0.75}, "scale": 0.5}
    await client.post("/v1/completions", json={"prompt": "Hi", "eft": nested})
    assert engine.asked[0].extra_args == engine.asked[1].extra_args == {"eft": [1.0, -0.375, 0.375, 0.0]}


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [("demo-helpful", [1, -1, 1, 0]), ("demo/base", [1, 0, 0, 0]), ("demo/harmless", [0, 0, 0, 1])],
)
async def test_aliases_and_members_are_models(
    client: httpx.AsyncClient, engine: FakeEngine, model: str, coefficients: list[float]
) -> None:
    answer = (await client.post("/v1/completions", json={"prompt": "Hi", "model": model})).json()
    assert answer["model"] == answer["eft"]["model"] == model
    assert engine.asked[0].extra_args == {"eft": coefficients}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_only_the_first_chunk_of_a_stream_has_the_weights(client: httpx.AsyncClient, path: str) -> None:
    body = {"messages": HELLO} if "chat" in path else {"prompt": "Hi"}
    body |= {"model": "demo-helpful", "stream": True, "max_tokens": 4}
    response = await client.post(path, json=body)
    chunks = events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [("eft" in chunk) for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert chunks[0]["eft"]["weights"] == {"helpful": 1.0, "harmless": 0.0}
    assert {chunk["model"] for chunk in chunks} == {"demo-helpful"}
    parts = [
        c["choices"][0].get("text") or c["choices"][0].get("delta", {}).get("content", "") for c in chunks
    ]
    assert "".join(parts) == TEXT


async def test_usage_comes_with_a_stream_that_asks_for_it(client: httpx.AsyncClient) -> None:
    body = {"prompt": "Hi", "stream": True, "max_tokens": 3, "stream_options": {"include_usage": True}}
    assert events(await client.post("/v1/completions", json=body))[-1]["usage"]["completion_tokens"] == 3


async def test_logprobs_and_echo_reach_the_response(client: httpx.AsyncClient) -> None:
    body = {"prompt": "Hi", "max_tokens": 2, "logprobs": 2, "echo": True, "prompt_logprobs": 1}
    choice = (await client.post("/v1/completions", json=body)).json()["choices"][0]
    assert choice["text"] == "Hi Hello wor"
    assert choice["logprobs"]["token_logprobs"][-2:] == [-0.25, -0.25]
    assert len(choice["prompt_logprobs"]) == 2


async def test_chat_logprobs_reach_the_response(client: httpx.AsyncClient) -> None:
    body = {"messages": HELLO, "max_tokens": 2, "logprobs": True, "top_logprobs": 2, "n": 2}
    choices = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert all(len(token["top_logprobs"]) == 2 for token in choices[0]["logprobs"]["content"])


async def test_sampling_fields_reach_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 3,
        "stop": ["x"],
        "stop_token_ids": [5],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "min_tokens": 1,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "logit_bias": {"7": 1.5},
        "allowed_token_ids": [7, 8],
        "bad_words": ["bad"],
    }
    response = await client.post("/v1/completions", json={"prompt": "Hi", **fields})
    assert response.status_code == 200, response.text
    asked = engine.asked[0]
    expected = fields | {"logit_bias": {7: 1.5}}
    assert {name: getattr(asked, name) for name in expected} == expected


async def test_a_json_schema_reaches_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n"}},
        "$defs": {"n": {"type": "integer"}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    response = await client.post("/v1/chat/completions", json={"messages": HELLO, "response_format": wanted})
    assert response.status_code == 200, response.text
    assert engine.asked[0].structured_outputs.json == schema


async def test_a_final_assistant_message_is_continued_and_echoed(client: httpx.AsyncClient) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Well,"}]
    body = {"messages": messages, "continue_final_message": True, "echo": True, "max_tokens": 4}
    answer = (await client.post("/v1/chat/completions", json=body | {"return_prompt_text": True})).json()
    assert answer["choices"][0]["message"]["content"] == "Well," + TEXT


async def test_prompts_in_a_list_are_answered_in_order(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/completions", json={"prompt": ["a", "b"], "n": 2})).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


async def test_nulls_and_switched_off_extras_ask_for_nothing(client: httpx.AsyncClient) -> None:
    message = {"role": "assistant", "content": "a", "refusal": None, "tool_calls": [], "audio": None}
    body = {"messages": [message, *HELLO], "tools": None, "n": None, "use_beam_search": False, "eft": None}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text


async def test_models_list_the_composite_its_aliases_and_the_members(client: httpx.AsyncClient) -> None:
    cards = (await client.get("/v1/models")).json()["data"]
    kinds = {card["id"]: card["eft"]["kind"] for card in cards}
    assert kinds == {
        "demo": "composite",
        "demo-helpful": "alias",
        "demo/base": "member",
        "demo/small": "member",
        "demo/helpful": "member",
        "demo/harmless": "member",
    }
    assert cards[0]["eft"]["bounds"]["weights"]["helpful"] == {"min": 0.0, "max": 2.0}


async def test_the_familys_card_names_its_members_and_only_that(client: httpx.AsyncClient) -> None:
    cards = (await client.get("/v1/models")).json()["data"]
    assert cards[0]["eft"]["members"] == {
        "base": {"kind": "base", "reference": None, "description": ""},
        "small": {"kind": "reference", "reference": None, "description": ""},
        "helpful": {"kind": "expert", "reference": "small", "description": ""},
        "harmless": {"kind": "expert", "reference": "small", "description": ""},
    }
    assert not any("members" in card["eft"] for card in cards[1:])


async def test_one_model_can_be_asked_for_by_its_name_with_a_slash(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/demo/base")).json()["id"] == "demo/base"
    assert (await client.get("/v1/models/demo/nobody")).status_code == 404


async def test_tokens_go_back_and_forth(client: httpx.AsyncClient) -> None:
    tokens = (await client.post("/tokenize", json={"prompt": "Hello world!", "model": "demo/base"})).json()
    text = (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert text == {"prompt": "Hello world!"}


async def test_messages_are_tokenized_in_the_chat_template(client: httpx.AsyncClient) -> None:
    body = {"messages": HELLO, "return_token_strs": True}
    strings = (await client.post("/tokenize", json=body)).json()["token_strs"]
    assert strings[0] == "<|user|>"
    assert strings[-1] == "<|assistant|>"


async def test_tokenizer_info_holds_no_paths(client: httpx.AsyncClient) -> None:
    response = await client.get("/tokenizer_info")
    assert response.json()["eos_token"] == "<|end|>"
    assert "/tmp" not in response.text


async def test_health_follows_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await client.get("/health")).status_code == 200
    assert (await client.head("/health")).status_code == 200
    engine.dead = True
    response = await client.get("/health")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "unavailable"


@pytest.mark.parametrize("stream", [False, True])
async def test_metrics_count_drafts_by_the_name_that_was_asked_for(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    # Three verifications of three drafts each: none, two and three of them were right.
    engine.speculation = RequestSpecDecodeMetrics(3, histogram=[1, 0, 1, 1], num_draft_tokens=9)
    before = await _drafting(client, "demo-helpful"), await _drafting(client, "demo")
    body = {"model": "demo-helpful", "prompt": "Hi", "max_tokens": 2, "n": 2, "stream": stream}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    after = await _drafting(client, "demo-helpful"), await _drafting(client, "demo")
    assert [a - b for a, b in zip(after[0], before[0], strict=True)] == [1, 18, 10]
    assert after[1] == before[1]


async def _drafting(client: httpx.AsyncClient, model: str) -> list[float]:
    text = (await client.get("/metrics")).text
    names = ("eft:requests_total", "eft:draft_tokens_total", "eft:accepted_tokens_total")
    found = [re.search(rf'^{name}{{model="{model}"}} (\S+)$', text, re.MULTILINE) for name in names]
    return [float(match[1]) if match else 0.0 for match in found]


async def test_metrics_are_prometheus_text(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert "# TYPE" in response.text


async def test_version_names_both_programs(client: httpx.AsyncClient) -> None:
    assert set((await client.get("/version")).json()) == {"version", "vllm"}


async def test_the_openapi_document_shows_supported_fields_only(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    chat = document["components"]["schemas"]["ChatRequest"]
    assert "eft" in chat["properties"]
    assert "best_of" not in chat["properties"]
    assert "previous_response_id" not in document["components"]["schemas"]["ResponseRequest"]["properties"]
    assert chat["example"]["eft"]["weights"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/tokenize"} <= set(
        document["paths"]
    )


async def test_every_reference_in_the_openapi_document_resolves(client: httpx.AsyncClient) -> None:
    text = (await client.get("/openapi.json")).text
    known = json.loads(text)["components"]["schemas"]
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(known)


async def test_the_documentation_page_needs_no_other_host(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    assert "//" not in page.replace("// ", "").replace("<!", "")
    script = await client.get("/docs/assets/swagger-ui-bundle.js")
    assert script.status_code == 200


async def test_the_user_field_is_written_to_the_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="eft_server.api.serving.service")
    await client.post("/v1/completions", json={"prompt": "Hi", "user": "anna\nroot"})
    assert r"user='anna\nroot'" in caplog.text


@pytest.mark.parametrize(
    "constraint", [{"regex": "[a-z]+"}, {"grammar": 'root ::= "Token("+'}, {"json": {"const": 1}}]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_a_constraint_reaches_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, constraint: dict[str, Any]
) -> None:
    body = ASKED[path] | {"structured_outputs": constraint, "max_tokens": 3}
    if path == "/v1/responses":
        body["max_output_tokens"] = body.pop("max_tokens")
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    ((kind, value),) = constraint.items()
    assert getattr(engine.asked[0].structured_outputs, kind) == value


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_headers_cannot_set_what_fields_may_not(client: httpx.AsyncClient, path: str) -> None:
    body = ASKED[path]
    headers = {"X-Request-Id": "mine", "X-Vllm-Priority": "-5", "X-data-parallel-rank": "3"}
    response = await client.post(path, json=body, headers=headers)
    assert response.status_code == 200
    assert "mine" not in response.json()["id"]


async def test_messages_are_rendered_by_the_template_that_the_family_brings(engine: FakeEngine) -> None:
    """A base that has no template of its own reads its expert's."""
    app = create_app(engine, family(), chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}?")
    async with client_of(app) as client:
        answer = (await client.post("/tokenize", json={"messages": HELLO})).json()
        text = (await client.post("/detokenize", json={"tokens": answer["tokens"]})).json()["prompt"]
    assert text.endswith("Hi?")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", list(ASKED))
async def test_a_prompt_that_fills_the_context_is_refused_with_both_lengths(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, stream: bool
) -> None:
    context = engine.model_config.max_model_len
    frame = 0 if path == "/v1/completions" else 3
    for length, fits in ((context - 1, True), (context, False)):
        text = "7" * (length - frame)
        prompts = {"messages": [{"role": "user", "content": text}], "prompt": text, "input": text}
        asked = {name: prompts[name] for name in ASKED[path]} | {"stream": stream}
        engine.script = "a"
        response = await client.post(path, json=asked)
        assert (response.status_code == 200) is fits, response.text
    error = response.json()["error"]
    assert error["message"].count(str(context)) == 2
    assert error["param"] in ASKED[path]
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", ASKED)
async def test_a_prompt_far_too_long_has_the_same_code(client: httpx.AsyncClient, path: str) -> None:
    prompts = dict.fromkeys(("prompt", "input"), "7" * 9000)
    asked = prompts | {"messages": [{"role": "user", "content": "7" * 9000}]}
    response = await client.post(path, json={name: asked[name] for name in ASKED[path]})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["param"] in ASKED[path]


async def test_a_field_that_only_vllms_message_names_is_named(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json={"prompt": "a", "min_tokens": 9, "max_tokens": 2})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "min_tokens"


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_a_developers_message_is_a_systems(
    client: httpx.AsyncClient, engine: FakeEngine, role: str
) -> None:
    said = [{"role": role, "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for path, body in (("/v1/chat/completions", {"messages": said}), ("/v1/responses", {"input": said})):
        assert (await client.post(path, json=body)).status_code == 200
    assert len(set(engine.prompts)) == 1 and "Be brief." in engine.prompts[0]
