"""From a family file to vLLM's options; options that vLLM would refuse are refused here with clear messages."""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from eft_server.behaviour.coefficients import mix
from eft_server.engine.launcher.parsers import parser_options
from eft_server.engine.launcher.version import require_tested_vllm
from eft_server.engine.message import KEY, Manifest, MemberWeights, vector_of
from eft_server.engine.plugin import ARCHITECTURE, register
from eft_server.engine.worker.columns import vector_width
from eft_server.errors import ConfigError, FamilyError
from eft_server.family.checkpoint import read_generation_config
from eft_server.family.family import BASE, Member, Role, Source
from eft_server.family.file import NEUTRAL, ServerConfig
from eft_server.family.templates import MemberTemplate, member_templates

if TYPE_CHECKING:
    from vllm.config import ModelConfig

    from eft_server.family.inspection import FamilyReport

_SCHEDULER = "eft_server.engine.core.scheduler.make_scheduler"
_CPU_WORKER = "eft_server.engine.worker.v1.runner.EftCPUWorker"
_GPU_WORKER = "eft_server.engine.worker.v1.runner.EftGPUWorker"
_CPU_EXECUTOR = "eft_server.engine.core.cpu_executor.CPUExecutor"

_MIB = 1 << 20
_FEW_CORES = 4
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""The fields used from a generation_config.json. vLLM would turn max_new_tokens into a limit on requests."""

_CPU_CONTEXTS = 32
"""Requests of full length that the KV cache holds on a CPU, unless the operator sets its size."""


@dataclass(frozen=True)
class EnginePlan:
    """The arguments and the environment for vLLM.

    Attributes:
        options: arguments of `vllm.AsyncEngineArgs`.
        environment: variables for the engine's processes, unless the operator has set them.
        end_ids: the tokens that end a text, those of every member. vLLM reads only the base's, but a fine-tuned
            expert may end its turns with a token that its base never uses.
        templates: each member's chat template.
        own_tokenizers: the members that have to use their own tokenizer, because it has other tokens.
    """

    options: Mapping[str, Any]
    environment: Mapping[str, str]
    end_ids: tuple[int, ...] = ()
    templates: Mapping[str, MemberTemplate] = field(default_factory=dict)
    own_tokenizers: frozenset[str] = frozenset()

    @property
    def chat_template(self) -> str | None:
        """The first template that is not plain text, if possible the base's: it defines tool calls and reasoning."""
        written = [template.text for template in self.templates.values() if not template.plain]
        plain = [template.text for template in self.templates.values()]
        return next(iter([*written, *plain]), None)


def plan(config: ServerConfig, report: "FamilyReport", extra_args: Sequence[str] = ()) -> EnginePlan:
    """Decide how the engine is started.

    Args:
        config: the family file.
        report: the report on its checkpoints.
        extra_args: command-line options of `vllm serve`, which override the file's.

    Raises:
        ConfigError: an option does not exist, has a wrong value or cannot work with a family; or the installed vLLM is
            not the version with which this package is tested.
        FamilyError: vLLM cannot run a member inside the composite.
    """
    require_tested_vllm()
    register()
    _refuse_runner()
    config = with_options(config, parse_vllm_args(extra_args))
    models = {member.name: _model_config(config, member) for member in config.family if not member.adapter}
    for name, model in models.items():
        _refuse_unsupported(name, model)
    for member in config.family.adapters:
        models[member.name] = _model_of_adapter(member, models)
    options = _device_options(config, report)
    _refuse_schemes(models, {**options, **config.vllm}.get("dtype", "auto"))
    options |= {"max_model_len": _context(config, models), "max_logprobs": config.server.max_logprobs}
    options |= {"use_tqdm_on_load": False} | _window_options(models)
    options |= _sampling_options(config)
    options |= dict(config.vllm) | _family_options(config, report, models)
    options |= _executor(options)
    _refuse_placements(config, options, models)
    report.require_divisible(_size_of(options, "tensor"))
    templates = member_templates(config.family, report.chat_templates)
    _refuse_many_ends(report.end_ids)
    made = EnginePlan(options, {}, report.end_ids, templates, report.own_tokenizers)
    options |= parser_options(config, made.chat_template)
    return replace(made, environment=_environment(options))


