"""Any vLLM process that is given a family starts its engine as `eft serve` would, whatever options it is given.

vLLM's own start knows neither the members nor what they need. `install` puts `plan` before it: the engine's arguments
become the plan's, and those that the host was given either count as in a family file's section `vllm` or are refused.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eft_server.engine.patches import overwrite
from eft_server.engine.plugin import ARCHITECTURE
from eft_server.errors import ConfigError, shown
from eft_server.family.file import ServerConfig
from eft_server.family.load import load_config
from eft_server.family.vllm_options import REFUSED, problem_with
from eft_server.hosts.travelling import FAMILY, family_in, overrides_of, renamed

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs

__all__ = ["PACKED", "adopt", "agree", "family_of", "install"]

PACKED = "family.yaml"
"""The family file's name inside a packed directory."""

_PLANNED = "_eft_planned"
_NAMES = "served_model_name"
_WHERE = frozenset({"model", _NAMES})
"""What a host says in its own way: which model, and its names."""


def install() -> None:
    """Put our plan before vLLM's start of an engine, in every class of engine arguments; safe to call twice."""
    from vllm.engine.arg_utils import EngineArgs

    before = EngineArgs.create_engine_config
    if getattr(before, _PLANNED, False):
        return

    def create_engine_config(self: "EngineArgs", usage_context: Any = None, headless: bool = False) -> Any:
        adopt(self, usage_context, headless=headless)
        return before(self, usage_context, headless)

    setattr(create_engine_config, _PLANNED, True)
    overwrite(EngineArgs, "create_engine_config", create_engine_config)


def family_of(args: Any) -> ServerConfig | None:
    """The family that a host's arguments name, None if they name an ordinary model.

    Args:
        args: vLLM's engine arguments, or its command line's namespace.

    Raises:
        ConfigError: The family is wrong.
    """
    overrides = args.hf_overrides
    if isinstance(overrides, Mapping) and FAMILY in overrides:
        return family_in(overrides[FAMILY])
    file = Path(args.model) / PACKED
    if not file.is_file() or not _is_packed(file.parent / "config.json"):
        return None
    return load_config(str(file))


def agree(value: Any, wanted: Any) -> bool:
    """Whether two values of an argument mean the same: vLLM's command line makes objects of some JSON objects."""
    if isinstance(wanted, Mapping) and not isinstance(value, Mapping) and value is not None:
        return bool(value == type(value)(**wanted))
    return bool(value == wanted)


def adopt(args: "EngineArgs", usage_context: Any = None, *, headless: bool = False) -> None:
    """Change engine arguments that name a family into those of its plan, and set the plan's environment.

    Raises:
        ConfigError: An option cannot be set for a family, or the host would serve it without our routes.
        FamilyError: The members do not form a family.
    """
    if getattr(args, _PLANNED, False):
        return
    config = family_of(args)
    if config is None:
        return
    _require_our_routes(usage_context, headless)
    given = _given(args)
    config = renamed(config, _names(args))
    from eft_server.engine.launcher.plan import plan, with_options
    from eft_server.family.inspection import inspect_family

    report = inspect_family(config)
    passed = {name: value for name, value in given.items() if name not in {*REFUSED, *_WHERE}}
    planned = plan(with_options(config, passed), report)
    overrides = overrides_of(config, planned.options["hf_overrides"])
    options = {**planned.options, "hf_overrides": overrides}
    fresh = _in_vllms_types(type(args)(**options))
    _require_agreement(args, fresh, given)
    vars(args).update(vars(fresh) | {_PLANNED: True})
    for name, value in planned.environment.items():
        os.environ.setdefault(name, value)


def _in_vllms_types(args: "EngineArgs") -> "EngineArgs":
    """Make objects of sections that vLLM leaves as JSON objects: its frontends read their attributes."""
    usual = type(args)(model=args.model)
    for field in fields(args):
        value, default = getattr(args, field.name), getattr(usual, field.name)
        if isinstance(value, Mapping) and is_dataclass(default) and not isinstance(default, type):
            setattr(args, field.name, type(default)(**value))
    return args


def _is_packed(path: Path) -> bool:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("architectures") == [ARCHITECTURE]


def _require_our_routes(usage_context: Any, headless: bool) -> None:
    from vllm import envs
    from vllm.usage.usage_lib import UsageContext

    if headless:
        raise ConfigError("--headless: a family runs on one machine; leave it out")
    if usage_context == UsageContext.OPENAI_BATCH_RUNNER:
        raise ConfigError("vllm run-batch cannot give requests their weights: use eft generate")
    if usage_context != UsageContext.OPENAI_API_SERVER:
        return
    if "eft" not in (envs.VLLM_PLUGINS or ()):
        raise ConfigError(
            "set VLLM_PLUGINS=eft: without it vLLM's own routes answer, which know of no weights"
        )
    if envs.VLLM_USE_RUST_FRONTEND:
        raise ConfigError("VLLM_USE_RUST_FRONTEND=1: vLLM's Rust frontend has no plugins; unset it")


def _given(args: "EngineArgs") -> dict[str, Any]:
    """The arguments that differ from vLLM's defaults, which its command line has in other forms."""
    from vllm import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    left_out = vars(parser.parse_args([]))
    usual = type(args)(model=args.model)
    pairs = {field.name: getattr(args, field.name) for field in fields(args)}
    return {
        name: value
        for name, value in pairs.items()
        if value not in (None, getattr(usual, name), left_out.get(name))
    }


def _names(args: Any) -> list[str]:
    names = args.served_model_name
    return [names] if isinstance(names, str) else list(names or ())


def _require_agreement(args: Any, fresh: Any, given: Mapping[str, Any]) -> None:
    """Refuse what cannot be set for a family, unless it is what the plan has anyway, as in `eft vllm-args`' line."""
    for name in given:
        if name not in REFUSED or name in _WHERE:
            continue
        wanted = getattr(fresh, name)
        value = getattr(args, name)
        if name == "hf_overrides":
            wanted, value = ({k: v for k, v in each.items() if k != FAMILY} for each in (wanted, value))
            if value in ({}, wanted):
                continue
        if not agree(value, wanted):
            raise ConfigError(f"{problem_with(name, value)} (given: {shown(value)})")
