"""JSON schemas for the OpenAPI document, of fields that are narrower here than in vLLM's models."""

from collections.abc import Mapping
from typing import Any

from eft_server.api.requests import messages
from eft_server.api.requests import response_input as items
from eft_server.api.requests.reasoning import EFFORTS

__all__ = ["RESPONSE", "SHARED"]


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    shape = {"type": "object", "additionalProperties": False, "properties": properties}
    return shape | ({"required": list(required)} if required else {})


def _content(*kinds: str) -> dict[str, Any]:
    part = {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"enum": list(kinds)}, "text": _TEXT},
    }
    return {"anyOf": [_TEXT, {"type": "array", "items": part}]}


_TEXT: dict[str, Any] = {"type": "string"}
_SCHEMA: dict[str, Any] = {"type": "object", "description": "A JSON schema that does not refer to itself."}
_CALL = _object(
    ("name", "arguments"), name=_TEXT, arguments=_TEXT | {"description": "The JSON text of an object."}
)
_FUNCTION = {"name": _TEXT, "description": _TEXT, "parameters": _SCHEMA, "strict": {"type": "boolean"}}
_CONST_FUNCTION = {"const": "function"}
_NEEDS_PARSER = "Needs server.tool_parser in the family file, a parser for the members' format."
_NEEDS_TEMPLATE = "Refused if the chat template does not use it."
_EFFORT = {"enum": list(EFFORTS), "description": _NEEDS_TEMPLATE}


def _choice(by_name: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"enum": ["none", "auto", "required"]}, by_name], "description": _NEEDS_PARSER}


def _tools(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "description": _NEEDS_PARSER, "items": tool}


SHARED: Mapping[str, Any] = {
    "messages": {
        "type": "array",
        "minItems": 1,
        "items": _object(
            ("role",),
            role={"enum": list(messages.ROLES)},
            content=_content("text"),
            tool_calls={
                "type": "array",
                "items": _object(("id", "type", "function"), id=_TEXT, type=_CONST_FUNCTION, function=_CALL),
            },
            tool_call_id=_TEXT,
            reasoning=_TEXT,
        ),
    },
    "response_format": {
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": {"enum": ["text", "json_object", "json_schema"]},
            "json_schema": {
                "type": "object",
                "required": ["name", "schema"],
                "properties": {"name": _TEXT, "schema": _SCHEMA},
            },
        },
    },
    "structured_outputs": {
        "description": "One constraint, which is compiled and tried out before the request is accepted.",
        "oneOf": [
            _object(("json",), json=_SCHEMA),
            _object(("regex",), regex=_TEXT | {"description": "Without lookaround or backreferences."}),
            _object(
                ("grammar",),
                grammar=_TEXT | {"description": "In EBNF with a rule root, or in Lark's syntax."},
            ),
            _object(("choice",), choice={"type": "array", "items": _TEXT}),
        ],
    },
    "tools": _tools(
        _object(("type", "function"), type=_CONST_FUNCTION, function=_object(("name",), **_FUNCTION))
    ),
    "tool_choice": _choice(
        _object(("type", "function"), type=_CONST_FUNCTION, function=_object(("name",), name=_TEXT))
    ),
    "reasoning_effort": _EFFORT,
    "chat_template_kwargs": _object(enable_thinking={"type": "boolean", "description": _NEEDS_TEMPLATE}),
    "vllm_xargs": {
        "type": "object",
        "description": "The weights in a flat form, for vLLM's clients: eft.<expert> and eft.scale.",
        "additionalProperties": {"type": "number"},
        "example": {"eft.helpful": 0.7, "eft.scale": 1.0},
    },
}
"""Of chats and text completions."""

_ITEM = {
    "anyOf": [
        _object(
            ("role", "content"),
            type={"const": "message"},
            role={"enum": list(items.ROLES)},
            content=_content("input_text", "output_text", "text"),
        ),
        _object(
            ("type", "call_id", "name", "arguments"),
            type={"const": "function_call"},
            call_id=_TEXT,
            **_CALL["properties"],
        ),
        _object(
            ("type", "call_id", "output"), type={"const": "function_call_output"}, call_id=_TEXT, output=_TEXT
        ),
        _object(("type", "content"), type={"const": "reasoning"}, content=_content("reasoning_text")),
    ]
}

RESPONSE: Mapping[str, Any] = {
    **SHARED,
    "input": {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _ITEM}]},
    "text": _object(
        format={
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"enum": ["text", "json_object", "json_schema"]},
                "name": _TEXT,
                "schema": _SCHEMA,
            },
        }
    ),
    "include": {"type": "array", "items": {"enum": ["message.output_text.logprobs"]}},
    "tools": _tools(_object(("type", "name"), type=_CONST_FUNCTION, **_FUNCTION)),
    "tool_choice": _choice(_object(("type", "name"), type=_CONST_FUNCTION, name=_TEXT)),
    "reasoning": _object(effort=_EFFORT),
    "metadata": {"type": "object", "additionalProperties": _TEXT},
    "truncation": {"enum": ["disabled"]},
    "service_tier": {"enum": ["auto", "default"]},
}
"""Of responses."""
