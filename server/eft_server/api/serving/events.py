"""Server-sent events that hold JSON, as text."""

import json
from typing import Any

__all__ = ["event_of", "payload_of"]

_DATA = "data: "


def event_of(payload: dict[str, Any], kind: str | None = None) -> str:
    """An event with this JSON object; events of responses also have a kind."""
    named = f"event: {kind}\n" if kind is not None else ""
    return f"{named}{_DATA}{json.dumps(payload, ensure_ascii=False, separators=(',', ':'))}\n\n"


def payload_of(event: str) -> dict[str, Any]:
    """The JSON object in an event without a name."""
    payload: dict[str, Any] = json.loads(event.removeprefix(_DATA))
    return payload
