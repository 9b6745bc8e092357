"""Every field of a request at its maximum, against a real server on either model runner, which lives on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from eft_server.api.edge.api_error import ApiError
from eft_server.api.requests import fields
from eft_server.behaviour.model_name import MAX_CHARS
from eft_server.engine import bounds
from eft_server.family.file import ServerOptions

from ..engine.driver import V2_ENVIRONMENT
from .conftest import Server, start_server, stop_server
from .random_family import FAMILY, write_checkpoint

IDS = 1100
"""As many as the largest field takes ids, and some."""

INT32, INT64 = 2**31 - 1, 2**63 - 1
OPTIONS = ServerOptions(max_n=4, max_logprobs=5, max_prompts=4)

WORDS = [f"{chr(65 + index // 26)}{chr(65 + index % 26)}{'~' * 14}" for index in range(64)]
"""Of 16 tokens each, which are the 1,024 that there is room for."""

MAXIMA: dict[str, Any] = {
    "frequency_penalty": 2,
    "presence_penalty": 2,
    "repetition_penalty": 100,
    "temperature": 2,
    "top_p": 1,
    "top_k": INT32,
    "min_p": 1,
    "seed": INT64,
    "n": OPTIONS.max_n,
    "max_tokens": INT32,
    "min_tokens": INT32,
    "stop": ["s" * 256] * OPTIONS.max_stop,
    "stop_token_ids": list(range(bounds.STOP_TOKEN_IDS)),
    "logit_bias": {str(key): 100 for key in range(bounds.LOGIT_BIASES)},
    "allowed_token_ids": list(range(bounds.ALLOWED_TOKEN_IDS)),
    "bad_words": WORDS,
    "prompt_logprobs": OPTIONS.max_logprobs,
    "logprobs": OPTIONS.max_logprobs,
    "logprob_token_ids": list(range(bounds.LOGPROB_TOKEN_IDS)),
    "cache_salt": "c" * 128,
    "user": "u" * 256,
    "model": "m" * MAX_CHARS,
    "stream_interval": 1024,
    "prompt": [[5, 6]] * OPTIONS.max_prompts,
}
"""Of completions, whose table has every field that becomes a sampling parameter."""

UNBOUNDED = {
    *("eft", "vllm_xargs", "response_format", "structured_outputs", "stream", "stream_options", "echo"),
    *("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens"),
    *("return_tokens_as_token_ids", "return_token_ids", "add_special_tokens"),
}
"""True or false, or objects with bounds of their own."""

BESIDE: dict[str, dict[str, Any]] = {
    "stop_token_ids": {"min_tokens": 2, "ignore_eos": False},
    "allowed_token_ids": {"logit_bias": MAXIMA["logit_bias"], "bad_words": WORDS, "min_tokens": 2},
    "n": {"temperature": 1.0},
    "stream_interval": {"stream": True},
    "max_tokens": {"stop_token_ids": list(range(bounds.STOP_TOKEN_IDS))},
}
"""Without which a field has no effect, or with which it would have most."""

REFUSED_LATER = {"max_tokens": 400, "min_tokens": 400, "model": 404}
"""More than the context has, or a model that is not there."""


def test_the_table_takes_the_maximum_and_not_one_more() -> None:
    assert set(MAXIMA) | UNBOUNDED == set(fields.COMPLETION)
    for name, most in MAXIMA.items():
        assert fields.accept({name: most}, fields.COMPLETION, OPTIONS)
        with pytest.raises(ApiError):
            fields.accept({name: one_more(most)}, fields.COMPLETION, OPTIONS)


def one_more(most: Any) -> Any:
    match most:
        case list():
            return [*most, most[-1]]
        case dict():
            return most | {str(len(most)): 1}
        case str():
            return most + most[0]
        case _:
            return most + 1


@pytest.fixture(scope="module", params=["v1", "v2"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("maxima")
    for seed, name in enumerate(("base", "small", "helpful")):
        write_checkpoint(folder / name, seed, vocab_size=IDS, num_hidden_layers=1)
    family = FAMILY.replace(", harmless: ./harmless, broken: ./broken", "").replace(", harmless: 0.5", "")
    (folder / "family.yaml").write_text(family)
    started = start_server(
        str(folder / "family.yaml"), environment=V2_ENVIRONMENT if request.param == "v2" else None
    )
    yield started
    assert stop_server(started) == 0


def test_a_server_that_got_every_maximum_still_answers(served: Server) -> None:
    with httpx.Client(base_url=served.url, timeout=120) as client:
        plain = {"prompt": [5, 6], "max_tokens": 2, "temperature": 0.0, "logprobs": 1}

        def ask(name: str) -> httpx.Response:
            given = plain | {name: MAXIMA[name]} | BESIDE.get(name, {})
            return client.post("/v1/completions", json=given)

        before = client.post("/v1/completions", json=plain).json()
        with ThreadPoolExecutor(4) as threads:
            answers = dict(zip(MAXIMA, threads.map(ask, MAXIMA), strict=True))
        after = client.post("/v1/completions", json=plain).json()
    found = {name: answer.status_code for name, answer in answers.items()}
    assert found == dict.fromkeys(MAXIMA, 200) | REFUSED_LATER
    assert after["choices"][0]["logprobs"] == before["choices"][0]["logprobs"]


def test_bad_words_of_more_tokens_than_there_is_room_for_are_refused_with_their_number(
    served: Server,
) -> None:
    with httpx.Client(base_url=served.url, timeout=120) as client:
        given = {"prompt": [5, 6], "max_tokens": 2, "bad_words": [f"{word}~" for word in WORDS]}
        answer = client.post("/v1/completions", json=given)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "bad_words"
    assert "1088 tokens together are too many; allowed: up to 1024" in answer.text
