"""The running server, through OpenAI's official client and through bare HTTP."""

import asyncio
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai import AsyncOpenAI, OpenAI

from eft_server.engine.launcher.plan import _FEW_CORES

from .conftest import Server, start_server, stop_server
from .random_family import POISON

HELLO: Any = [{"role": "user", "content": "Hello world, how does the fox jump?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 16}


def weights(helpful: float, harmless: float = 0.0, scale: float = 1.0) -> dict[str, Any]:
    """The extra body of a request with these weights."""
    return {"eft": {"weights": {"helpful": helpful, "harmless": harmless}, "scale": scale}}


def test_a_chat_is_answered_and_says_which_weights_it_was_given(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, **GREEDY, extra_body=weights(0.75))
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.model == "tiny"
    assert answer.model_extra is not None
    assert answer.model_extra["eft"] == {
        "model": "tiny",
        "weights": {"helpful": 0.75, "harmless": 0.0, "broken": 0.0},
        "scale": 1.0,
        "amplify": 1.0,
        "filter": None,
    }


def test_weights_change_the_answer(client: OpenAI) -> None:
    texts = {
        client.completions.create(model="tiny", prompt="Hello", **GREEDY, extra_body=weights(*pair))
        .choices[0]
        .text
        for pair in ((0, 0), (1, 0), (0, 1))
    }
    assert len(texts) == 3


def test_an_alias_answers_as_the_weights_that_it_stands_for(client: OpenAI) -> None:
    alias = client.completions.create(model="tiny-helpful", prompt="Hello", **GREEDY)
    spelt_out = client.completions.create(model="tiny", prompt="Hello", **GREEDY, extra_body=weights(1))
    assert alias.choices[0].text == spelt_out.choices[0].text
    assert alias.model == "tiny-helpful"


def test_zero_weights_answer_as_the_base(client: OpenAI) -> None:
    logprobs = [
        client.completions.create(
            model=model, prompt="Hello", logprobs=3, **GREEDY, extra_body=extra
        ).choices[0]
        for model, extra in (("tiny/base", {}), ("tiny", weights(0)), ("tiny", weights(1, scale=0)))
    ]
    assert logprobs[0].logprobs == logprobs[1].logprobs == logprobs[2].logprobs


def test_flat_xargs_answer_as_the_field(client: OpenAI) -> None:
    flat = {"vllm_xargs": {"eft.helpful": 0.6, "eft.harmless": 0.2, "eft.scale": 1.5}}
    one = client.completions.create(model="tiny", prompt="Hello", **GREEDY, extra_body=flat)
    other = client.completions.create(
        model="tiny", prompt="Hello", **GREEDY, extra_body=weights(0.6, 0.2, 1.5)
    )
    assert one.choices[0].text == other.choices[0].text


def test_a_stream_says_the_same_as_the_whole_answer(client: OpenAI) -> None:
    arguments: dict[str, Any] = {
        "model": "tiny",
        "messages": HELLO,
        **GREEDY,
        "extra_body": weights(0.5, 0.25),
    }
    whole = client.chat.completions.create(**arguments)
    chunks = list(
        client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert ["eft" in (chunk.model_extra or {}) for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert chunks[-1].usage == whole.usage


def test_a_completion_can_be_streamed(client: OpenAI) -> None:
    arguments: dict[str, Any] = {"model": "tiny", "prompt": "Hello", **GREEDY, "extra_body": weights(1)}
    chunks = list(client.completions.create(**arguments, stream=True))
    whole = client.completions.create(**arguments)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_chat_logprobs_are_normalised_and_ranked(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=5, **GREEDY, extra_body=weights(1)
    )
    content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert content and len(content) == 16
    for token in content:
        ranked = [top.logprob for top in token.top_logprobs]
        assert ranked == sorted(ranked, reverse=True)
        assert token.logprob == ranked[0] <= 0


def test_echoed_logprobs_are_the_ones_that_prompt_logprobs_give(client: OpenAI) -> None:
    body: dict[str, Any] = {"model": "tiny", "prompt": "Hello world", "max_tokens": 1, "temperature": 0}
    echoed = client.completions.create(**body, echo=True, logprobs=1, extra_body=weights(1)).choices[0]
    direct = client.completions.create(**body, extra_body=weights(1) | {"prompt_logprobs": 0}).choices[0]
    assert echoed.text.startswith("Hello world")
    assert echoed.logprobs and echoed.logprobs.token_logprobs
    assert direct.model_extra is not None
    tail = [
        next(iter(position.values()))["logprob"] for position in direct.model_extra["prompt_logprobs"][1:]
    ]
    assert echoed.logprobs.token_logprobs[1:-1] == pytest.approx(tail, abs=1e-4)


def test_seeded_choices_repeat_themselves(client: OpenAI) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": HELLO, "n": 3, "seed": 7, "max_tokens": 12}
    first, second = (client.chat.completions.create(**body, temperature=1.5) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) > 1


def test_a_stop_string_ends_the_answer(client: OpenAI) -> None:
    body: dict[str, Any] = {"model": "tiny", "prompt": "Hello", **GREEDY, "extra_body": weights(1)}
    whole = client.completions.create(**body).choices[0].text
    # Whole characters only: half a character comes out as U+FFFD, which may change as more bytes arrive.
    stop = next(char for char in whole[3:] if char.isprintable() and char != "\ufffd")
    stopped = client.completions.create(**body, stop=stop).choices[0]
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


def test_a_json_schema_is_followed(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"kind": {"enum": ["fox", "dog"]}}, "required": ["kind"]}
    wanted: Any = {
        "type": "json_schema",
        "json_schema": {"name": "animal", "schema": schema | {"additionalProperties": False}},
    }
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, response_format=wanted, temperature=0, max_tokens=200
    )
    # White space is bounded, so a small schema ends long before the tokens do.
    assert answer.choices[0].finish_reason == "stop"
    assert json.loads(answer.choices[0].message.content or "")["kind"] in ("fox", "dog")


def test_a_response_is_answered_as_the_chat_that_it_stands_for(client: OpenAI) -> None:
    chat = client.chat.completions.create(model="tiny", messages=HELLO, **GREEDY, extra_body=weights(1))
    asked: dict[str, Any] = {"model": "tiny", "input": HELLO, "temperature": 0, "max_output_tokens": 16}
    whole = client.responses.create(**asked, extra_body=weights(1))
    assert whole.output_text == chat.choices[0].message.content
    assert whole.model == "tiny"
    assert whole.usage and whole.usage.output_tokens == 16
    applied = {"model": "tiny", "weights": {"helpful": 1.0, "harmless": 0.0, "broken": 0.0}}
    applied |= {"scale": 1.0, "amplify": 1.0, "filter": None}
    assert (whole.model_extra or {})["eft"] == applied
    with client.responses.stream(**asked, extra_body=weights(1)) as stream:
        events = list(stream)
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == whole.output_text
    first = next(event for event in events if event.type == "response.created")
    assert (first.response.model_extra or {})["eft"] == applied


def test_a_required_tool_is_called(client: OpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {"animal": {"enum": ["fox", "dog"]}},
        "required": ["animal"],
        "additionalProperties": False,
    }
    tool: Any = {"type": "function", "function": {"name": "jump", "parameters": parameters, "strict": True}}
    choice = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=[tool], tool_choice="required", temperature=0, max_tokens=120
    ).choices[0]
    assert choice.message.tool_calls
    call: Any = choice.message.tool_calls[0]
    assert call.function.name == "jump"
    assert json.loads(call.function.arguments)["animal"] in ("fox", "dog")


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": "(fox|dog) jumps [0-9]{3}"}, r"(fox|dog) jumps \d{3}"),
        ({"grammar": 'root ::= who " and " who\nwho ::= "fox" | "dog"'}, "(fox|dog) and (fox|dog)"),
        ({"choice": ["lazy", "quick"]}, "lazy|quick"),
    ],
)
def test_a_constraint_is_followed(client: OpenAI, constraint: dict[str, Any], pattern: str) -> None:
    extra = weights(1) | {"structured_outputs": constraint}
    text = (
        client.completions.create(model="tiny", prompt="Hello", max_tokens=64, extra_body=extra)
        .choices[0]
        .text
    )
    assert re.fullmatch(pattern, text)


