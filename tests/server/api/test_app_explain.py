"""POST /v1/eft/explain over the fake engine: what the engine is asked, and what is refused before it is."""

from typing import Any

import httpx
import pytest

from eft_server.api.app import create_app

from .fake_engine import FakeEngine
from .served import client_of, family
from .test_app_scores import ALONE, CHAT, HELLO

pytestmark = pytest.mark.asyncio

PATH = "/v1/eft/explain"
GIVEN: dict[str, Any] = {"prompt": [1, 2, 3], "completion": [5, 6, 7]}


async def refused(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json=fields)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


async def asked(client: httpx.AsyncClient, engine: FakeEngine, **fields: Any) -> dict[str, Any]:
    """What the engine is asked; this engine cannot explain, so the answer is an error."""
    await client.post(PATH, json=GIVEN | fields)
    scoring: dict[str, Any] = engine.asked[-1].extra_args["eft_scoring"]
    return scoring


async def test_the_engine_is_asked_for_everybody_and_for_the_composite_without_each_expert(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    weights = {"weights": {"helpful": 0.75, "harmless": 0.25}, "scale": 0.5}
    scoring = await asked(client, engine, eft=weights, top_logprobs=3)
    assert scoring["vectors"] == [
        [1.0, -0.5, 0.375, 0.125],
        *ALONE.values(),
        [1.0, -0.125, 0.0, 0.125],
        [1.0, -0.375, 0.375, 0.0],
    ]
    assert scoring["explaining"] == {
        "likely": 3,
        "leading": 5,
        "base": 1,
        "filtered": False,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
    }
    assert (scoring["first"], scoring["targets"]) == (2, [5, 6, 7])


async def test_an_expert_without_a_weight_is_not_left_out_once_more(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    alone = await asked(client, engine, eft={"weights": {"helpful": 1}})
    assert alone["vectors"][5:] == [[1.0, 0.0, 0.0, 0.0]]
    member = await asked(client, engine, model="demo/helpful")
    assert member["vectors"] == [ALONE["helpful"], *ALONE.values()]


async def test_a_filter_and_sampling_settings_go_along_as_the_engine_applies_them(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    eft = {"weights": {"helpful": 1, "harmless": 0.5}, "filter": {"kind": "expert", "top_p": 0.5}}
    scoring = await asked(client, engine, eft=eft, temperature=0, top_p=0.3, top_k=-1)
    # The delta is what the filter applies to, with and without an expert.
    assert scoring["vectors"][0] == [0.0, -0.5, 1.0, 0.5, 1.0, -1.0, 0.0, 0.0, 1.0, 0.5]
    assert scoring["vectors"][5] == [0.0, 0.5, 0.0, 0.5, 1.0, -1.0, 0.0, 0.0, 1.0, 0.5]
    explaining = scoring["explaining"]
    assert explaining["filtered"]
    assert [explaining[name] for name in ("temperature", "top_p", "top_k")] == [0.0, 1.0, 0]


async def test_a_part_of_the_completion_is_read_behind_what_comes_before_it(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    scoring = await asked(client, engine, span=[1, 3])
    assert (scoring["first"], scoring["targets"]) == (3, [6, 7])


async def test_without_a_completion_one_is_generated_by_the_settings(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    settings = {"temperature": 0.5, "top_p": 0.75, "top_k": 9, "min_p": 0.125, "seed": 3, "stop": ["."]}
    engine.script = "Hello the fox"
    fields = {"messages": HELLO, "max_tokens": 7, "eft": {"weights": {"helpful": 1}}} | settings
    await client.post(PATH, json=fields)
    generated, explained = engine.asked
    assert engine.prompts[0] == CHAT
    assert {name: getattr(generated, name) for name in settings} == settings
    assert generated.max_tokens == 7
    assert generated.extra_args["eft"] == [1.0, -1.0, 1.0, 0.0]
    text = engine.renderer.get_tokenizer().decode(explained.extra_args["eft_scoring"]["targets"])
    assert text == "Hello the fox"
    explaining = explained.extra_args["eft_scoring"]["explaining"]
    assert {name: explaining[name] for name in ("temperature", "top_p", "top_k", "min_p")} == {
        name: settings[name] for name in ("temperature", "top_p", "top_k", "min_p")
    }


async def test_without_a_number_there_is_a_default_that_fits_into_the_context(engine: FakeEngine) -> None:
    for most, expected in ((262_144, 256), (1000, 25)):
        async with client_of(create_app(engine, family(max_scores=most))) as client:
            await client.post(PATH, json={"prompt": [1, 2, 3], "eft": {"weights": {"helpful": 1}}})
        assert engine.asked[0].max_tokens == min(expected, engine.model_config.max_model_len - 3)
        engine.reset()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"completion": "x"}, "messages", "either messages or a prompt"),
        (GIVEN | {"messages": HELLO}, "messages", "either messages or a prompt"),
        (GIVEN | {"max_tokens": 5}, "max_tokens", "has no effect"),
        (GIVEN | {"seed": 5}, "seed", "has no effect"),
        (GIVEN | {"stop": "."}, "stop", "has no effect"),
        ({"prompt": "x", "span": [0, 1]}, "span", "needs completion"),
        ({"prompt": "x", "end": True}, "end", "needs completion"),
        ({"messages": HELLO, "completion": "x", "prompts": {"base": "y"}}, "prompts", "needs prompt"),
        (GIVEN | {"span": [0, 4]}, "span", "3 tokens"),
        (GIVEN | {"span": [1, 1]}, "span", "holds no token"),
        (GIVEN | {"span": [2]}, "span", "two places"),
        (GIVEN | {"span": "all"}, "span", "two places"),
        (GIVEN | {"span": [0, 1.5]}, "span.1", "whole number"),
        (GIVEN | {"span": [-1, 1]}, "span.0", "whole number"),
        (GIVEN | {"top_logprobs": 6}, "top_logprobs", "0 to 5"),
        (GIVEN | {"top_logprobs": True}, "top_logprobs", "whole number"),
        (GIVEN | {"temperature": 3}, "temperature", "from 0 to 2"),
        (GIVEN | {"top_p": 0}, "top_p", "above 0"),
        (GIVEN | {"completion": []}, "completion", "no token"),
        (GIVEN | {"completion": ""}, "completion", "no token"),
        (GIVEN | {"completion": [10**6]}, "completion", "is not a token id"),
        (GIVEN | {"completion": {"text": "x"}}, "completion", "neither text nor a list"),
        (GIVEN | {"prompts": ["x"]}, "prompts", "object of prompts by member"),
        (GIVEN | {"prompts": {"nobody": "x"}}, "prompts.nobody", "unknown member"),
        (GIVEN | {"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x", ""),
        (GIVEN | {"presence_penalty": 1}, "presence_penalty", "Unknown field"),
        (GIVEN | {"stream": True}, "stream", "Unknown field"),
        (GIVEN | {"eft": {"weights": {"nobody": 1}}}, "eft.weights.nobody", "unknown expert"),
        (GIVEN | {"eft": {"prompts": {}}}, "eft.prompts", "/v1/completions"),
    ],
    ids=str,
)
async def test_what_cannot_be_explained_is_refused_by_name(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str, words: str
) -> None:
    error = await refused(client, **fields)
    assert error["param"] == param
    assert words in error["message"]
    assert engine.asked == []


async def test_more_numbers_than_allowed_are_refused_with_what_would_fit(engine: FakeEngine) -> None:
    # A token brings 2 × 6 scores, entropy and divergence, and 2 likely tokens under 5 vectors.
    async with client_of(create_app(engine, family(max_scores=50))) as client:
        fields = GIVEN | {"top_logprobs": 2, "eft": {"weights": {"helpful": 1}}}
        error = await refused(client, **fields)
        assert error["param"] == "span"
        assert "72 numbers" in error["message"]
        assert "2 tokens at a time" in error["message"]
        assert (await refused(client, prompt="x", max_tokens=9))["param"] == "max_tokens"
        assert engine.asked == []
        await client.post(PATH, json=fields | {"span": [0, 2]})
        assert len(engine.asked) == 1


async def test_a_member_without_a_weight_may_have_a_prompt_of_its_own_while_generating(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    helpful = {"weights": {"helpful": 1}}
    await client.post(PATH, json={"prompt": [1, 2, 3], "prompts": {"harmless": [4, 5, 6, 7]}, "eft": helpful})
    assert engine.asked[0].max_tokens == min(256, engine.model_config.max_model_len - 4)
