"""The OpenAPI document and its page: our routes read their bodies themselves, so they also describe them."""

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from eft_server.api.requests import schemas

__all__ = ["describe_app", "json_body"]

_DESCRIPTION = """Emulated fine-tuning over OpenAI's API: one engine serves a base model and blends in the behaviour of
its experts, by the weights in each request's `eft` field."""

_REQUESTS = (
    schemas.ChatRequest,
    schemas.TextRequest,
    schemas.ResponseRequest,
    schemas.ScoreRequest,
    schemas.ExplainRequest,
    schemas.TokenizeText,
    schemas.TokenizeChat,
    schemas.Detokenize,
)
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string", "description": "What was wrong, and what is allowed."},
                "type": {"type": "string", "example": "invalid_request_error"},
                "param": {"type": ["string", "null"], "example": "eft.weights.helpful"},
                "code": {"type": "string", "example": "invalid_behaviour"},
            },
        }
    },
}

_ASSETS_URL = "/docs/assets"


def json_body(*models: type[Any]) -> dict[str, Any]:
    """A route's `openapi_extra`: a required JSON body of one of these models, and the shape of errors."""
    references = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    body = references[0] if len(references) == 1 else {"anyOf": references}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "4XX": {"description": "The request was refused.", "content": error},
            "5XX": {"description": "The server failed.", "content": error},
        },
    }


def describe_app(app: FastAPI) -> None:
    """Serve /openapi.json with the supported request fields, and /docs without other hosts."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    app.include_router(_docs)
    # The page's script and style come with vLLM, for machines without internet access.
    assets = files("vllm.entrypoints.serve.instrumentator") / "static"
    app.mount(_ASSETS_URL, StaticFiles(directory=str(assets)))


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    components = document.setdefault("components", {}).setdefault("schemas", {})
    components["Error"] = _ERROR
    for request in _REQUESTS:
        schema = request.describe()
        components.update(schema.pop("$defs", {}))
        components[request.__name__] = schema
    return document


_docs = APIRouter(include_in_schema=False)


@_docs.get("/docs")
async def _docs_page() -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="eft-server",
        swagger_js_url=f"{_ASSETS_URL}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS_URL}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