def _refuse_runner() -> None:
    from vllm import envs

    if envs.VLLM_USE_V2_MODEL_RUNNER is False and not _on_cpu():
        raise ConfigError("VLLM_USE_V2_MODEL_RUNNER=0: GPUs need vLLM's Model Runner V2; unset it")


def parse_vllm_args(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse `vllm serve` options, such as `--max-model-len 2048`; only the given ones are returned.

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
    raise ConfigError(f"vLLM option: {message} (arguments after -- go to vLLM; see `vllm serve --help`)")


def with_options(config: ServerConfig, options: Mapping[str, Any]) -> ServerConfig:
    """The family with arguments of vLLM in place of those of its section `vllm`.

    Raises:
        ConfigError: One of them cannot be set for a family.
    """
    if not options:
        return config
    try:
        return ServerConfig.model_validate(
            {**config.model_dump(exclude_unset=True), "vllm": {**config.vllm, **options}}
        )
    except ValidationError as error:
        raise ConfigError("; ".join(problem["msg"] for problem in error.errors())) from None


def _model_config(config: ServerConfig, member: Member) -> "ModelConfig":
    from vllm.config import ModelConfig

    source = member.checkpoint
    shared = {key: config.vllm[key] for key in ("dtype", "hf_token") if key in config.vllm}
    try:
        return ModelConfig(
            model=source.model, revision=source.revision, tokenizer_revision=source.revision, **shared
        )
    except (ValueError, OSError) as error:
        raise FamilyError(
            f"member {member.name!r} ({source.model}): vLLM cannot run this checkpoint: {error}"
        ) from error


def _refuse_many_ends(end_ids: Sequence[int]) -> None:
    from eft_server.engine.bounds import END_IDS

    if len(end_ids) > END_IDS:
        raise FamilyError(
            f"the members together have {len(end_ids)} tokens that end texts; allowed: up to {END_IDS}"
        )


_REFUSALS: tuple[tuple[Callable[["ModelConfig"], bool], str], ...] = (
    (lambda model: model.runner_type != "generate", "it does not generate text"),
    (lambda model: model.is_encoder_decoder, "encoder-decoder models cannot share a prompt with a decoder"),
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
        lambda model: model.rswa_window is not None,
        "sliding windows that keep the prompt visible are not supported",
    ),
)


def _refuse_unsupported(name: str, model: "ModelConfig") -> None:
    for applies, reason in _REFUSALS:
        if applies(model):
            raise FamilyError(f"member {name!r} ({model.model}, {model.architectures[0]}): {reason}")


def _refuse_placements(
    config: ServerConfig, options: Mapping[str, Any], models: Mapping[str, "ModelConfig"]
) -> None:
    mixtures = {name for name, model in models.items() if model.is_moe}
    sharded = [name for name in sorted(mixtures) if config.family[name].sharded]
    if sharded and BASE not in mixtures:
        raise ConfigError(
            f"{sharded[0]!r} is a mixture of experts, which can be sharded only if the base is one: leave out its "
            "tensor_parallel to replicate it on every GPU"
        )
    if _size_of(options, "data") > 1 and mixtures:
        raise ConfigError(
            f"data_parallel_size must be 1 if a member is a mixture of experts ({', '.join(sorted(mixtures))}): "
            "vLLM's replicas would wait for each other in steps that only some of them run; run several servers instead"
        )
    if options.get("distributed_executor_backend") == "ray" and not _schedulable_by_ray():
        raise ConfigError(
            "distributed_executor_backend 'ray' needs GPUs: vLLM's Ray executor does not support CPUs; leave it out"
        )


def _refuse_schemes(models: Mapping[str, "ModelConfig"], dtype: str) -> None:
    """All members run in one dtype: that of the options, or else the base's."""
    from vllm.config.model import _STR_DTYPE_TO_TORCH_DTYPE

    from eft_server.engine.worker.quantisation import refuse_scheme

    torch_dtype = _STR_DTYPE_TO_TORCH_DTYPE.get(str(dtype).removeprefix("torch."), models[BASE].dtype)
    for name, model in models.items():
        try:
            refuse_scheme(model, torch_dtype)
        except ValueError as error:
            raise FamilyError(f"member {name!r} ({model.model}): {error}") from error


