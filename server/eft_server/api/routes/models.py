"""GET /v1/models: the composite, its aliases, and every single member."""

from typing import Any

from fastapi import APIRouter, Request

from eft_server.api.serving.service import Service, service_of
from eft_server.behaviour.resolve import ServedModel
from eft_server.engine.message import Manifest
from eft_server.family.family import Member, Role

__all__ = ["router"]

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List the models")
async def list_models(raw: Request) -> dict[str, Any]:
    """All models that requests can name, with weights and bounds under ``eft``.

    The family's also has its members, and how many token ids they share.
    """
    service = service_of(raw)
    cards = [_card(model, service) for model in service.behaviours.served_models()]
    return {"object": "list", "data": cards}


@router.get("/v1/models/{model:path}", summary="Describe one model")
async def show_model(model: str, raw: Request) -> dict[str, Any]:
    """One entry of the list; members' names contain a slash, as in ``demo/base``.

    A name with weights, as in ``demo:helpful=0.7``, is described with them, and is in no list.
    """
    service = service_of(raw)
    return _card(service.behaviours.served_model(model), service)


def _card(model: ServedModel, service: Service) -> dict[str, Any]:
    card: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": service.started_s,
        "owned_by": "eft-server",
        "max_model_len": service.engine.model_config.max_model_len,
        "eft": {
            "kind": model.kind,
            "weights": model.weights,
            "scale": model.scale,
            "amplify": model.amplify,
            "filter": model.filter.model_dump() if model.filter else None,
            "bounds": model.bounds,
            "sampling": service.engine.model_config.get_diff_sampling_param(),
            "description": model.description,
        },
    }
    if model.kind == "composite":
        card["eft"]["members"] = {member.name: _member(member) for member in service.config.family}
        card["eft"]["vocabulary"] = _shared_ids(service)
    return card


def _shared_ids(service: Service) -> int:
    """The number of ids that all members share: their distributions, and the composite's, are over these."""
    config = service.engine.model_config
    return config.get_vocab_size() - sum(
        stop - start for start, stop in Manifest.from_hf(config.hf_config).unshared
    )


def _member(member: Member) -> dict[str, Any]:
    reference = member.reference if member.role is Role.EXPERT else None
    return {"kind": member.role.value, "reference": reference, "description": member.description}
