"""From a family file to vLLM's options, refusing in words what vLLM would refuse in its own."""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from eft_server.behaviours import Behaviours
from eft_server.config import BASE, ServerConfig
from eft_server.engine.manifest import KEY, Checkpoint, Manifest
from eft_server.engine.parsers import parser_options
from eft_server.engine.plugin import ARCHITECTURE, register
from eft_server.errors import ConfigError, FamilyError

if TYPE_CHECKING:
    from vllm.config import ModelConfig

    from eft_server.family import FamilyReport

_SCHEDULER = "eft_server.engine.scheduler.make_scheduler"
_CPU_WORKER = "eft_server.engine.runner_v1.EftCPUWorker"
_GPU_WORKER = "eft_server.engine.runner_v1.EftGPUWorker"

_MIB = 1 << 20
_FEW_CORES = 4
_CPU_CONTEXTS = 32
"""How many requests of full length the KV cache holds on a CPU, unless the operator sets its size."""


@dataclass(frozen=True)
class EnginePlan:
    """What will be given to vLLM.

    Attributes:
        options: arguments of `vllm.AsyncEngineArgs`.
        environment: variables that the engine's processes need, where the operator has not set them.
        end_ids: the tokens that end a text, those of every member. vLLM reads the base's alone, and a fine-tuned
            expert may end its turns with a token that its base never uses.
        chat_template: the base's own, or the first expert's that has one where the base has none.
    """

    options: Mapping[str, Any]
    environment: Mapping[str, str]
    end_ids: tuple[int, ...] = ()
    chat_template: str | None = None


def plan(config: ServerConfig, report: "FamilyReport", extra_args: Sequence[str] = ()) -> EnginePlan:
    """Decide how the engine is started.

    Args:
        config: the family file.
        report: what its checkpoints were found to be.
        extra_args: command-line options of `vllm serve`, which win over the file's.

    Raises:
        ConfigError: an option that does not exist, has a wrong value or cannot work with a family.
        FamilyError: a member that vLLM cannot run inside the composite.
    """
    register()
    config = _with_options(config, parse_vllm_args(extra_args))
    models = {name: _model_config(config, name) for name in config.members}
    for name, model in models.items():
        _refuse_unsupported(name, model)
    options = _device_options(config, report)
    options |= {"max_model_len": _context(config, models), "max_logprobs": config.server.max_logprobs}
    options |= _window_options(models)
    options |= dict(config.vllm) | _family_options(config, report, models)
    options |= parser_options(config, _chat_template(config, report))
    report.require_divisible(int(options.get("tensor_parallel_size", 1)))
    return EnginePlan(options, _environment(options), report.end_ids, _chat_template(config, report))


def _chat_template(config: ServerConfig, report: "FamilyReport") -> str | None:
    for name in (BASE, *config.experts):
        if name in report.chat_templates:
            return report.chat_templates[name]
    return None