def _model_of_adapter(member: Member, models: Mapping[str, "ModelConfig"]) -> "ModelConfig":
    """The reference's config, after a check that the adapter can run on it."""
    from eft_server.engine.worker.adapters import check_adapter

    model = models[str(member.reference)]
    if model.use_mla:
        raise FamilyError(
            f"member {member.name!r}: its reference {member.reference!r} ({model.architectures[0]}) has multi-head "
            "latent attention, which adapters do not support: merge the adapter into a checkpoint"
        )
    try:
        check_adapter(_loaded(member))
    except (OSError, ValueError) as error:
        raise FamilyError(f"member {member.name!r} (adapter {member.source.model}): {error}") from error
    return model


def _loaded(member: Member) -> MemberWeights:
    source = member.source
    on = member.reference if member.adapter else None
    return MemberWeights(member.name, source.model, source.revision, member.sharded, on)


def _sampling_options(config: ServerConfig) -> dict[str, Any]:
    """The default sampling of requests. By default vLLM silently uses the base's file."""
    if config.defaults.sampling == NEUTRAL:
        return {"generation_config": "vllm"}
    named = config.family[config.defaults.sampling]
    return {
        "generation_config": "vllm",
        "override_generation_config": _stated_sampling(named),
    }


def _stated_sampling(member: Member) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMError

    try:
        stated = read_generation_config(member.checkpoint).to_diff_dict()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"defaults.sampling: member {member.name!r} ({member.checkpoint.model}) has no generation_config.json "
            f"that can be read; use neutral: {error}"
        ) from error
    found = {key: stated[key] for key in _SAMPLING if stated.get(key) is not None}
    try:
        SamplingParams(**found)
    except (TypeError, ValueError, VLLMError) as error:
        raise FamilyError(
            f"generation_config.json of member {member.name!r} ({member.checkpoint.model}): {error}"
        ) from error
    return found


def _window_options(models: Mapping[str, "ModelConfig"]) -> dict[str, Any]:
    """Keep sliding and full layers in one group of blocks, with the layers of all members."""
    windows = [model.get_sliding_window() for model in models.values()]
    return {"disable_hybrid_kv_cache_manager": True} if any(windows) else {}


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
        members=tuple(_loaded(member) for member in config.family if member.role is not Role.BASE),
        unshared=tuple(_complement(report.vocabulary.shared, report.vocabulary.size)),
        defaults=_default_vector(config),
        rows=tuple(member.vocab_size for member in report.members),
        shapes=tuple(_shape(models[member.name]) for member in config.family),
        activation_bytes=config.server.max_activation_bytes if config.server.activations else 0,
        draft=_drafting_member(config),
    )
    options = {
        "model": config.base.model,
        "revision": config.base.revision,
        "tokenizer_revision": config.base.revision,
        "served_model_name": config.name,
        "trust_remote_code": False,
        # Members' logits are float32 (`engine/worker/heads.py`); this dtype is for the logits of vLLM's draft.
        "hf_overrides": {
            "architectures": [ARCHITECTURE],
            "head_dtype": "float32",
            KEY: manifest.to_hf(),
            **_mixture(models),
        },
        "scheduler_cls": _SCHEDULER,
        "worker_cls": _CPU_WORKER if _on_cpu() else _GPU_WORKER,
    }
    return options | _speculation(config)


def _shape(model: "ModelConfig") -> tuple[int, int]:
    """The number of decoder layers and the hidden size of a member."""
    return model.get_total_num_hidden_layers(), model.get_hidden_size()


def _default_vector(config: ServerConfig) -> tuple[float, ...]:
    own = config.defaults
    numbers = mix(config, own.weights, own.scale, own.amplify, own.filter).numbers
    return vector_of({KEY: numbers}, vector_width(len(config.family)))


def _mixture(models: Mapping[str, "ModelConfig"]) -> dict[str, Any]:
    """Announce mixtures of experts among members other than the base, since vLLM reads only the base's config.

    Of the keys that vLLM checks, none of its dense architectures reads this one.
    """
    experts = max(model.get_num_experts() for model in models.values())
    return {"moe_num_experts": experts} if experts and not models[BASE].is_moe else {}


