"""What this package relies on of vLLM's by name, where neither types nor a start would tell that it is gone.

Types know of a method that overrides nothing any more, of an import, and of an attribute of an object whose class is
known. They do not know what vLLM looks for on objects of ours, nor texts, nor attributes of objects that are `Any` or
modules of torch's, nor what a class of ours assigns to itself. Those are here, each with the file of ours that would
break. vLLM is read and not imported, so that any version can be held against the table (docs/vllm-upgrade.md).
"""

import ast
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from eft_server.engine.launcher.fork_server import _CONTEXT_USERS, _MODULES, _REGISTRY
from eft_server.engine.launcher.plan import _SAMPLING
from eft_server.engine.launcher.vllm_log import _EXPECTED
from eft_server.family.vllm_options import PASSED, REFUSED
from eft_server.hosts import frontend_options
from eft_server.hosts.frontend_options import ACTING

from .sources import NotThereError, Place, file_of, find, modules_of

SERVER = Path(__file__).parents[2] / "server" / "eft_server"


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    """What was read takes memory that other tests may want."""
    yield
    find.cache_clear()


Check = Callable[[str, str], Collection[str]]
"""From a place in vLLM and what is expected there to what of that is not so: nothing, where all of it is."""


class Row(NamedTuple):
    """One thing that is expected of vLLM."""

    check: Check
    where: str
    name: str


def _has(where: str, name: str) -> Collection[str]:
    """A module has it, or a class: its own or inherited, in the class or assigned to `self`."""
    return {name} - find(where).names


def _asks_for(where: str, name: str) -> Collection[str]:
    """A module, class or function speaks of it: as an attribute, a keyword or a text."""
    return {name} - find(where).spoken_of


def _calls(where: str, name: str) -> Collection[str]:
    """A class has it as a method, and calls it itself."""
    spoken_of = frozenset[str]().union(*(place.spoken_of for place in find(where).lineage))
    return {name} - (find(where).names & spoken_of)


def _takes(where: str, names: str) -> Collection[str]:
    """A function's or a class's first parameters are these, in this order."""
    wanted, first = tuple(names.split(", ")), find(where).positional
    return first if first[: len(wanted)] != wanted else ()


def _accepts(where: str, name: str) -> Collection[str]:
    """A function or a class has a parameter of this name."""
    return {name} - find(where).parameters


def _passes(where: str, names: str) -> Collection[str]:
    """There are calls of the first, and every one has all the others as keywords."""
    called, *wanted = names.split(", ")
    calls = [{keyword.arg for keyword in call.keywords} for call in find(where).calls(called)]
    return {name for name in wanted for keywords in calls if name not in keywords} if calls else {called}


def _logs(where: str, beginning: str) -> Collection[str]:
    """A module has a text that begins so."""
    return () if any(text.startswith(beginning) for text in find(where).spoken_of) else (beginning,)


def _has_only(where: str, names: str) -> Collection[str]:
    """A class's public names are these and no others."""
    return {name for name in find(where).names if not name.startswith("_")} ^ set(names.split(", "))


def _is_made_of(where: str, names: str) -> Collection[str]:
    """A class has these fields and no others: one of ours is made with a new field's default, whatever vLLM's has."""
    return set(find(where).positional) ^ set(names.split(", "))


def _reads_only(where: str, names: str) -> Collection[str]:
    """Of the first, a class reads attributes, and none but the others."""
    target, *known = names.split(", ")
    read = (node for place in find(where).lineage for node in ast.walk(place.node))
    attributes = {
        node.attr for node in read if isinstance(node, ast.Attribute) and _named(node.value) == target
    }
    return attributes - set(known) if attributes else {target}


def _named(node: ast.expr) -> str | None:
    return getattr(node, "attr", None) or getattr(node, "id", None)


def _is_left_to(where: str, names: str) -> Collection[str]:
    """The first is named in a package in the other modules, in each of them and nowhere else."""
    name, *modules = names.split(", ")
    naming = {module for module, file in modules_of(where) if name in file.read_text(encoding="utf-8")}
    return naming ^ set(modules)


def _holds(where: str, name: str) -> Collection[str]:
    """A package has this file."""
    package = file_of(where)
    return () if package is not None and (package.parent / name).is_file() else (name,)


def _is_a_module(where: str, name: str) -> Collection[str]:
    """A package has this module."""
    return (name,) if file_of(f"{where}.{name}") is None else ()


def rows(check: Check) -> Callable[..., list[Row]]:
    """A short way to write several of one kind."""
    return lambda where, *names: [Row(check, where, name) for name in names]


has, asks_for, calls, takes, accepts = map(rows, (_has, _asks_for, _calls, _takes, _accepts))
passes, logs, has_only, holds, is_a_module = map(rows, (_passes, _logs, _has_only, _holds, _is_a_module))
reads_only, is_left_to, is_made_of = map(rows, (_reads_only, _is_left_to, _is_made_of))

_OPENAI = "vllm.entrypoints.openai"
CHAT = f"{_OPENAI}.chat_completion.serving.OpenAIServingChat"
CHAT_REQUEST = f"{_OPENAI}.chat_completion.protocol.ChatCompletionRequest"
COMPLETION = f"{_OPENAI}.completion.serving.OpenAIServingCompletion"
COMPLETION_REQUEST = f"{_OPENAI}.completion.protocol.CompletionRequest"
RESPONSES = f"{_OPENAI}.responses.serving.OpenAIServingResponses"
RESPONSES_REQUEST = f"{_OPENAI}.responses.protocol.ResponsesRequest"
TOKENIZATION = "vllm.entrypoints.serve.tokenize.serving"
PROTOCOL = "vllm.entrypoints.serve.engine.protocol"
GENERATED = "vllm.entrypoints.generate.base.protocol"
RENDERER = "vllm.renderers.online_renderer"
OUTPUT, CHOICE = "vllm.outputs.RequestOutput", "vllm.outputs.CompletionOutput"
STARTS = "vllm.engine.arg_utils"
ARGUMENTS = f"{STARTS}.AsyncEngineArgs"
ENDPOINTS = "vllm.plugins.endpoint_plugins.interface"
MODEL_CONFIG = "vllm.config.model.ModelConfig"
RUNNER_V1 = "vllm.v1.worker.gpu_model_runner.GPUModelRunner"
RUNNER_V2 = "vllm.v1.worker.gpu.model_runner.GPUModelRunner"
WORKER = "vllm.v1.worker.gpu_worker.Worker"
GRAPHS = "vllm.v1.worker.gpu.cudagraph_utils"
GROUP = "vllm.v1.worker.utils.AttentionGroup"
BACKENDS = "vllm.v1.attention.backends"
PROPOSER = "vllm.v1.spec_decode.llm_base_proposer.SpecDecodeBaseProposer"
SPECULATOR = "vllm.v1.worker.gpu.spec_decode.speculator.DraftModelSpeculator"
SCHEDULER = "vllm.v1.core.sched.scheduler.Scheduler"
BLOCKS = "vllm.v1.core.block_pool"
HASHES = "vllm.v1.core.kv_cache_utils"
STRUCTURED = "vllm.v1.structured_output.StructuredOutputManager"
XGRAMMAR = "vllm.v1.structured_output.backend_xgrammar.XgrammarBackend"
LAYERS = "vllm.model_executor.layers"
QUEUES = "vllm.distributed.device_communicators.shm_broadcast"
MULTIPROC = "vllm.v1.executor.multiproc_executor"

