"""Activations beside scores: from a request's field to what the engine is asked, and into the answer."""

import base64
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, Field

from eft_server.api.requests.schemas import ActivationsRequest
from eft_server.api.scoring.texts import Text, members_named, refusal
from eft_server.engine.activations import Activations
from eft_server.engine.message import Manifest
from eft_server.family.file import ServerConfig

__all__ = ["LayerActivations", "asked_of", "bytes_of", "shown_activations"]

_BYTES = 4


class LayerActivations(BaseModel):
    """The states of one layer of one member."""

    shape: list[int] = Field(description="[C, H] for a completion of C tokens, or [H] where they are pooled.")
    data: str = Field(description="Base64 of little-endian float32 numbers, row by row.")


def asked_of(request: ActivationsRequest, config: ServerConfig, manifest: Manifest) -> Activations:
    """What the engine is asked for.

    Raises:
        ApiError: A member is unknown, or has no such layer.
    """
    names = members_named(request.members, config, "activations.members")
    places = tuple(config.family[name].place for name in names)
    counts = [manifest.shapes[place][0] for place in places]
    layers = tuple(_layers(request, name, count) for name, count in zip(names, counts, strict=True))
    return Activations(places, layers, request.site, request.pool)


def _layers(request: ActivationsRequest, name: str, count: int) -> tuple[int, ...]:
    if isinstance(request.layers, str):
        return tuple(range(count))
    for index, layer in enumerate(request.layers):
        if not -count <= layer < count:
            message = f"member {name!r} has no layer {layer}; allowed: 0 to {count - 1}, or {-count} to -1 from the end"
            raise refusal(f"activations.layers.{index}", message)
    return tuple(dict.fromkeys(layer % count for layer in request.layers))


def bytes_of(
    activations: Activations, texts: Sequence[Text], manifest: Manifest, config: ServerConfig
) -> int:
    """The size of the activations of some texts.

    Raises:
        ApiError: It is more than the operator allows for a request.
    """
    counts = [len(text.completion) for text in texts]
    size = _BYTES * sum(activations.count(tokens, manifest.widths) for tokens in counts)
    most = config.server.max_activation_bytes
    if size > most:
        layers, rows = sum(map(len, activations.layers)), sum(map(activations.rows, counts))
        fewer = ", or pool them" if activations.pool == "none" else ""
        message = (
            f"{size} bytes of states (items: {len(texts)}, their rows: {rows}, members: {len(activations.members)}, "
            f"their layers: {layers}) are too many; allowed: up to {most}; ask for fewer items, members or layers at "
            f"a time{fewer}"
        )
        raise refusal("activations", message)
    return size


def shown_activations(
    activations: Activations, found: Mapping[int, Mapping[int, np.ndarray]], names: tuple[str, ...]
) -> dict[str, dict[str, LayerActivations]]:
    """An item's activations in the answer, by member and layer."""
    pooled = activations.pool != "none"
    return {
        names[member]: {str(layer): _layer(rows[0] if pooled else rows) for layer, rows in own.items()}
        for member, own in found.items()
    }


def _layer(values: np.ndarray) -> LayerActivations:
    data = base64.b64encode(values.astype("<f4", copy=False).tobytes())
    return LayerActivations(shape=list(values.shape), data=data.decode())
