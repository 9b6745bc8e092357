"""The tables of fields against vLLM's request models: nothing is left undecided."""

from typing import Any

import pytest
from pydantic import BaseModel
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)

from eft_server.api.edge.api_error import ApiError
from eft_server.api.requests import fields, schemas
from eft_server.family.file import ServerOptions

MODELS = [
    (ChatCompletionRequest, fields.CHAT),
    (CompletionRequest, fields.COMPLETION),
    (ResponsesRequest, fields.RESPONSE),
    (TokenizeCompletionRequest, fields.TOKENIZE_TEXT),
    (TokenizeChatRequest, fields.TOKENIZE_CHAT),
    (DetokenizeRequest, fields.DETOKENIZE),
]


@pytest.mark.parametrize(("model", "table"), MODELS)
def test_every_field_of_vllm_is_supported_or_refused(model: type[BaseModel], table: fields.Table) -> None:
    assert set(model.model_fields) - set(table) <= set(fields.REFUSED)


@pytest.mark.parametrize(("model", "table"), MODELS)
def test_every_supported_field_is_one_that_vllm_acts_upon(
    model: type[BaseModel], table: fields.Table
) -> None:
    assert set(table) - {"eft"} <= set(model.model_fields)


@pytest.mark.parametrize(
    "request_type",
    [
        schemas.ChatRequest,
        schemas.TextRequest,
        schemas.ResponseRequest,
        schemas.ScoreRequest,
        schemas.ExplainRequest,
        schemas.TokenizeText,
        schemas.TokenizeChat,
        schemas.Detokenize,
    ],
)
def test_every_supported_field_is_documented(request_type: Any) -> None:
    assert set(request_type.describe()["properties"]) == set(request_type.table)


@pytest.mark.parametrize("name", fields.REFUSED)
def test_a_refused_field_says_why(name: str) -> None:
    tables = [table for _, table in MODELS if name not in table]
    assert tables, "every endpoint supports it"
    for table in tables:
        with pytest.raises(ApiError) as caught:
            fields.accept({name: "anything"}, table, ServerOptions())
        assert fields.REFUSED[name] in str(caught.value)


def test_zero_is_not_taken_for_false() -> None:
    with pytest.raises(ApiError):
        fields.accept({"use_beam_search": 0}, fields.CHAT, ServerOptions())


def test_a_null_that_nobody_knows_is_still_unknown() -> None:
    with pytest.raises(ApiError, match="Unknown"):
        fields.accept({"wibble": None}, fields.CHAT, ServerOptions())


def test_a_server_option_moves_the_bound() -> None:
    body: dict[str, Any] = {"n": 20}
    assert fields.accept(body, fields.COMPLETION, ServerOptions(max_n=20)) == body
    with pytest.raises(ApiError, match="from 1 to 16"):
        fields.accept(body, fields.COMPLETION, ServerOptions())
