"""What could not be served is refused before the first step, by the checks of the server itself."""

import json
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eft_client.text import shortened
from eft_server.errors import EftError
from eft_server.family.adapter import WEIGHTS
from eft_server.family.family import Source
from eft_server.family.load import load_config
from eft_train.errors import TrainingError
from eft_train.plan import Plan
from eft_train.recipe import Lora
from eft_train.results import families

__all__ = ["Servable", "require_servable"]


@dataclass(frozen=True)
class Servable:
    """What is known of an expert that could be served.

    Attributes:
        warnings: What the server would warn of.
        adapter_bytes: The size of its adapter; 0 where all weights are learnt.
    """

    warnings: tuple[str, ...]
    adapter_bytes: int


_MOST_SAID = 600
"""vLLM's list of architectures is long."""


def require_servable(plan: Plan, base: Source, larger: Source | None) -> Servable:
    """Check that the server would take what the training makes: its family, with an expert that has learnt nothing.

    This looks at what `eft check` looks at; where there is no engine, at all but what an engine knows.

    Args:
        plan: The plan.
        base: The reference.
        larger: The family's base, if that is another model.

    Raises:
        TrainingError: The server refuses it, or PEFT finds no layer of a target.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = _write(plan, base, larger, Path(scratch))
        try:
            warnings = _checked(str(file), with_engine=plan.verify and find_spec("vllm") is not None)
        except EftError as error:
            said = str(error).replace(str(Path(scratch) / families.EXPERT), "to be trained")
            raise TrainingError(f"the expert could not be served: {shortened(said, _MOST_SAID)}") from error
        adapter = Path(scratch) / families.EXPERT / WEIGHTS
        return Servable(warnings, 0 if plan.full else adapter.stat().st_size)


def _write(plan: Plan, base: Source, larger: Source | None, folder: Path) -> Path:
    """Write the family that the training would leave."""
    members = {"reference": families.member_of(base.model, base.revision, folder)}
    if larger is not None:
        members["base"] = families.member_of(larger.model, larger.revision, folder)
    family = families.expert_family(
        "untrained", members, kind=plan.kind, is_reward_model=plan.recipe.is_reward_model, description=""
    )
    expert = family["experts"][families.EXPERT]
    if plan.full:
        expert |= members["reference"]
    else:
        _write_untrained(plan.recipe.lora, base, folder / families.EXPERT)
    file = folder / "family.yaml"
    file.write_text(json.dumps(family), encoding="utf-8")
    return file


def _checked(file: str, *, with_engine: bool) -> tuple[str, ...]:
    from eft_server.family.inspection import inspect_family

    config = load_config(file)
    report = inspect_family(config)
    if with_engine:
        from eft_server.engine.launcher.plan import plan

        plan(config, report)
    return report.warnings


def _write_untrained(lora: Lora, source: Source, folder: Path) -> None:
    """Write an adapter of zeros, of the form that PEFT gives it on this model."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file

    from eft_train.phases import lora_config

    try:
        model = get_peft_model(_hollow(source), lora_config(lora))
    except ValueError as error:
        targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
        raise TrainingError(f"lora.targets: {targets}: {error}") from error
    folder.mkdir()
    terms = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: torch.zeros(term.shape) for name, term in terms.items()}, folder / WEIGHTS)
    model.peft_config["default"].save_pretrained(folder)


def _hollow(source: Source) -> Any:
    """The model without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source.model, revision=source.revision, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
