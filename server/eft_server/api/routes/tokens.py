"""POST /tokenize and /detokenize, GET /tokenizer_info: the vocabulary that all members share."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.strict_json import parse_object
from eft_server.api.requests.openapi import json_body
from eft_server.api.requests.reasoning import require_readable
from eft_server.api.requests.schemas import Detokenize, TokenizeChat, TokenizeText
from eft_server.api.serving.current import current
from eft_server.api.serving.service import Service, service_of
from eft_server.api.serving.stream import outcome
from eft_server.errors import shown

__all__ = ["WORKING_PATHS", "router"]

WORKING_PATHS = ("/tokenize", "/detokenize")

router = APIRouter(tags=["tokens"])

# Keys that hold the path from which the tokenizer was loaded; paths on this machine are not for clients.
_PRIVATE_INFO = frozenset(
    {"name_or_path", "tokenizer_file", "cache_dir", "is_local", "local_files_only", "token"}
)


@router.post("/tokenize", summary="Tokenize", openapi_extra=json_body(TokenizeText, TokenizeChat))
async def tokenize(raw: Request) -> JSONResponse:
    """Turn a prompt, or messages rendered with the chat template, into token ids.

    ``prompts`` holds every member's, where the members' templates differ.
    """
    service = service_of(raw)
    payload = parse_object(await raw.body())
    kind: type[TokenizeText | TokenizeChat] = TokenizeChat if "messages" in payload else TokenizeText
    request = kind.read(payload, service.config.server)
    require_readable(payload.get("chat_template_kwargs"), None, service.handlers.template_variables)
    request.model = _known_model(service, request.model)
    result = await outcome(service.handlers.tokenization.create_tokenize(request, raw))
    answer = result.model_dump(exclude_none=True)
    if (rendered := current().rendered) is not None:
        answer["prompts"] = dict(zip(service.config.family.names, rendered, strict=True))
    return JSONResponse(answer)


@router.post("/detokenize", summary="Detokenize", openapi_extra=json_body(Detokenize))
async def detokenize(raw: Request) -> JSONResponse:
    """Turn token ids into text."""
    service = service_of(raw)
    request = Detokenize.read(parse_object(await raw.body()), service.config.server)
    request.model = _known_model(service, request.model)
    size = service.engine.model_config.get_vocab_size()
    for index, token_id in enumerate(request.tokens):
        if token_id >= size:
            param = f"tokens.{index}"
            raise ApiError(
                f"{param}: {shown(token_id)} is not a token id; allowed: 0 to {size - 1}.", param=param
            )
    result = await outcome(service.handlers.tokenization.create_detokenize(request, raw))
    return JSONResponse(result.model_dump(exclude_none=True))


@router.get("/tokenizer_info", summary="Describe the tokenizer")
async def tokenizer_info(raw: Request) -> JSONResponse:
    """The base's tokenizer configuration, which stands for every member's."""
    result = await outcome(service_of(raw).handlers.tokenization.get_tokenizer_info())
    info: dict[str, Any] = result.model_dump()
    return JSONResponse({key: value for key, value in info.items() if key not in _PRIVATE_INFO})


def _known_model(service: Service, model: str | None) -> str:
    """Check the requested name, and return the engine's."""
    service.behaviours.resolve(model or service.config.name)
    return service.config.name
