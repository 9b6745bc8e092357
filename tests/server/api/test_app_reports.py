"""`eft.report`: where the figures of a request's tokens end up."""

import json
from typing import Any

import httpx
import pytest

from .fake_engine import FakeEngine
from .test_metrics import risen

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 3}
TEXT: dict[str, Any] = {"prompt": "Hi", "max_tokens": 3}
RESPONSE: dict[str, Any] = {"input": "Hi", "max_output_tokens": 3}
PATHS = [("chat/completions", CHAT), ("completions", TEXT), ("responses", RESPONSE)]
ASKED: dict[str, Any] = {"eft": {"report": True}}
UNCHANGED = {"tokens": 3, "changed": 0.0, "kl": 0.25}


async def sent(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def events(client: httpx.AsyncClient, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = await client.post(f"/v1/{path}", json=body | {"stream": True})
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def said(event: dict[str, Any]) -> Any:
    """The object `eft` in an event, or in the response in it."""
    return event.get("eft") or event.get("response", {}).get("eft")


@pytest.mark.parametrize(("path", "body"), PATHS, ids=[path for path, _ in PATHS])
async def test_an_answer_has_the_report_that_it_is_asked_for(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await sent(client, path, **body, **ASKED)
    assert answer["eft"]["report"] == UNCHANGED
    assert "routed_experts" not in json.dumps(answer)
    flat = await sent(client, path, **body, vllm_xargs={"eft.report": True})
    assert flat["eft"] == answer["eft"]
    for silent in ({}, {"eft": {"report": False}}):
        assert "report" not in (await sent(client, path, **body, **silent))["eft"]


@pytest.mark.parametrize(("path", "body"), PATHS, ids=[path for path, _ in PATHS])
async def test_a_stream_has_it_where_it_ends(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    told = [said(event) for event in await events(client, path, **body, **ASKED) if said(event)]
    assert all("report" not in eft for eft in told[:-1])
    assert told[-1] == told[0] | {"report": UNCHANGED}
    silent = [said(event) for event in await events(client, path, **body) if said(event)]
    assert silent and all("report" not in eft for eft in silent)


async def test_one_report_is_of_all_choices_and_prompts(client: httpx.AsyncClient) -> None:
    body = TEXT | {"prompt": ["Hi", "Ho"], "n": 2}
    both = {"tokens": 12, "changed": 0.5, "kl": 0.25}
    assert (await sent(client, "completions", **body, **ASKED))["eft"]["report"] == both
    streamed = await events(client, "completions", **body, **ASKED, stream_options={"include_usage": True})
    with_report = [index for index, event in enumerate(streamed) if "report" in event.get("eft", {})]
    ends = [i for i, event in enumerate(streamed) for one in event["choices"] if one.get("finish_reason")]
    assert len(ends) == 4 and with_report == [ends[-1]]
    assert streamed[ends[-1]]["eft"]["report"] == both
    chat = await events(client, "chat/completions", **CHAT, n=2, **ASKED)
    assert chat[-1]["eft"]["report"] == {"tokens": 6, "changed": 0.5, "kl": 0.25}


async def test_a_stream_of_one_event_has_it_at_once(client: httpx.AsyncClient) -> None:
    [only] = await events(client, "completions", prompt="Hi", max_tokens=1, **ASKED)
    assert only["eft"]["report"]["tokens"] == 1


async def test_text_that_looks_like_an_end_is_none(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = '{"finish_reason":"stop"}'
    streamed = await events(client, "completions", prompt="Hi", max_tokens=99, **ASKED)
    assert ["report" in event.get("eft", {}) for event in streamed] == [*[False] * (len(streamed) - 1), True]


async def test_nothing_generated_is_nothing_reported(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {"prompt": "Hi", "echo": True, "max_tokens": 0, **ASKED}
    answer = await sent(client, "completions", **body)
    assert answer["eft"]["report"] is None
    assert "eft_report" not in (engine.asked[-1].extra_args or {})
    assert (await events(client, "completions", **body))[-1]["eft"]["report"] is None


@pytest.mark.parametrize("model", ["demo/helpful", "demo/base"])
async def test_a_member_may_be_reported_on(client: httpx.AsyncClient, model: str) -> None:
    answer = await sent(client, "completions", model=model, **TEXT, **ASKED)
    assert answer["eft"]["model"] == model and answer["eft"]["report"] == UNCHANGED


@pytest.mark.parametrize(
    ("asked", "param"),
    [(ASKED, "eft.report"), ({"vllm_xargs": {"eft.report": True}}, "vllm_xargs.eft.report")],
)
async def test_scores_generate_nothing_to_report_on(
    client: httpx.AsyncClient, asked: dict[str, Any], param: str
) -> None:
    items = [{"prompt": "Hi", "completion": " you"}]
    answer = await client.post("/v1/eft/score", json={"items": items, **asked})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert "nothing is generated here" in error["message"]
    silent = await client.post("/v1/eft/score", json={"items": items, "eft": {"report": False}})
    assert silent.status_code == 200


async def test_metrics_have_a_histogram_of_texts_with_a_report(client: httpx.AsyncClient) -> None:
    _, more = await risen(client, "/v1/completions", TEXT | {"n": 2} | ASKED)
    assert more[("eft:report_changed_count", "demo")] == more[("eft:report_kl_count", "demo")] == 2
    assert more[("eft:report_changed_bucket", "0.0", "demo")] == 1
    assert more[("eft:report_kl_sum", "demo")] == 0.5
    assert ("eft:report_kl_bucket", "0.2", "demo") not in more
    _, silent = await risen(client, "/v1/completions", TEXT)
    assert not any("report" in name for name, *_ in silent)