def test_models_are_listed(client: OpenAI) -> None:
    listed = {model.id: (model.model_extra or {})["eft"]["kind"] for model in client.models.list()}
    assert listed["tiny"] == "composite"
    assert listed["tiny-helpful"] == "alias"
    assert listed["tiny/base"] == listed["tiny/small"] == listed["tiny/helpful"] == "member"
    assert client.models.retrieve("tiny/base").id == "tiny/base"


def test_a_name_with_weights_answers_as_the_field_and_is_a_model_that_is_not_listed(client: OpenAI) -> None:
    name = "tiny:helpful=0.75,harmless=0.5,scale=0.8,filter=expert:0.9"
    field = weights(0.75, 0.5, 0.8)
    field["eft"]["filter"] = {"kind": "expert", "top_p": 0.9}
    named = client.completions.create(model=name, prompt="Hello", **GREEDY, logprobs=2)
    asked = client.completions.create(model="tiny", prompt="Hello", **GREEDY, logprobs=2, extra_body=field)
    assert named.choices == asked.choices
    card = client.models.retrieve(name)
    assert named.model == card.id == name
    assert (card.model_extra or {})["eft"]["weights"]["helpful"] == 0.75
    assert name not in [model.id for model in client.models.list()]


async def _greedy(
    client: AsyncOpenAI, model: str, extra: dict[str, Any], prompt: str
) -> tuple[str, list[float]]:
    answer = await client.completions.create(
        model=model, prompt=prompt, logprobs=1, **GREEDY, extra_body=extra
    )
    choice = answer.choices[0]
    assert choice.logprobs and choice.logprobs.token_logprobs
    return choice.text, [value or 0.0 for value in choice.logprobs.token_logprobs]