ATTENTION = is_made_of(
    "vllm.v1.attention.backend.CommonAttentionMetadata",
    # Given.
    "query_start_loc, query_start_loc_cpu, seq_lens, seq_lens_cpu_upper_bound, num_reqs, num_actual_tokens, "
    "max_query_len, max_seq_len, block_table_tensor, slot_mapping, positions, is_prefilling, "
    # Left out: of no use to decoders of text whose KV cache is in one place.
    "causal, logits_indices_padded, num_logits_indices, max_logits_per_req, encoder_seq_lens, "
    "encoder_seq_lens_cpu, dcp_local_seq_lens, dcp_local_seq_lens_cpu_upper_bound, req_idx, mm_req_doc_ranges, "
    "rswa_prefix_lens, replayssm_decode_base_cpu, _num_computed_tokens_cache, _token_to_req_indices_cache",
)

TABLE: dict[str, list[Row]] = {
    # How a stream's event with an error begins.
    "api/serving/stream.py": takes(f"{PROTOCOL}.ErrorResponse", "error"),
    # Here, in `echoes` and in `handlers` are mixins, of which types do not know what they override.
    "api/serving/cut_calls.py": [
        *calls(CHAT, "chat_completion_full_generator", "chat_completion_stream_generator"),
        *takes(f"{CHAT}.chat_completion_full_generator", "request, result_generator"),
        *takes(f"{CHAT}.chat_completion_stream_generator", "request, result_generator"),
        *has(CHAT, "parser_cls", "renderer"),
        *calls(RESPONSES, "_make_response_output_items"),
        *takes(f"{RESPONSES}._make_response_output_items", "request, final_output"),
        *has(RESPONSES, "parser", "renderer"),
        *has("vllm.parser.abstract_parser.DelegatingParser", "tool_parser_cls"),
        *has(CHAT_REQUEST, "echo", "stop", "tools", "tool_choice", "parallel_tool_calls"),
        *has(RESPONSES_REQUEST, "tools", "tool_choice", "parallel_tool_calls"),
        *has(
            f"{_OPENAI}.chat_completion.protocol.ChatCompletionResponseChoice",
            *("index", "message", "finish_reason"),
        ),
        *has(f"{_OPENAI}.chat_completion.protocol.ChatMessage", "content", "tool_calls"),
        # Keys of a stream's events.
        *has(
            f"{_OPENAI}.chat_completion.protocol.ChatCompletionResponseStreamChoice",
            *("index", "delta", "finish_reason"),
        ),
        *has(f"{GENERATED}.DeltaMessage", "tool_calls"),
        *has(f"{GENERATED}.DeltaToolCall", "index", "function"),
        *has(f"{GENERATED}.DeltaFunctionCall", "arguments"),
        *has(OUTPUT, "outputs"),
        *has(CHOICE, "index", "finish_reason", "stop_reason"),
    ],
    "api/serving/metrics.py": [
        *has(CHOICE, "spec_decode_metrics", "routed_experts"),
        *has("vllm.v1.metrics.stats.RequestSpecDecodeMetrics", "num_draft_tokens", "histogram"),
    ],
    "api/serving/echoes.py": [
        *calls(COMPLETION, "request_output_to_completion_response", "completion_stream_generator"),
        *takes(f"{COMPLETION}.request_output_to_completion_response", "final_res_batch, request"),
        *takes(f"{COMPLETION}.completion_stream_generator", "request, engine_inputs, result_generator"),
        *has(COMPLETION, "_extract_prompt_text", "renderer"),
        *has(OUTPUT, "prompt", "prompt_token_ids", "outputs"),
        # Keys of a stream's events.
        *has(f"{_OPENAI}.completion.protocol.CompletionStreamResponse", "choices", "usage"),
        *has(
            f"{_OPENAI}.completion.protocol.CompletionResponseStreamChoice",
            *("index", "text", "prompt_token_ids", "token_ids", "finish_reason", "stop_reason"),
        ),
        *has(f"{PROTOCOL}.UsageInfo", "prompt_tokens", "completion_tokens", "total_tokens"),
    ],
    # What vLLM calls a prompt that is too long.
    "api/edge/errors.py": asks_for("vllm.renderers.params", "input_text", "input_tokens"),
    "api/serving/guarded_engine.py": [
        *takes("vllm.v1.engine.async_llm.AsyncLLM.generate", "prompt, sampling_params, request_id"),
        *has("vllm.inputs.engine.TokensInput", "prompt_token_ids", "cache_salt"),
        *has("vllm.sampling_params.SamplingParams", "extra_args"),
        *has("vllm.exceptions.GenerationError", "status_code"),
        *asks_for("vllm.entrypoints.serve.exception_handling.error_response", "status_code"),
        # Whatever else a handler asks the engine for goes by what is bounded, counted and checked here.
        *(
            row
            for handler in (CHAT, COMPLETION, RESPONSES)
            for row in reads_only(
                handler,
                "engine_client, generate, check_admission, errored, dead_error, input_processor, model_config, "
                "notify_kv_transfer_request_rejected, renderer, vllm_config",
            )
        ),
    ],
    "api/serving/handlers.py": [
        *(row for handler in (CHAT, COMPLETION, RESPONSES) for row in calls(handler, "_raise_if_error")),
        *(row for handler in (CHAT, COMPLETION, RESPONSES) for row in calls(handler, "_extract_prompt_len")),
        *takes(f"{CHAT}._raise_if_error", "finish_reason, request_id"),
        *takes(f"{CHAT}._extract_prompt_len", "prompt"),
        *has(CHAT, "model_config"),
        *asks_for("vllm.v1.engine", "error"),
        # What is handed on as a dictionary.
        *takes(CHAT, "engine_client, models"),
        *accepts(CHAT, "response_role", "online_renderer", "request_logger", "chat_template"),
        *accepts(CHAT, "chat_template_content_format", "tool_parser", "enable_auto_tools"),
        *accepts(CHAT, "reasoning_parser"),
        *takes(COMPLETION, "engine_client, models"),
        *accepts(COMPLETION, "online_renderer", "request_logger"),
        *takes(RESPONSES, "engine_client, models"),
        *accepts(RESPONSES, "online_renderer", "request_logger", "chat_template"),
        *accepts(RESPONSES, "chat_template_content_format", "tool_parser", "enable_auto_tools"),
        *accepts(RESPONSES, "reasoning_parser"),
        *takes(f"{TOKENIZATION}.ServingTokenization", "models, online_renderer"),
        *accepts(f"{TOKENIZATION}.ServingTokenization", "chat_template", "chat_template_content_format"),
        *takes(f"{RENDERER}.OnlineRenderer", "model_config, renderer"),
        *accepts(f"{RENDERER}.OnlineRenderer", "request_logger", "chat_template", "tool_parser"),
        *accepts(f"{RENDERER}.OnlineRenderer", "chat_template_content_format", "enable_auto_tools"),
        *accepts(f"{RENDERER}.OnlineRenderer", "reasoning_parser"),
        *has("vllm.v1.engine.input_processor.InputProcessor", "generation_config_fields"),
    ],
    "api/requests/openapi.py": holds(
        "vllm.entrypoints.serve.instrumentator", "static/swagger-ui-bundle.js", "static/swagger-ui.css"
    ),
    "api/requests/grammar_trial.py": [
        *has(CHAT_REQUEST, "structured_outputs", "response_format"),
        *has(COMPLETION_REQUEST, "structured_outputs", "response_format"),
        *has(RESPONSES_REQUEST, "structured_outputs", "text"),
    ],
    "api/serving/pulse.py": [
        *calls("vllm.v1.engine.core", "set_process_title"),
        *calls("vllm.v1.executor.multiproc_executor", "set_process_title"),
        *asks_for("vllm.utils.system_utils.set_process_title", "::"),
        *has("vllm.v1.worker.worker_base.WorkerBase", "check_health"),
        *accepts("vllm.v1.engine.async_llm.AsyncLLM.collective_rpc", "method"),
    ],
    "api/serving/renderer.py": [
        # Taken out of the keywords: were they given by position, a template would see no tools.
        *passes(RENDERER, "preprocess_chat, tool_dicts"),
        *passes(TOKENIZATION, "preprocess_chat, tool_dicts"),
        *takes(f"{RENDERER}.OnlineRenderer.preprocess_chat", "request, messages"),
        *takes(f"{RENDERER}.OnlineRenderer.preprocess_completion", "request, prompt_input"),
        *(
            row
            for request in (CHAT_REQUEST, RESPONSES_REQUEST)
            for row in takes(
                f"{request}.build_chat_params", "default_template, default_template_content_format"
            )
        ),
        *has("vllm.renderers.params.ChatParams", "chat_template_kwargs"),
        *takes("vllm.renderers.params.ChatParams.with_defaults", "default_chat_template_kwargs"),
        # What is left out of them.
        *asks_for("vllm.renderers.params", "chat_template", "return_dict"),
        *passes(f"{RENDERER}.OnlineRenderer.preprocess_chat", "dict, tools, tokenize"),
        *has(CHAT_REQUEST, "echo", "prompt_logprobs", "return_prompt_text"),
        *has(COMPLETION_REQUEST, "echo", "prompt_logprobs"),
        *has("vllm.inputs.engine.TokensInput", "prompt_token_ids", "cache_salt"),
    ],
    "api/routes/responses.py": [
        *has(f"{_OPENAI}.responses.protocol.ResponsesResponse", "status", "output"),
        *asks_for(f"{PROTOCOL}.OpenAIBaseModel", "allow"),
    ],
    # Fields that ours take the place of.
    "api/requests/schemas.py": [
        *(
            row
            for request in (CHAT_REQUEST, COMPLETION_REQUEST, RESPONSES_REQUEST)
            for row in has(request, "stop", "model_config")
        ),
    ],
    "api/serve.py": asks_for("vllm.logger", "vllm"),
    "bench/targets.py": [
        *asks_for("vllm.v1.spec_decode.metrics", "vllm:spec_decode_num_draft_tokens"),
        *asks_for("vllm.v1.spec_decode.metrics", "vllm:spec_decode_num_accepted_tokens"),
        *has("vllm.v1.metrics.reader.Counter", "name", "value"),
        *has("vllm.sampling_params.SamplingParams", "temperature", "max_tokens", "ignore_eos", "detokenize"),
        *has(ARGUMENTS, "disable_log_stats", "hf_overrides", "scheduler_cls", "worker_cls"),
        *has(ARGUMENTS, "speculative_config", "served_model_name"),
    ],
    "bench/exactness.py": [
        *has(OUTPUT, "outputs", "prompt_logprobs"),
        *has(CHOICE, "token_ids", "logprobs"),
        *has("vllm.logprobs.Logprob", "logprob"),
    ],
    "bench/start.py": is_a_module("vllm", "v1.engine.async_llm"),
    "engine/worker/adapters.py": [
        *has("vllm.model_executor.models.llama.LlamaForCausalLM", "packed_modules_mapping"),
        *asks_for("vllm.lora.model_manager", "packed_modules_mapping"),
        *asks_for("vllm.lora.worker_manager", "hf_to_vllm_mapper", "get_rename_mapper"),
        *has("vllm.model_executor.models.utils.WeightsMapper", "get_rename_mapper"),
        # Torch's modules have any attribute, as far as types know.
        *has(f"{LAYERS}.linear.LinearBase", "tp_size", "tp_rank", "quant_method", "params_dtype"),
        *has(f"{LAYERS}.linear.LinearBase", "output_size"),
        *has(f"{LAYERS}.linear.ColumnParallelLinear", "bias", "output_partition_sizes"),
        *has(f"{LAYERS}.linear.RowParallelLinear", "bias"),
        *has(f"{LAYERS}.linear.QKVParallelLinear", "output_partition_sizes", "num_kv_head_replicas"),
        *asks_for(f"{LAYERS}.linear.UnquantizedLinearMethod.create_weights", "empty"),
    ],
    # Names of members are in what names compiled code.
    "engine/worker/compiled.py": [
        *asks_for("vllm.config.vllm.VllmConfig.compute_hash", "additional_config"),
        *asks_for("vllm.compilation.caching.aot_compile_hash_factors", "compute_hash"),
    ],
    "engine/worker/composite.py": [
        *asks_for("vllm.v1.worker.gpu.model_states", "get_model_state_cls"),
        *asks_for("vllm.model_executor.model_loader.default_loader", "secondary_weights", "load_weights"),
        *takes(
            "vllm.model_executor.model_loader.default_loader.DefaultModelLoader.Source",
            "model_or_path, revision",
        ),
        *asks_for("vllm.model_executor.models.interfaces_base", "vllm_config", "embed_input_ids"),
        *asks_for(RUNNER_V1, "compute_logits"),
        *asks_for(RUNNER_V2, "compute_logits"),
        *passes(
            f"{RUNNER_V1}._model_forward",
            "model, input_ids, positions, intermediate_tensors, inputs_embeds",
        ),
        *asks_for(f"{RUNNER_V1}._model_forward", "model_kwargs"),
        *asks_for(RUNNER_V2, "input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
        *asks_for(GRAPHS, "input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
        # Compiled code calls no hooks: a member whose activations are wanted runs without.
        *has("vllm.forward_context.ForwardContext", "skip_compiled"),
        *asks_for("vllm.compilation.decorators", "skip_compiled"),
    ],
    # Their names say what they are.
    "engine/worker/layers.py": has("vllm.model_executor.layers.layernorm", "RMSNorm", "GemmaRMSNorm"),
    "engine/worker/cpu_kernels.py": [
        *takes(
            "vllm.v1.sample.rejection_sampler.expand_kernel",
            "output_ptr, input_ptr, cu_num_tokens_ptr, replace_from, replace_to, MAX_NUM_TOKENS",
        ),
        *takes("vllm.v1.sample.sampler.batched_count_greater_than", "x, values"),
        *asks_for("vllm.v1.sample.sampler.Sampler", "batched_count_greater_than"),
        *asks_for("vllm._custom_ops", "cpu_gemm_wna16", "create_onednn_scaled_mm_handler"),
        *takes(
            "vllm._custom_ops.create_onednn_scaled_mm",
            "weight, weight_scales, output_type, dynamic_quant, use_azp, primitive_cache_size",
        ),
        *takes(
            "vllm._custom_ops.onednn_scaled_mm",
            "dnnl_handler, x, output, input_scale, input_zp, input_zp_adj, bias",
        ),
    ],
    "engine/worker/drafting.py": [
        *asks_for(PROPOSER, "compute_logits"),
        *asks_for(SPECULATOR, "compute_logits"),
        *has(GROUP, "kv_cache_group_id", "build_metadata"),
        *ATTENTION,
    ],
    "engine/worker/v1/drafting.py": [
        # What is assigned in place of vLLM's.
        *has(PROPOSER, "model", "_draft_attn_layer_names", "_last_draft_probs"),
        *asks_for(RUNNER_V1, "take_last_draft_probs"),
        *accepts(f"{PROPOSER}.propose", "num_speculative_tokens", "target_token_ids", "target_positions"),
        *accepts(f"{PROPOSER}.propose", "target_hidden_states", "next_token_ids", "sampling_metadata"),
        *accepts(f"{PROPOSER}.propose", "token_indices_to_sample", "common_attn_metadata"),
        *has(RUNNER_V1, "input_batch", "discard_request_mask", "drafter"),
        *has("vllm.v1.worker.gpu_input_batch.InputBatch", "block_table"),
        *has("vllm.v1.worker.block_table.MultiGroupBlockTable", "block_tables"),
        *has("vllm.v1.worker.block_table.BlockTable", "num_blocks_per_row", "get_device_tensor"),
        *has("vllm.v1.worker.block_table.BlockTable", "block_size"),
        *has("vllm.v1.utils.CpuGpuBuffer", "gpu", "np"),
    ],
    "engine/worker/v2/drafting.py": [
        *has(SPECULATOR, "model", "draft_attn_layer_names"),
        *asks_for(RUNNER_V2, "draft_attn_layer_names"),
    ],
    "engine/core/grammars.py": [
        *calls(STRUCTURED, "_create_grammar"),
        # A grammar of ours stands in for vLLM's, so it has to answer to everything that one does.
        *has_only(
            "vllm.v1.structured_output.backend_types.StructuredOutputGrammar",
            "accept_tokens, fill_bitmask, is_terminated, reset, rollback, validate_tokens",
        ),
    ],
    "engine/worker/v2/graphs.py": [
        *has(f"{GRAPHS}.ModelCudaGraphManager", "_graphs_captured", "_capture_descs", "_capture_mem_samples"),
        *has(f"{GRAPHS}.ModelCudaGraphManager", "_max_full_descs_to_capture"),
        *takes(
            f"{GRAPHS}.ModelCudaGraphManager.dispatch",
            "num_reqs, num_tokens, uniform_token_count, num_active_loras, max_query_len",
        ),
        *takes(f"{GRAPHS}.BatchExecutionDescriptor", "cg_mode, num_tokens, num_reqs, uniform_token_count"),
        *is_made_of(
            f"{GRAPHS}.BatchExecutionDescriptor",
            "cg_mode, num_tokens, num_reqs, uniform_token_count, max_query_len, num_active_loras, num_ubatches",
        ),
        *ATTENTION,
        *accepts("vllm.forward_context.set_forward_context", "attn_metadata", "slot_mapping"),
    ],
    "engine/worker/heads.py": [
        *has(f"{LAYERS}.logits_processor.LogitsProcessor", "head_dtype"),
        *calls(f"{LAYERS}.logits_processor.LogitsProcessor", "_apply_head"),
        *has(f"{LAYERS}.vocab_parallel_embedding.ParallelLMHead", "quant_method"),
        *asks_for(f"{LAYERS}.vocab_parallel_embedding.UnquantizedEmbeddingMethod.create_weights", "weight"),
        *asks_for(f"{LAYERS}.utils", "cpu_linear"),
    ],
    "engine/core/json_grammars.py": [
        *has(STRUCTURED, "backend", "grammar_init"),
        *asks_for("vllm.v1.engine.core", "grammar_init"),
        *has(XGRAMMAR, "compiler"),
        *asks_for(f"{XGRAMMAR}.compile_grammar", "compile_json_schema", "compile_structural_tag"),
    ],
    "engine/launcher/launch.py": [
        *asks_for("vllm.v1.engine.input_processor.InputProcessor", "generation_config_fields"),
        *asks_for("vllm.sampling_params.SamplingParams.update_from_generation_config", "eos_token_id"),
    ],
    "engine/launcher/fork_server.py": [
        *(row for module in _CONTEXT_USERS for row in has(module, "get_mp_context")),
        *(row for module in _CONTEXT_USERS for row in asks_for(module, "get_mp_context")),
        *is_left_to("vllm.v1", ", ".join(("get_mp_context", *_CONTEXT_USERS))),
        *takes(f"{_REGISTRY}._run_in_subprocess", "fn"),
        *asks_for(_REGISTRY, "_run_in_subprocess"),
        *(
            row
            for module in _MODULES
            if module.startswith("vllm.")
            for row in is_a_module("vllm", module.removeprefix("vllm."))
        ),
    ],
    "engine/launcher/shared_memory.py": [
        *accepts(f"{QUEUES}.MessageQueue", "max_chunk_bytes", "max_chunks"),
        *has(QUEUES, "SHM_PATH"),
        *asks_for(f"{MULTIPROC}.MultiprocExecutor", "VLLM_MQ_MAX_CHUNK_BYTES_MB", "MessageQueue"),
        *asks_for(f"{MULTIPROC}.WorkerProc", "MessageQueue"),
        *asks_for("vllm.platforms.cpu", "uni", "mp", "VLLM_ENABLE_V1_MULTIPROCESSING"),
    ],
    "engine/core/cpu_executor.py": [
        *takes("vllm.utils.ompmultiprocessing.OMPProcessManager.configure_omp_envs", "rank, local_rank"),
        # Whatever computes goes through it.
        *calls("vllm.v1.executor.uniproc_executor.UniProcExecutor", "collective_rpc", "_init_executor"),
        *asks_for("vllm.v1.executor.abstract.Executor.get_class", "resolve_obj_by_qualname"),
    ],
    # What vLLM says to OpenMP before it starts a process.
    "engine/launcher/openmp.py": asks_for(
        "vllm.utils.ompmultiprocessing", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "OMP_PLACES"
    ),
    "engine/launcher/vllm_log.py": [
        *logs("vllm.config.vllm", "Enforce eager set, disabling torch.compile"),
        *logs("vllm.config.vllm", "Inductor compilation was disabled by user settings"),
        *logs("vllm.config.vllm", "Model Runner V2 requires Triton"),
        *logs("vllm.config.scheduler", "Using custom scheduler class"),
        *logs("vllm.triton_utils.dispatcher", "Kernel %s is already registered"),
        *logs("vllm.platforms.cpu", "Triton is not installed", "Reset SSM cache type"),
        *logs("vllm.renderers.chat_utils", "Tool call %r "),
        *logs("vllm.utils.torch_utils", "OMP_NUM_THREADS=%s is set"),
        *logs("vllm.v1.worker.cpu_worker", "%s is not found in LD_PRELOAD"),
        *logs("vllm.v1.worker.cpu_worker", "Speculative decoding on CPU without Intel OpenMP"),
        *has("vllm.logger", "DEFAULT_LOGGING_CONFIG"),
        *asks_for("vllm.logger", "DEFAULT_LOGGING_CONFIG", "handlers", "vllm"),
        # Loggers, by the names of modules.
        *is_a_module("vllm", "triton_utils.importing", "tool_parsers", "parser"),
    ],
    "engine/worker/v2/members.py": [
        *accepts("vllm.forward_context.set_forward_context", "attn_metadata", "slot_mapping"),
        *is_made_of(
            "vllm.forward_context.BatchDescriptor",
            "num_tokens, num_reqs, uniform, has_lora, num_active_loras",
        ),
    ],
    # A group of one rank takes the place of these two.
    "engine/worker/placement.py": [
        *asks_for("vllm.distributed.parallel_state.get_tp_group", "_TP"),
        *asks_for("vllm.distributed.parallel_state.get_ep_group", "_EP"),
        *asks_for("vllm.distributed.parallel_state.GroupCoordinator.all_reduce", "world_size"),
        *asks_for("vllm.distributed.parallel_state.GroupCoordinator.all_gather", "world_size"),
    ],
    "engine/launcher/parsers.py": [
        *asks_for("vllm.tool_parsers", "hermes", "llama3_json"),
        *asks_for("vllm.reasoning", "qwen3"),
        *has("vllm.config.structured_outputs.StructuredOutputsConfig", "backend", "reasoning_parser"),
        *asks_for("vllm.config.structured_outputs", "xgrammar"),
    ],
    "engine/launcher/plan.py": [
        *has(ARGUMENTS, "model", "revision", "tokenizer_revision", "served_model_name", "trust_remote_code"),
        *has(ARGUMENTS, "hf_overrides", "scheduler_cls", "worker_cls", "speculative_config", "dtype"),
        *has(ARGUMENTS, "max_model_len", "max_logprobs", "generation_config", "override_generation_config"),
        *has(ARGUMENTS, "disable_hybrid_kv_cache_manager", "enforce_eager", "kv_cache_memory_bytes"),
        *has(ARGUMENTS, "use_tqdm_on_load", "structured_outputs_config", "numa_bind"),
        *has(ARGUMENTS, "per_request_spec_decode_metrics", "distributed_executor_backend"),
        *has(ARGUMENTS, "tensor_parallel_size", "data_parallel_size"),
        # Keys of `hf_overrides` that vLLM reads.
        *asks_for(MODEL_CONFIG, "architectures"),
        *asks_for("vllm.config.model._get_head_dtype", "head_dtype"),
        *asks_for("vllm.transformers_utils.model_arch_config_convertor", "moe_num_experts"),
        *has("vllm.config.speculative.SpeculativeConfig", "num_speculative_tokens", "method", "model"),
        *has(
            "vllm.config.speculative.SpeculativeConfig", "prompt_lookup_min", "prompt_lookup_max", "revision"
        ),
        *asks_for("vllm.config.speculative", "ngram", "draft_model"),
        *asks_for("vllm.config.observability", "summary"),
        # What is read of a generation_config.json, and the value that has none of it read.
        *asks_for(f"{MODEL_CONFIG}.get_diff_sampling_param", "vllm", *_SAMPLING),
        *has("vllm.sampling_params.SamplingParams", *_SAMPLING),
        *has(MODEL_CONFIG, "dtype", "hf_token"),
        *asks_for("vllm.config.scheduler", "resolve_obj_by_qualname"),
        *asks_for("vllm.v1.worker.worker_base", "resolve_obj_by_qualname"),
        *has("vllm.config.model", "_STR_DTYPE_TO_TORCH_DTYPE"),
    ],
    # The group of entry points; pyproject.toml names it.
    "engine/plugin.py": [
        *asks_for("vllm.plugins", "vllm.general_plugins"),
        *asks_for(f"{STARTS}.EngineArgs.__post_init__", "load_general_plugins"),
        *asks_for(f"{ARGUMENTS}.add_cli_args", "load_general_plugins"),
    ],
    "hosts/engine_arguments.py": [
        *takes(f"{STARTS}.EngineArgs.create_engine_config", "usage_context, headless"),
        *asks_for("vllm.entrypoints.launchers.api_server.entry", "create_engine_config", "OPENAI_API_SERVER"),
        *asks_for("vllm.entrypoints.cli.serve", "create_engine_config", "headless"),
        *has("vllm.usage.usage_lib.UsageContext", "OPENAI_API_SERVER", "OPENAI_BATCH_RUNNER"),
        *asks_for("vllm.entrypoints.launchers.run_batch", "OPENAI_BATCH_RUNNER"),
        *has(ARGUMENTS, "model", "hf_overrides", "served_model_name"),
    ],
    "hosts/command_line.py": [
        *is_a_module("vllm", "entrypoints.launchers.api_server.entry"),
        *has("vllm.entrypoints.launchers.cli_args", "make_arg_parser"),
        *asks_for("vllm.entrypoints.launchers.cli_args.make_arg_parser", "--api-server-count"),
    ],
    "hosts/frontend_options.py": has("vllm.entrypoints.launchers.cli_args", "FrontendArgs"),
    # The second group. vLLM's application is built before the plugin's state, and its middleware in between.
    "hosts/vllm_serve.py": [
        *asks_for("vllm.plugins", "vllm.endpoint_plugins"),
        *asks_for("vllm.plugins.load_endpoint_plugins", "required_tasks"),
        *has(f"{ENDPOINTS}.EndpointPlugin", "name", "required_tasks"),
        *asks_for("vllm.entrypoints.launchers.app.build_app", "attach_endpoint_plugins", "state", "args"),
        *asks_for("vllm.entrypoints.launchers.api_server.app_state", "init_endpoint_plugins_state"),
        *asks_for(f"{ENDPOINTS}.attach_endpoint_plugins", "endpoint_plugins", "attach_router"),
        *asks_for(f"{ENDPOINTS}.init_endpoint_plugins_state", "init_state"),
        *asks_for("vllm.entrypoints.launchers.launcher", "Config", "load"),
        *has("vllm.entrypoints.serve.middleware.authenticate", "AuthenticationMiddleware"),
        *has("vllm.entrypoints.serve.middleware.x_request_id", "XRequestIdMiddleware"),
        *asks_for("vllm.entrypoints.serve.middleware.register", "AuthenticationMiddleware", "api_key"),
        *asks_for("vllm.entrypoints.serve.middleware.register", "XRequestIdMiddleware", "VLLM_API_KEY"),
        *has("vllm.entrypoints.launchers.cli_args.FrontendArgs", "api_key", "disable_fastapi_docs"),
    ],
    "engine/core/block_hashes.py": [
        *has(f"{BLOCKS}.BlockHashToBlockMap", "_cache"),
        *has(f"{BLOCKS}.BlockPool", "cached_block_hash_to_block"),
        *takes(f"{BLOCKS}.BlockPool.get_cached_block", "block_hash, kv_cache_group_ids"),
        *takes(
            f"{BLOCKS}.BlockPool.cache_full_blocks", "request, blocks, num_cached_blocks, num_full_blocks"
        ),
        *asks_for("vllm.v1.core.single_type_kv_cache_manager", "get_cached_block", "cache_full_blocks"),
        *asks_for(SCHEDULER, "get_computed_blocks"),
        # No way round the pool's own method, which is replaced.
        *is_left_to("vllm.v1.core", "get_one_block, vllm.v1.core.block_pool"),
        *has("vllm.v1.core.kv_cache_manager.KVCacheManager", "block_pool"),
        *takes(f"{HASHES}.make_block_hash_with_group_id", "block_hash, group_id"),
    ],
    "engine/worker/member_prompts.py": [
        *has("vllm.v1.attention.backend.AttentionMetadataBuilder", "device", "kv_cache_spec"),
        *has(f"{BACKENDS}.flashinfer.FlashInferMetadataBuilder", "_get_workspace_buffer"),
        *has(f"{BACKENDS}.flashinfer.FlashInferMetadataBuilder", "set_workspace_buffer"),
        # A builder that has room for other heads is refused, where its room is called so.
        *has(f"{BACKENDS}.triton_attn.TritonAttentionMetadataBuilder", "headdim"),
        *has(f"{BACKENDS}.flash_attn.FlashAttentionMetadataBuilder", "headdim"),
        *has("vllm.v1.kv_cache_interface.AttentionSpec", "head_size", "block_size"),
        *is_made_of(
            GROUP,
            "backend, layer_names, kv_cache_spec, kv_cache_group_id, kernel_block_size, kernel_block_stride, "
            "kernel_block_table, kernel_block_offsets, metadata_builders",
        ),
        *ATTENTION,
        *takes(f"{GROUP}.create_metadata_builders", "vllm_config, device, kernel_block_size"),
        *has("vllm.forward_context.ForwardContext", "attn_metadata", "slot_mapping", "is_padding"),
        *takes(
            f"{HASHES}.generate_block_hash_extra_keys",
            "request, start_token_idx, end_token_idx, start_mm_idx",
        ),
        *takes(
            f"{HASHES}.hash_block_tokens",
            "hash_function, parent_block_hash, curr_block_token_ids, extra_keys",
        ),
    ],
    "engine/worker/quantisation.py": [
        *has(MODEL_CONFIG, "quantization", "_verify_quantization", "dtype"),
        *takes(f"{LAYERS}.quantization.base_config.QuantizationConfig.get_quant_method", "layer, prefix"),
    ],
    "engine/worker/v1/runner.py": [
        *has("vllm.v1.worker.gpu_input_batch.InputBatch", "generators", "req_ids", "num_reqs"),
        *has(f"{LAYERS}.attention.attention.Attention", "kv_cache"),
        *has(RUNNER_V1, "_init_kv_zero_meta", "num_prompt_logprobs"),
        # Types know the other runner's.
        *has(RUNNER_V2, "_init_kv_zero_meta"),
        *asks_for(WORKER, "_init_kv_zero_meta", "model_runner"),
        *calls(RUNNER_V1, "_zero_block_ids", "_get_nans_in_logits", "_bookkeeping_sync", "_model_forward"),
        *calls(RUNNER_V1, "_prepare_inputs", "_update_states", "_get_prompt_logprobs_dict"),
    ],
    "engine/worker/v2/runner.py": [
        *has(RUNNER_V2, "prompt_logprobs_worker", "cudagraph_manager", "speculator", "model_state"),
        *takes(
            "vllm.v1.worker.gpu.model_states.default.DefaultModelState",
            "vllm_config, model, encoder_cache, device",
        ),
        *asks_for(RUNNER_V2, "custom_sampler", "prepare_inputs", "apply_staged_writes"),
        *asks_for(GRAPHS, "prepare_dummy_inputs"),
        *calls(RUNNER_V2, "sample", "_dummy_sampler_run"),
        *has("vllm.v1.worker.gpu.sample.sampler.Sampler", "compute_nans"),
        *has("vllm.v1.worker.gpu.sample.prompt_logprob.PromptLogprobsWorker", "uses_prompt_logprobs"),
        *takes(
            "vllm.v1.worker.gpu.sample.prompt_logprob.compute_prompt_logprobs_with_chunking",
            "prompt_token_ids, prompt_hidden_states, logits_fn, num_prompt_logprobs",
        ),
    ],
    "engine/core/scheduler.py": [
        *passes("vllm.v1.engine.core", "Scheduler, vllm_config, structured_output_manager"),
        *has(SCHEDULER, "needs_kv_cache_zeroing"),
        *asks_for(f"{SCHEDULER}._get_new_block_ids_to_zero", "needs_kv_cache_zeroing"),
        *calls(SCHEDULER, "_preempt_request"),
        *is_made_of(
            "vllm.v1.engine.EngineCoreOutput",
            # Given.
            "request_id, new_token_ids, finish_reason, events, trace_headers, "
            # Left out: what an answer holds that did not fail.
            "new_logprobs, new_prompt_logprobs_tensors, pooling_output, stop_reason, kv_transfer_params, "
            "ec_transfer_params, prefill_stats, routed_experts, num_nans_in_logits, mm_cache_miss_hashes, "
            "new_sampling_mask, spec_decode_metrics, prompt_token_id_logprobs",
        ),
        *has("vllm.v1.core.kv_cache_coordinator.KVCacheCoordinator", "single_type_managers"),
        *has("vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager", "_record_new_block_ids"),
        *has("vllm.v1.request.Request", "_block_hasher", "block_hashes", "skip_reading_prefix_cache"),
        *asks_for("vllm.v1.request.Request.update_block_hashes", "_block_hasher", "block_hashes"),
        *asks_for("vllm.v1.core.kv_cache_manager.KVCacheManager", "skip_reading_prefix_cache"),
    ],
    # Fields of vLLM's that have room for figures, on whose way they are copied, sent, added up and cut.
    "engine/worker/measures/reporting.py": [
        *has("vllm.v1.worker.gpu.sample.output.SamplerOutput", "sampling_mask_tensors"),
        *asks_for("vllm.v1.worker.gpu.async_utils.AsyncOutput.__init__", "to_cpu_nonblocking"),
        *asks_for("vllm.v1.worker.gpu.async_utils.AsyncOutput.get_output", "tolists", "sampling_masks"),
        *has("vllm.v1.outputs.ModelRunnerOutput", "sampling_masks"),
        *asks_for("vllm.v1.core.sched.scheduler.Scheduler.update_from_output", "return_sampling_mask"),
        *has("vllm.v1.engine.EngineCoreOutput", "routed_experts"),
        *asks_for("vllm.v1.engine.output_processor.RequestState", "routed_experts_chunks"),
        *asks_for(
            "vllm.v1.engine.output_processor.OutputProcessor._trim_surplus_tokens", "routed_experts_chunks"
        ),
        *asks_for("vllm.outputs.RequestOutput.add", "routed_experts"),
        *has(ARGUMENTS, "enable_return_routed_experts", "return_sampling_mask"),
    ],
    "engine/worker/measures/scoring.py": takes(
        "vllm.v1.outputs.LogprobsTensors", "logprob_token_ids, logprobs, selected_token_ranks"
    ),
    "engine/launcher/step_memory.py": has(ARGUMENTS, "max_num_batched_tokens", "max_num_seqs"),
    # A mixin.
    "engine/worker/kv_cache.py": [
        *has(RUNNER_V1, "get_kv_cache_spec"),
        *has(RUNNER_V2, "get_kv_cache_spec"),
        *asks_for(WORKER, "get_kv_cache_spec"),
        *asks_for(GRAPHS, "get_kv_cache_spec"),
        *has("vllm.v1.kv_cache_interface.SlidingWindowSpec", "sliding_window", "extra_retained_tokens"),
        *has("vllm.v1.kv_cache_interface.FullAttentionSpec", "sliding_window"),
    ],
}
"""By the file of ours that relies on it."""

BY_TYPES_ALONE = {
    *(
        "api/app.py",
        "api/in_process.py",
        "api/routes/operations.py",
        "api/scoring/explanations.py",
        "api/scoring/texts.py",
        "api/scoring/token_bytes.py",
        "api/serving/service.py",
    ),
    "api/requests/structured.py",
    *(
        "engine/worker/v2/blend_kernels.py",
        "engine/worker/v2/blending.py",
        "engine/worker/v2/report_kernels.py",
        "engine/bounds.py",
        "engine/message.py",
    ),
    "bench/reports.py",
    "engine/worker/measures/explaining.py",
    "engine/worker/v2/rows.py",
}
"""Files that import of vLLM, and rely on nothing but what types know."""

MADE_UP = {
    "has": has(RUNNER_V1, "no_such_name"),
    "has, of a class that is gone": has(f"{RUNNER_V1}Gone", "input_batch"),
    "has, of a module that is gone": has("vllm.gone.Runner", "input_batch"),
    "asks_for": asks_for(SCHEDULER, "no_such_name"),
    "calls, what is not there": calls(CHAT, "no_such_name"),
    "calls, what is not called": calls(f"{BLOCKS}.BlockPool", "get_cached_block"),
    "takes, another order": takes(f"{HASHES}.make_block_hash_with_group_id", "group_id, block_hash"),
    "takes, a class's fields": takes("vllm.v1.outputs.LogprobsTensors", "logprobs, logprob_token_ids"),
    "accepts": accepts(CHAT, "no_such_name"),
    "passes": passes("vllm.v1.engine.core", "Scheduler, no_such_name"),
    "passes, what is not called": passes("vllm.v1.engine.core", "NoSuchScheduler, vllm_config"),
    "logs": logs("vllm.config.scheduler", "No such text"),
    "has_only": has_only(
        "vllm.v1.structured_output.backend_types.StructuredOutputGrammar", "accept_tokens, reset"
    ),
    "is_made_of": is_made_of("vllm.v1.outputs.LogprobsTensors", "logprob_token_ids, logprobs"),
    "reads_only": reads_only(CHAT, "engine_client, generate, errored"),
    "reads_only, what is not read": reads_only(CHAT, "no_such_client, generate"),
    "is_left_to": is_left_to("vllm.v1.core", "get_one_block, vllm.v1.core.no_such_module"),
    "holds": holds("vllm.entrypoints.serve.instrumentator", "static/no-such-file.js"),
    "is_a_module": is_a_module("vllm", "v1.engine.no_such_module"),
}


@pytest.mark.parametrize(
    ("file", "row"),
    [
        pytest.param(file, row, id=f"{file}-{row.check.__name__.strip('_')}-{row.where}-{row.name}")
        for file, expected in TABLE.items()
        for row in dict.fromkeys(expected)
    ],
)
def test_vllm_has_what_is_relied_on(file: str, row: Row) -> None:
    try:
        differing = row.check(row.where, row.name)
    except NotThereError as error:
        pytest.fail(f"{error}: {file} relies on its {row.name}", pytrace=False)
    kind, meaning = row.check.__name__.strip("_"), (row.check.__doc__ or "").splitlines()[0]
    if differing:
        named = ", ".join(sorted(differing) if isinstance(differing, set) else differing)
        pytest.fail(
            f"{row.where}, on which {file} relies, differs in {named}. Expected: {kind} {row.name}. {meaning}",
            pytrace=False,
        )


@pytest.mark.parametrize("kind", MADE_UP)
def test_what_vllm_does_not_have_is_found_out(kind: str) -> None:
    [row] = MADE_UP[kind]
    try:
        assert row.check(row.where, row.name)
    except NotThereError:
        assert "gone" in kind


def test_every_file_that_imports_vllm_is_decided_about() -> None:
    text = {path.relative_to(SERVER).as_posix(): path.read_text() for path in SERVER.rglob("*.py")}
    importing = {file for file in text if re.search(r"^ *(?:from|import) vllm\b", text[file], re.MULTILINE)}
    assert importing - TABLE.keys() == BY_TYPES_ALONE
    assert TABLE.keys() <= text.keys()


def test_every_engine_argument_is_decided_about() -> None:
    assert PASSED.isdisjoint(REFUSED)
    assert set(find(ARGUMENTS).positional) == PASSED | REFUSED.keys()


def test_every_option_of_vllm_serve_is_decided_about() -> None:
    """Beside the engine's: those of its front end."""
    assert ACTING.isdisjoint(frontend_options.REFUSED)
    names = find("vllm.entrypoints.launchers.cli_args.FrontendArgs").names
    fields = {name for name in names if not name.startswith("_")} - {"add_cli_args"}
    assert fields == ACTING | frontend_options.REFUSED.keys()


def test_every_expected_line_of_the_log_is_looked_for() -> None:
    table = TABLE["engine/launcher/vllm_log.py"]
    assert sorted(row.name for row in table if row.check is _logs) == sorted(_EXPECTED)


@pytest.mark.parametrize(
    "name",
    sorted(
        {name for path in SERVER.rglob("*.py") for name in re.findall(r"\bVLLM_[A-Z0-9_]+", path.read_text())}
    ),
)
def test_vllm_reads_every_environment_variable_that_is_named(name: str) -> None:
    [known] = [
        node.value
        for node in ast.walk(find("vllm.envs").node)
        if isinstance(node, ast.AnnAssign) and _named(node.target) == "environment_variables"
    ]
    assert isinstance(known, ast.Dict)
    assert name in {key.value for key in known.keys if isinstance(key, ast.Constant)}


def _ours() -> Iterator[Place]:
    """Our classes that inherit from vLLM's."""
    for module, path in modules_of("eft_server"):
        for node in ast.walk(find(module).node) if "vllm" in path.read_text() else ():
            if isinstance(node, ast.ClassDef):
                place = Place(f"{module}.{node.name}", module, node)
                if any(_of_vllm(place)):
                    yield place


def _of_vllm(place: Place) -> Iterator[Place]:
    return (base for base in place.lineage if base.module.startswith("vllm."))


def _overrides(place: Place) -> dict[str, Place]:
    """The methods of a class that are marked so."""
    return {
        node.name: Place(f"{place.name}.{node.name}", place.module, node)
        for node in place.node.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any("override" in ast.unparse(decorator) for decorator in node.decorator_list)
    }


def test_what_overrides_a_method_calls_its_parameters_as_vllm_does() -> None:
    """Types would let two of one kind change places, and a name by which vLLM gives one."""
    seen, wrong = 0, list[str]()
    for place in _ours():
        for method, ours in _overrides(place).items():
            for vllms in (base.inside(method) for base in _of_vllm(place) if method in base.own_names):
                seen += 1
                pairs = zip(ours.positional, vllms.positional, strict=False)
                if any(own != name for own, name in pairs):
                    wrong.append(f"{ours.name}{ours.positional}: {vllms.name}{vllms.positional}")
                break
    assert seen > 50
    assert not wrong, "\n".join(wrong)


def test_what_a_class_of_ours_adds_has_no_name_of_vllms() -> None:
    """It would take the place of vLLM's. What is meant to is marked as an override, or in the table."""
    seen, wrong = 0, list[str]()
    for place in _ours():
        taken = frozenset[str]().union(*(base.own_names for base in _of_vllm(place)))
        for own in (base for base in place.lineage if base.module.startswith("eft_server.")):
            file = own.module.removeprefix("eft_server.").replace(".", "/") + ".py"
            meant = {part for row in TABLE[file] for part in row.name.split(", ")} | {"__init__"}
            both = own.own_names & taken
            seen += len(both)
            wrong += [f"{own.name}: {name}" for name in sorted(both - _overrides(own).keys() - meant)]
    assert seen > 50
    assert not wrong, "\n".join(wrong)
