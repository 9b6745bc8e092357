"""Members that read prompts of their own: what the engine is handed, and what is refused."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from eft_server.api.app import create_app
from eft_server.family.file import ServerConfig
from eft_server.family.templates import PLAIN, MemberTemplate, Voice

from .fake_engine import FakeEngine
from .served import FAMILY, client_of, family

HELLO = [{"role": "user", "content": "Hello world!"}]
CHAT = "<|user|>Hello world!<|end|><|assistant|>"
TEXT = "# Query:\nHello world!\n\n# Response:\n"


@pytest.fixture
def tokenizer(engine: FakeEngine) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(engine.model_config.model)


@pytest.fixture
def voices(tokenizer: AutoTokenizer) -> tuple[Voice, ...]:
    """The base and its reference read plain text, the experts a chat template."""
    return (
        Voice(MemberTemplate(PLAIN, "plain text", plain=True), tokenizer, "base", (0, 1)),
        Voice(MemberTemplate(tokenizer.chat_template, "its own"), tokenizer, "base", (2, 3)),
    )


@pytest_asyncio.fixture
async def client(engine: FakeEngine, voices: tuple[Voice, ...]) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(engine, family(), chat_template=PLAIN, voices=voices)) as client:
        yield client


def ids(tokenizer: AutoTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


async def test_every_member_gets_its_own_rendering(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: AutoTokenizer
) -> None:
    answer = (await client.post("/v1/chat/completions", json={"messages": HELLO})).json()
    plain, chat = ids(tokenizer, TEXT), ids(tokenizer, CHAT)
    assert engine.asked[0].extra_args["eft_prompts"] == [plain, plain, chat, chat]
    assert answer["usage"]["prompt_tokens"] == max(len(plain), len(chat))


@pytest.mark.parametrize(("model", "text"), [("demo/base", TEXT), ("demo/helpful", CHAT)])
async def test_a_member_alone_is_an_ordinary_request(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: AutoTokenizer, model: str, text: str
) -> None:
    answer = (await client.post("/v1/chat/completions", json={"messages": HELLO, "model": model})).json()
    assert "eft_prompts" not in engine.asked[0].extra_args
    assert answer["usage"]["prompt_tokens"] == len(ids(tokenizer, text))


async def test_a_base_filter_makes_the_base_read_too(engine: FakeEngine, voices: tuple[Voice, ...]) -> None:
    config = ServerConfig.model_validate(FAMILY | {"limits": {"coefficients": {"min": 0, "max": 1}}})
    alone = {"coefficients": {"helpful": 1}}
    filtered = alone | {"filter": {"kind": "base", "top_p": 0.5}}
    async with client_of(create_app(engine, config, chat_template=PLAIN, voices=voices)) as client:
        for eft in (alone, filtered):
            await client.post("/v1/chat/completions", json={"messages": HELLO, "eft": eft})
    assert ["eft_prompts" in params.extra_args for params in engine.asked] == [False, True]


async def test_a_chat_without_its_last_turn_is_continued_in_every_template(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: AutoTokenizer
) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Hello"}]
    body = {"messages": messages, "continue_final_message": True}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    plain, _, chat, _ = engine.asked[0].extra_args["eft_prompts"]
    assert tokenizer.decode(plain).endswith("# Response:\nHello")
    assert tokenizer.decode(chat).endswith("<|assistant|>Hello")


async def test_content_in_parts_is_one_text(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: AutoTokenizer
) -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "world!"}]
    await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]})
    assert tokenizer.decode(engine.asked[0].extra_args["eft_prompts"][2]) == CHAT.replace("Hello ", "Hello\n")


async def test_a_completion_may_bring_a_prompt_for_a_member(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: AutoTokenizer
) -> None:
    eft = {"weights": {"helpful": 1}, "prompts": {"helpful": "Hello world! The lazy dog", "small": [5, 6]}}
    answer = (await client.post("/v1/completions", json={"prompt": "Hello", "eft": eft})).json()
    hello, longest = ids(tokenizer, "Hello"), ids(tokenizer, "Hello world! The lazy dog")
    assert engine.asked[0].extra_args["eft_prompts"] == [hello, [5, 6], longest, longest]
    assert answer["usage"]["prompt_tokens"] == len(longest)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "Hi", "eft": {"prompts": 1}}, "eft.prompts"),
        ({"prompt": "Hi", "eft": {"prompts": {"x": "Hi"}}}, "eft.prompts.x"),
        ({"prompt": "Hi", "eft": {"prompts": {"base": []}}}, "eft.prompts.base"),
        ({"prompt": "Hi", "eft": {"prompts": {"base": ["a"]}}}, "eft.prompts.base"),
        ({"prompt": "Hi", "eft": {"prompts": {"base": [True]}}}, "eft.prompts.base"),
        ({"prompt": "Hi", "eft": {"prompts": {"base": [-1]}}}, "eft.prompts.base.0"),
        ({"prompt": "Hi", "eft": {"prompts": {"base": [1, 2, 100000]}}}, "eft.prompts"),
        ({"prompt": ["Hi", "Ho"], "eft": {"prompts": {"base": "Hi"}}}, "eft.prompts"),
        ({"prompt": "Hi", "eft": {"prompts": {"base": "Hello"}}, "echo": True}, "echo"),
        ({"prompt": "Hi", "eft": {"prompts": {"base": "Hello"}}, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"messages": HELLO, "eft": {"prompts": {"base": "Hi"}}}, "eft.prompts"),
        ({"messages": HELLO, "prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(client: httpx.AsyncClient, body: dict, param: str) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    response = await client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_member_prompt_that_is_too_long_is_a_400(client: httpx.AsyncClient) -> None:
    eft = {"prompts": {"small": "The quick brown fox. " * 200}}
    response = await client.post("/v1/completions", json={"prompt": "Hi", "eft": eft})
    assert response.status_code == 400
    assert "maximum" in response.json()["error"]["message"]


async def test_filters_and_amplification_reach_the_engine_and_come_back(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    eft = {"weights": {"helpful": 1}, "amplify": 0.5, "filter": {"kind": "expert", "top_p": 0.5}}
    answer = (await client.post("/v1/completions", json={"prompt": "Hi", "eft": eft})).json()
    assert engine.asked[0].extra_args["eft"] == [0, 0, 1, 0, 0.5, -0.5, 0, 0, 1, 0.5]
    assert answer["eft"] == eft | {"model": "demo", "weights": {"helpful": 1, "harmless": 0}, "scale": 1}