@pytest.mark.asyncio
async def test_concurrent_requests_with_different_weights_answer_as_each_would_alone(
    async_client: AsyncOpenAI,
) -> None:
    grid = itertools.product((0.0, 0.4, 0.8, 1.2), (0.0, 0.3, 0.6), (0.5, 1.0))
    asked: list[tuple[str, dict[str, Any], str]] = [
        ("tiny", weights(*setting), f"Hello number {index}") for index, setting in enumerate(grid)
    ]
    members = ("base", "small", "helpful", "harmless")
    asked += [(f"tiny/{members[index % 4]}", {}, f"The fox {index}") for index in range(32 - len(asked))]
    assert len(asked) == 32
    together = await asyncio.gather(*(_greedy(async_client, *request) for request in asked))
    for request, (text, logprobs) in zip(asked, together, strict=True):
        text_alone, logprobs_alone = await _greedy(async_client, *request)
        assert text == text_alone, request
        assert logprobs == pytest.approx(logprobs_alone, abs=1e-3), request


@pytest.mark.asyncio
async def test_a_row_that_is_not_finite_fails_alone(async_client: AsyncOpenAI) -> None:
    alone = await _greedy(async_client, "tiny", weights(1), "Hello")
    poisoned = async_client.completions.create(
        model="tiny", prompt=[5, POISON, 6], extra_body={"eft": {"weights": {"broken": 1}}}
    )
    others = [_greedy(async_client, "tiny", weights(1), "Hello") for _ in range(4)]
    failure, *answers = await asyncio.gather(poisoned, *others, return_exceptions=True)
    assert isinstance(failure, openai.InternalServerError)
    assert "cmpl-" in failure.message
    for answer in answers:
        assert not isinstance(answer, BaseException)
        assert answer[0] == alone[0]


@pytest.mark.asyncio
async def test_a_stream_that_was_left_frees_the_engine(server: Server, async_client: AsyncOpenAI) -> None:
    stream = await async_client.completions.create(
        model="tiny", prompt="Hello", max_tokens=250, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    await stream.close()
    async with httpx.AsyncClient(base_url=server.url) as http, asyncio.timeout(20):
        while "vllm:num_requests_running{" not in (text := (await http.get("/metrics")).text) or any(
            line.startswith("vllm:num_requests_running{") and not line.endswith(" 0.0")
            for line in text.splitlines()
        ):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"eft": {"weights": {"helpfull": 1}}}, "eft.weights.helpfull"),
        ({"eft": {"weights": {"helpful": "1"}}}, "eft.weights.helpful"),
        ({"eft": {"weights": {"helpful": True}}}, "eft.weights.helpful"),
        ({"eft": {"weights": {"helpful": 1e308}}}, "eft.weights.helpful"),
        ({"eft": {"weights": {"helpful": 2, "harmless": 2}}}, "eft.weights"),
        ({"eft": {"weights": {"helpful": -1}}}, "eft.weights.helpful"),
        ({"model": "tiny/base", "eft": {"scale": 1}}, "eft"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]},
            None,
        ),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"temprature": 1}, "temprature"),
        ({"n": 1000}, "n"),
        ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools.0.function.name"),
        ({"structured_outputs": {"regex": "(a+)+b"}}, "structured_outputs"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"$ref": "#"}},
                }
            },
            "response_format.json_schema.schema",
        ),
    ],
)
def test_what_cannot_be_served_is_a_bad_request_that_names_it(
    client: OpenAI, body: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, extra_body=body)
    assert param is None or caught.value.param == param


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_bad_requests(server: Server, number: str) -> None:
    body = f'{{"prompt": "a", "eft": {{"weights": {{"helpful": {number}}}}}}}'
    response = httpx.post(
        f"{server.url}/v1/completions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


def test_a_model_that_is_not_served_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=HELLO)


