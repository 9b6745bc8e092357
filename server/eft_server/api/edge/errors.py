"""Errors on the wire: every refusal and failure has OpenAI's shape."""

import logging
import re
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.handlers.validation import (
    clean_loc_for_param,
)
from vllm.entrypoints.serve.exception_handling.utils import sanitize_message
from vllm.exceptions import GenerationError, GracefulHTTPError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from eft_server.api.edge.api_error import ApiError
from eft_server.errors import BehaviourError, UnknownModelError

__all__ = ["PROMPT", "from_exception", "from_validation", "from_vllm", "install_error_handlers"]

_logger = logging.getLogger(__name__)

PROMPT = "prompt"
"""The param of an error about a prompt, until the endpoint names the field that held it."""

_TOO_LONG = ("input_text", "input_tokens")
"""vLLM's param for a prompt that is longer than the context, whichever field held it."""

_NAMES_FIELD = re.compile(r"([a-z]+(?:_[a-z]+)+)(?:: |(?:=\S+)? (?:must|cannot)\b)")
_INTERNAL = "Internal error; the server's log has the details."


def from_exception(exc: Exception) -> ApiError:
    """Turn an exception from this package, pydantic or a vLLM handler into an ApiError.

    vLLM's mapping decides about its exceptions. Unknown exceptions become a 500 without details, which only the
    log has.
    """
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, BehaviourError):
        return _from_behaviour(exc)
    if isinstance(exc, VLLMValidationError):
        message = sanitize_message(str(exc.args[0]))
        if exc.parameter in _TOO_LONG:
            return ApiError(message, param=PROMPT, code="context_length_exceeded")
        return ApiError(message, param=exc.parameter or _field_in(message))
    described = create_error_response(exc)
    return from_vllm(described) if described.error.code < 500 else _from_failure(exc, described)


def _from_behaviour(exc: BehaviourError) -> ApiError:
    if isinstance(exc, UnknownModelError):
        return ApiError(str(exc), status=404, param=exc.param, code="model_not_found")
    return ApiError(f"{exc.param}: {exc}", param=exc.param, code="invalid_behaviour")


def _from_failure(exc: Exception, described: ErrorResponse) -> ApiError:
    if isinstance(exc, GenerationError | GracefulHTTPError):
        _logger.error("%s", exc)
        return from_vllm(described)
    _logger.error("a request failed", exc_info=exc)
    if isinstance(exc, EngineDeadError):
        return ApiError("The engine has stopped; the server is shutting down.", status=503)
    return ApiError(_INTERNAL, status=500)


def from_vllm(response: ErrorResponse) -> ApiError:
    """Turn the error that a vLLM handler returned into an ApiError."""
    error = response.error
    message = error.message or HTTPStatus(error.code).phrase
    # The engine's limits (vllm.max_num_queued_reqs and _tokens) end here.
    headers = {"Retry-After": "1"} if error.code == HTTPStatus.SERVICE_UNAVAILABLE else None
    return ApiError(message, status=error.code, param=error.param or _field_in(message), headers=headers)


def from_validation(exc: ValidationError) -> ApiError:
    """Turn pydantic's validation error into an ApiError about the first problem."""
    first = exc.errors(include_url=False, include_input=False)[0]
    param = clean_loc_for_param(first["loc"]) if first["loc"] else None
    return ApiError(f"{param or 'request'}: {first['msg']}", param=param)


def install_error_handlers(app: FastAPI) -> None:
    """Give every error of the application the OpenAI shape, unknown paths and methods included."""
    app.add_exception_handler(ApiError, _handle)
    app.add_exception_handler(BehaviourError, _handle)
    app.add_exception_handler(HTTPException, _handle_http)
    app.add_exception_handler(Exception, _handle_unexpected)


async def _handle(_request: Request, exc: Exception) -> JSONResponse:
    return from_exception(exc).response()


async def _handle_http(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    message = f"{exc.detail}: {request.method} {request.url.path}"
    if exc.status_code == HTTPStatus.NOT_FOUND:
        served = [route.path for route in request.app.routes if getattr(route, "include_in_schema", False)]
        message += f"; served: {', '.join(dict.fromkeys(served))}"
    return ApiError(message, status=exc.status_code, headers=exc.headers).response()


async def _handle_unexpected(_request: Request, _exc: Exception) -> JSONResponse:
    return ApiError(_INTERNAL, status=500).response()


def _field_in(message: str) -> str | None:
    """The field at the start of a message, since some of vLLM's errors name it nowhere else."""
    found = _NAMES_FIELD.match(message)
    return found[1] if found else None