def _complement(shared: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    previous = 0
    for start, stop in shared:
        if previous < start:
            yield previous, start
        previous = stop
    if previous < size:
        yield previous, size


def _drafting_member(config: ServerConfig) -> str | None:
    speculative = config.speculative
    return speculative.draft if speculative and speculative.draft in config.family else None


def _speculation(config: ServerConfig) -> dict[str, Any]:
    speculative = config.speculative
    if speculative is None:
        return {}
    options: dict[str, Any] = {"num_speculative_tokens": speculative.tokens}
    if speculative.method == "ngram":
        shortest, longest = speculative.lookup
        options |= {"method": "ngram", "prompt_lookup_min": shortest, "prompt_lookup_max": longest}
    else:
        # A member is not loaded again (`drafting`): vLLM gets the base's name, whose sizes pass its checks.
        named = config.family.base.checkpoint if _drafting_member(config) else Source(str(speculative.draft))
        options |= {"method": "draft_model", "model": named.model}
        options |= {"revision": named.revision} if named.revision else {}
    return {"speculative_config": options, "per_request_spec_decode_metrics": "summary"}


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _executor(options: Mapping[str, Any]) -> dict[str, Any]:
    """One rank on a CPU runs in the engine core's process; vLLM would start a worker for it."""
    from vllm import envs

    if not _on_cpu() or _size_of(options, "tensor") > 1 or options.get("numa_bind"):
        return {}
    if (
        not envs.VLLM_ENABLE_V1_MULTIPROCESSING
    ):  # The core is part of this process, whose threads are its own.
        return {}
    if options.get("distributed_executor_backend") not in (None, "uni"):
        return {}
    return {"distributed_executor_backend": _CPU_EXECUTOR}


def _schedulable_by_ray() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.ray_device_key)


def _device_options(config: ServerConfig, report: "FamilyReport") -> dict[str, Any]:
    if not _on_cpu():  # Set explicitly: vLLM's "auto" makes a float32 checkpoint a 16-bit model.
        return {"dtype": report.members[0].dtype}
    import torch

    fast_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    options: dict[str, Any] = {"enforce_eager": True} | ({} if fast_bfloat16 else {"dtype": "float32"})
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        options["kv_cache_memory_bytes"] = _cpu_kv_bytes(config, report)
    return options


def _cpu_kv_bytes(config: ServerConfig, report: "FamilyReport") -> int:
    """KV cache per rank: room for some requests of full length, but on all ranks at most a quarter of the memory."""
    import psutil

    context = config.vllm.get("max_model_len") or min(item.max_position_embeddings for item in report.members)
    gpus = _size_of(config.vllm, "tensor")
    token_bytes = sum(item.kv_bytes_per_token * item.kv_share(gpus) for item in report.loaded)
    # Twice: reports use the checkpoint's dtype, and a float32 cache may be twice as wide.
    wanted = int(2 * _CPU_CONTEXTS * int(context) * token_bytes)
    return max(256 * _MIB, min(wanted, psutil.virtual_memory().total // 4 // _local_ranks(config.vllm)))


def _environment(options: Mapping[str, Any]) -> dict[str, str]:
    variables = {"VLLM_COMPUTE_NANS_IN_LOGITS": "1"}
    if options.get("numa_bind"):  # For this, vLLM runs another program in place of the interpreter.
        variables["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    threads = thread_binding(sorted(os.sched_getaffinity(0)), _local_ranks(options)) if _on_cpu() else None
    return variables | ({"VLLM_CPU_OMP_THREADS_BIND": threads} if threads else {})


def thread_binding(cores: Sequence[int], ranks: int) -> str | None:
    """The cores for each rank, in vLLM's format; None where vLLM's choice is right."""
    from vllm.utils.cpu_resource_utils import get_visible_memory_node

    if ranks == 1:
        # vLLM reserves a core for its scheduler, which is idle while the model computes: half of a small machine.
        return ",".join(map(str, cores)) if len(cores) <= _FEW_CORES else None
    if len(get_visible_memory_node()) >= ranks:
        return None
    # vLLM gives each rank a separate memory node, and fails if there are too few.
    return "|".join(",".join(map(str, _share(cores, rank, ranks))) for rank in range(ranks))


def _share(cores: Sequence[int], rank: int, ranks: int) -> Sequence[int]:
    if len(cores) < ranks:
        return [cores[rank % len(cores)]]
    return cores[rank * len(cores) // ranks : (rank + 1) * len(cores) // ranks]


def _local_ranks(options: Mapping[str, Any]) -> int:
    """Number of ranks on this machine."""
    return _size_of(options, "data") * _size_of(options, "tensor")


def _size_of(options: Mapping[str, Any], kind: str) -> int:
    return int(options.get(f"{kind}_parallel_size") or 1)