def test_a_half_sent_body_does_not_keep_its_connection(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 100\r\n\r\n{")
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 408 ")


def test_metrics_count_what_the_engine_has_generated(server: Server, client: OpenAI) -> None:
    client.completions.create(model="tiny", prompt="Hello", **GREEDY)
    metrics = httpx.get(f"{server.url}/metrics").text
    counts = [line for line in metrics.splitlines() if line.startswith("vllm:generation_tokens_total{")]
    assert counts and all(float(line.split()[-1]) >= 16 for line in counts)


def test_metrics_count_what_was_asked_for_and_what_was_refused(server: Server, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="Hello", **GREEDY, extra_body=weights(99))
    client.completions.create(model="tiny", prompt="Hello", **GREEDY, extra_body=weights(0.75))
    metrics = httpx.get(f"{server.url}/metrics").text
    for series in (
        'eft:requested_weight_bucket{expert="helpful",le="0.75"}',
        'eft:requested_scale_bucket{le="1.05"}',
        'eft:request_errors_total{code="invalid_behaviour",status="400"}',
    ):
        [line] = [line for line in metrics.splitlines() if line.startswith(series)]
        assert float(line.split()[-1]) >= 1
    assert "eft:ready 1.0" in metrics.splitlines()


def test_a_server_with_keys_stops_on_an_interrupt(family_file: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# the only key\nopen-sesame\n")
    guarded = start_server(str(family_file), "--api-key-file", str(keys))
    try:
        assert httpx.get(f"{guarded.url}/v1/models").status_code == 401
        assert OpenAI(base_url=f"{guarded.url}/v1", api_key="open-sesame").models.list().data
        assert httpx.get(f"{guarded.url}/health").status_code == 200
    finally:
        assert stop_server(guarded, signal.SIGINT) == 0
    said = "".join(guarded.lines)
    assert "Stopping" in said
    assert "Traceback" not in said
    assert "resource_tracker" not in said, "shared memory is left"


@pytest.mark.parametrize("stage", ["importing", "reading the members", "loading the members"])
def test_a_server_that_is_still_starting_stops_when_it_is_told_to(family_file: Path, stage: str) -> None:
    """Soon after the command, and while vLLM waits for its processes."""
    command = [str(Path(sys.executable).with_name("eft")), "serve", str(family_file), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert any(f"] {stage}" in line for line in process.stderr), "the start ended before"
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert "Traceback" not in process.stderr.read()
        assert process.wait(timeout=45) in (0, 128 + signal.SIGTERM)
        _, alive = psutil.wait_procs(started, timeout=15)
        assert alive == []
    finally:
        process.kill()


def test_a_start_says_how_far_it_is_and_nothing_else(server: Server) -> None:
    until_ready = list(itertools.takewhile(lambda line: not line.startswith("Serving "), server.lines))
    shown = [re.sub(r"^\[ *\d+\.\d s\] ", "", line).rstrip("\n") for line in until_ready]
    stages = (
        "importing vLLM and PyTorch",
        "reading the members' configs and tokenizers",
        "loading the members",
    )
    assert tuple(shown[:3]) == stages
    members = ("base", "small", "helpful", "harmless", "broken")
    assert [line.split(":")[0].strip() for line in shown[3:-2]] == [*members, "KV cache"]
    assert shown[-2:] == ["preparing the endpoints", "ready"]
    assert re.search(r"KV cache: [\d,]+ tokens in [\d,]+ blocks", shown[-3])


def test_the_engines_core_computes_on_every_core_it_is_given(server: Server, client: OpenAI) -> None:
    """There is no worker: OpenMP's threads are the core's, each on a core of its own, and bind none of the others."""
    client.completions.create(model="tiny", prompt="Hello", **GREEDY)
    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert not [process.name() for process in processes if "Worker" in process.name()]
    [core] = [process for process in processes if "EngineCor" in process.name()]
    given = os.sched_getaffinity(server.process.pid)
    places = [os.sched_getaffinity(thread.id) for thread in core.threads()]
    computing = {place.copy().pop() for place in places if len(place) == 1}
    assert given in places
    if len(given) <= _FEW_CORES:  # Of more, vLLM leaves some to other processes.
        assert computing >= given - {min(given)}