def parse_vllm_args(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `vllm serve` options, such as `--max-model-len 2048`; only those that are given come back.

    Raises:
        ConfigError: vLLM knows no such option, or its value is wrong.
    """
    if not arguments:
        return {}
    from vllm import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    parser.error = _raise_option_error  # type: ignore[method-assign]
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return vars(parser.parse_args(list(arguments)))


def _raise_option_error(message: str) -> Any:
    raise ConfigError(f"vLLM option: {message} (what follows -- goes to vLLM; `vllm serve --help` lists it)")


def _with_options(config: ServerConfig, options: Mapping[str, Any]) -> ServerConfig:
    if not options:
        return config
    try:
        return ServerConfig.model_validate({**config.model_dump(), "vllm": {**config.vllm, **options}})
    except ValidationError as error:
        raise ConfigError("; ".join(problem["msg"] for problem in error.errors())) from None


def _model_config(config: ServerConfig, name: str) -> "ModelConfig":
    from vllm.config import ModelConfig

    member = config.member(name)
    shared = {key: config.vllm[key] for key in ("dtype", "quantization", "hf_token") if key in config.vllm}
    try:
        return ModelConfig(
            model=member.model, revision=member.revision, tokenizer_revision=member.revision, **shared
        )
    except (ValueError, OSError) as error:
        raise FamilyError(
            f"member {name!r} ({member.model}): vLLM cannot run this checkpoint: {error}"
        ) from error


_REFUSALS: tuple[tuple[Callable[["ModelConfig"], bool], str], ...] = (
    (lambda model: model.runner_type != "generate", "it does not generate text"),
    (lambda model: model.is_encoder_decoder, "encoder-decoder models have no prompt to share with a decoder"),
    (
        lambda model: model.is_multimodal_model,
        "multimodal models are not supported: use a text-only checkpoint",
    ),
    (
        lambda model: model.is_attention_free,
        "models without attention keep a state that members cannot share",
    ),
    (lambda model: model.is_hybrid, "hybrid (attention and state-space) models are not supported"),
    (lambda model: model.uses_mrope, "multimodal rotary positions are not supported"),
    (
        lambda model: model.quantization is not None,
        "quantised checkpoints are not supported: use the original",
    ),
)


def _refuse_unsupported(name: str, model: "ModelConfig") -> None:
    for applies, reason in _REFUSALS:
        if applies(model):
            raise FamilyError(f"member {name!r} ({model.model}, {model.architectures[0]}): {reason}")


def _window_options(models: Mapping[str, "ModelConfig"]) -> dict[str, Any]:
    """Keep sliding and full layers in one group of blocks, where every member's layers are."""
    windows = {name: size for name, model in models.items() if (size := model.get_sliding_window())}
    if len(set(windows.values())) > 1:
        sizes = ", ".join(f"{name!r} {size}" for name, size in windows.items())
        raise FamilyError(f"sliding windows must be of one size in a family, in tokens: {sizes}")
    return {"disable_hybrid_kv_cache_manager": True} if windows else {}


def _context(config: ServerConfig, models: Mapping[str, "ModelConfig"]) -> int:
    shortest = min(models, key=lambda name: models[name].max_model_len)
    limit = models[shortest].max_model_len
    asked = config.vllm.get("max_model_len")
    if isinstance(asked, int) and asked > limit:
        raise ConfigError(
            f"max_model_len {asked} is more than member {shortest!r} can read; allowed: up to {limit} tokens"
        )
    return limit


def _family_options(
    config: ServerConfig, report: "FamilyReport", models: Mapping[str, "ModelConfig"]
) -> dict[str, Any]:
    manifest = Manifest(
        architectures=tuple(models[BASE].architectures),
        members=tuple(
            Checkpoint(name, config.member(name).model, config.member(name).revision)
            for name in config.members
            if name != BASE
        ),
        unshared=tuple(_complement(report.vocabulary.shared, report.vocabulary.size)),
        defaults=Behaviours(config).resolve(config.name).coefficients,
    )
    options = {
        "model": config.base.model,
        "revision": config.base.revision,
        "tokenizer_revision": config.base.revision,
        "served_model_name": config.name,
        "trust_remote_code": False,
        "hf_overrides": {"architectures": [ARCHITECTURE], KEY: manifest.to_hf()},
        "scheduler_cls": _SCHEDULER,
        "worker_cls": _CPU_WORKER if _on_cpu() else _GPU_WORKER,
    }
    return options | _speculation(config, models)


def _complement(shared: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    previous = 0
    for start, stop in shared:
        if previous < start:
            yield previous, start
        previous = stop
    if previous < size:
        yield previous, size


def _speculation(config: ServerConfig, models: Mapping[str, "ModelConfig"]) -> dict[str, Any]:
    if config.speculative is None:
        return {}
    draft, tokens = config.speculative.draft, config.speculative.tokens
    revision = None
    if draft in models:
        base_size, draft_size = (models[name].get_vocab_size() for name in (BASE, draft))
        if base_size != draft_size:
            raise ConfigError(
                f"speculative.draft {draft!r} pads its vocabulary to {draft_size} ids, the base to {base_size}: "
                "drafting needs equal sizes; leave the section speculative out for this family"
            )
        draft, revision = config.member(draft).model, config.member(draft).revision
    options = {"method": "draft_model", "model": draft, "num_speculative_tokens": tokens}
    return {"speculative_config": options | ({"revision": revision} if revision else {})}


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _device_options(config: ServerConfig, report: "FamilyReport") -> dict[str, Any]:
    if not _on_cpu():  # Said outright: vLLM's "auto" makes a float32 checkpoint a 16-bit model.
        return {"dtype": report.members[0].dtype}
    import torch

    fast_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    options: dict[str, Any] = {"enforce_eager": True} | ({} if fast_bfloat16 else {"dtype": "float32"})
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        options["kv_cache_memory_bytes"] = _cpu_kv_bytes(config, report)
    return options


def _cpu_kv_bytes(config: ServerConfig, report: "FamilyReport") -> int:
    """Room for some requests of full length, but not more than a quarter of the machine's memory."""
    import psutil

    context = config.vllm.get("max_model_len") or min(item.max_position_embeddings for item in report.members)
    # Twice: reports count the checkpoint's own dtype, and a float32 cache may be twice as wide.
    wanted = 2 * _CPU_CONTEXTS * int(context) * sum(item.kv_bytes_per_token for item in report.members)
    return max(256 * _MIB, min(wanted, psutil.virtual_memory().total // 4))


def _environment(options: Mapping[str, Any]) -> dict[str, str]:
    variables = {"VLLM_COMPUTE_NANS_IN_LOGITS": "1"}
    cores = sorted(os.sched_getaffinity(0))
    parallel = any(int(options.get(f"{kind}_parallel_size", 1)) > 1 for kind in ("tensor", "data"))
    if _on_cpu() and len(cores) <= _FEW_CORES and not parallel:
        # vLLM keeps a core for its scheduler, which is idle while the model computes: half of a small machine.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    return variables
