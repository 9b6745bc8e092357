"""vLLM's engine arguments in a family file's section `vllm`: each is refused for a reason or passed on.

A test compares the two lists with vLLM's arguments.
"""

import difflib
from collections.abc import Mapping

from eft_server.errors import shown

__all__ = ["PASSED", "REFUSED", "problem_with"]

_ONE_MACHINE = (
    "the processes of a family run on one machine: data_parallel_size says how many replicas there are"
)
_OWN_CACHE = "a cache outside the engine does not know which members have computed a block"
_WHOLE_MEMBERS = "replicated members keep their whole KV cache on every GPU"
_ONE_THREAD = "micro-batches run in threads, but members share state that only one thread may change"
_NO_EXPERT_PARALLEL = "a mixture of experts is sharded or replicated as its member is"
_NO_WAITING = "a family's replicas do not wait for each other"
_TEXT_ONLY = "media are not supported"
_NO_STATES = "models that keep a state between tokens are not supported"
_ADAPTERS = "name an expert's adapter as experts.<name>.adapter"
_SPECULATIVE = "use the section speculative"
_GENERATES = "the family generates text"
_CHECKPOINTS = "each member's scheme is read from its own checkpoint"
_NO_CODE = "code from checkpoints is never run"
_NO_SLEEP = "no endpoint puts the engine to sleep"
_NOT_SHOWN = "no response of this server shows it"
_BASE = "the family file's base is the model"

REFUSED: Mapping[str, str] = {
    "model": _BASE,
    "model_weights": _BASE,
    "served_model_name": "the served names come from name and aliases",
    "tokenizer": "the base's tokenizer is the family's",
    "tokenizer_revision": "use base.revision",
    "tokenizer_mode": "the members' vocabularies are compared with Hugging Face's tokenizers",
    "skip_tokenizer_init": "the server needs the tokenizer",
    "revision": "use base.revision",
    "code_revision": _NO_CODE,
    "trust_remote_code": _NO_CODE,
    "download_dir": "use --cache-dir, or HF_HUB_CACHE in the environment: there is one cache for all files",
    "hf_token": "set HF_TOKEN in the environment; a family file holds no secrets",
    "hf_config_path": "the base's own config is used",
    "config_format": "the base's own config is used",
    "hf_overrides": "the server describes the family to vLLM through it",
    "model_class_overrides": "the model class is the composite's",
    "model_impl": "members run in vLLM's own model classes",
    "runner": _GENERATES,
    "convert": _GENERATES,
    "pooler_config": _GENERATES,
    "diffusion_config": "the family generates text token by token",
    "worker_cls": "the family's worker carries the weights of each request",
    "scheduler_cls": "the family's scheduler fails the requests whose logits are not finite",
    "speculative_config": _SPECULATIVE,
    "spec_method": _SPECULATIVE,
    "spec_model": "use speculative.draft",
    "spec_tokens": "use speculative.tokens",
    "per_request_spec_decode_metrics": "it is on whenever the family uses speculative decoding",
    **dict.fromkeys(
        (
            "enable_lora",
            "default_mm_loras",
            "enable_mixed_moe_lora_format",
            "enable_moe_shared_loras",
            "enable_tower_connector_lora",
            "fully_sharded_loras",
            "lora_dtype",
            "lora_target_modules",
            "max_cpu_loras",
            "max_lora_cls_labels",
            "max_lora_rank",
            "max_loras",
            "specialize_active_lora",
        ),
        _ADAPTERS,
    ),
    "quantization": _CHECKPOINTS,
    "quantization_config": _CHECKPOINTS,
    "logits_processors": "they would run after the log-probabilities are computed",
    "watermark_config": "it would change the distribution of the blended logits",
    "max_logprobs": "use server.max_logprobs",
    "reasoning_parser": "use server.reasoning_parser",
    "reasoning_parser_plugin": "only vLLM's own parsers are known",
    "structured_outputs_config": "the server chooses the backend, against which it checks requests",
    "io_processor_plugin": "only the server reads prompts",
    "tokens_only": "the server needs the tokenizer",
    "enable_prompt_embeds": "members embed tokens differently, so a prompt has to be tokens",
    "enable_return_routed_experts": _NOT_SHOWN,
    "return_sampling_mask": _NOT_SHOWN,
    "aux_output_config": _NOT_SHOWN,
    "weight_transfer_config": "no endpoint changes a member's weights",
    **dict.fromkeys(
        (
            "enable_sleep_mode",
            "enable_nccl_comm_suspend",
            "sleep_mode_offload_cudagraph",
            "sleep_preserve_parameter_names",
        ),
        _NO_SLEEP,
    ),
    "max_parallel_loading_workers": "vLLM ignores it",
    "_api_process_count": "the server has one process for HTTP",
    "_api_process_rank": "the server has one process for HTTP",
    **dict.fromkeys(
        (
            "allowed_local_media_path",
            "allowed_media_domains",
            "disable_chunked_mm_input",
            "ec_manager_config",
            "ec_transfer_config",
            "enable_mm_embeds",
            "enable_mm_processor_stats",
            "enable_shm_tensor_arena",
            "interleave_mm_strings",
            "language_model_only",
            "limit_mm_per_prompt",
            "media_io_kwargs",
            "mm_device_do_normalize",
            "mm_encoder_attn_backend",
            "mm_encoder_attn_dtype",
            "mm_encoder_fp8_scale_path",
            "mm_encoder_fp8_scale_save_margin",
            "mm_encoder_fp8_scale_save_path",
            "mm_encoder_only",
            "mm_encoder_tp_mode",
            "mm_hasher_algorithm",
            "mm_ipc_gpu_memory_gb",
            "mm_processor_cache_gb",
            "mm_processor_cache_type",
            "mm_processor_device",
            "mm_processor_kwargs",
            "mm_shm_cache_max_object_size_mb",
            "mm_tensor_ipc",
            "skip_mm_profiling",
            "video_pruning_method",
            "video_pruning_rate",
        ),
        _TEXT_ONLY,
    ),
    **dict.fromkeys(
        (
            "enable_mamba_cache_stochastic_rounding",
            "enable_mamba_shared_prefix_checkpoint",
            "gdn_prefill_backend",
            "kda_decode_backend",
            "kda_prefill_backend",
            "mamba_backend",
            "mamba_block_size",
            "mamba_cache_dtype",
            "mamba_cache_mode",
            "mamba_cache_philox_rounds",
            "mamba_config",
            "mamba_ssm_cache_dtype",
            "mamba_ssu_algorithm",
            "replayssm_buffer_len",
            "use_replayssm",
        ),
        _NO_STATES,
    ),
    **dict.fromkeys(
        (
            "cp_kv_cache_interleave_size",
            "dcp_comm_backend",
            "dcp_kv_cache_interleave_size",
            "dcp_q_replicate",
            "decode_context_parallel_size",
            "prefill_context_parallel_size",
        ),
        _WHOLE_MEMBERS,
    ),
    **dict.fromkeys(
        (
            "all2all_backend",
            "elastic_ep_max_dp_size",
            "enable_elastic_ep",
            "enable_ep_weight_filter",
            "enable_eplb",
            "enable_expert_parallel",
            "eplb_config",
            "expert_placement_strategy",
        ),
        _NO_EXPERT_PARALLEL,
    ),
    "enable_batch_sharded_sampling": "replicated members have no shards of the logits to exchange",
    **dict.fromkeys(
        ("dbo_decode_token_threshold", "dbo_prefill_token_threshold", "enable_dbo", "ubatch_size"),
        _ONE_THREAD,
    ),
    "dp_sync_interval": _NO_WAITING,
    "disable_nccl_for_dp_synchronization": _NO_WAITING,
    **dict.fromkeys(
        (
            "data_parallel_backend",
            "data_parallel_external_lb",
            "data_parallel_hybrid_lb",
            "data_parallel_multi_port_external_lb",
            "data_parallel_rank",
            "data_parallel_size_local",
            "data_parallel_start_rank",
            "nnodes",
            "node_rank",
        ),
        _ONE_MACHINE,
    ),
    **dict.fromkeys(("kv_offloading_backend", "kv_offloading_size", "kv_transfer_config"), _OWN_CACHE),
}
"""Arguments that cannot be set, with the reason."""

PASSED = frozenset(
    (
        # How weights are read and where they are kept.
        *("load_format", "model_loader_extra_config", "ignore_patterns", "pt_load_map_location"),
        *("safetensors_load_strategy", "safetensors_prefetch_block_size", "safetensors_prefetch_num_threads"),
        *("use_tqdm_on_load", "allow_deprecated_quantization"),
        *("offload_backend", "cpu_offload_gb", "cpu_offload_params", "offload_params"),
        *("offload_group_size", "offload_num_in_group", "offload_prefetch_step"),
        # Memory, and the cache of keys and values.
        *("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "block_size"),
        *("kv_cache_dtype", "kv_cache_dtype_skip_layers", "enable_cumem_allocator", "watermark"),
        *("enable_prefix_caching", "prefix_caching_hash_algo", "prefix_cache_retention_interval"),
        *(
            "prefix_match_unit",
            "disable_hybrid_kv_cache_manager",
            "kv_sharing_fast_prefill",
            "kv_events_config",
        ),
        # What a step holds, and how steps follow each other.
        *("max_model_len", "max_num_batched_tokens", "max_num_scheduled_tokens", "max_num_seqs"),
        *("max_num_active_seqs", "max_num_queued_reqs", "max_num_queued_tokens", "enable_chunked_prefill"),
        *(
            "long_prefill_token_threshold",
            "long_prefill_token_threshold_adaptive",
            "prefill_schedule_interval",
        ),
        *("scheduler_reserve_full_isl", "scheduling_policy", "async_scheduling", "stream_interval"),
        # How it is computed.
        *("dtype", "seed", "enforce_eager", "cudagraph_capture_sizes", "max_cudagraph_capture_size"),
        *("compilation_config", "optimization_level", "performance_mode", "ir_op_priority", "kernel_config"),
        *("attention_backend", "attention_config", "disable_cascade_attn", "disable_sliding_window"),
        *("moe_backend", "linear_backend", "sparse_indexer_topk_backend", "enable_flashinfer_autotune"),
        *("engram_config", "enable_hc_sp", "swa_bounded_replay", "use_fp64_gumbel", "additional_config"),
        # Processes and devices.
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "data_parallel_address"),
        *("data_parallel_rpc_port", "distributed_executor_backend", "distributed_timeout_seconds"),
        *("cpu_distributed_timeout_seconds", "disable_custom_all_reduce", "master_addr", "master_port"),
        *("device_ids", "numa_bind", "numa_bind_cpus", "numa_bind_nodes", "ray_workers_use_nsight"),
        *("worker_extension_cls", "renderer_num_workers", "shutdown_timeout", "fail_on_environ_validation"),
        *("enable_fault_tolerance", "fault_tolerance_config"),
        # What requests leave open, and what log-probabilities are.
        *("generation_config", "override_generation_config", "logprobs_mode", "reasoning_config"),
        # What is measured and logged.
        *(
            "aggregate_engine_logging",
            "collect_detailed_traces",
            "cudagraph_metrics",
            "custom_histogram_buckets",
        ),
        *("disable_log_stats", "enable_layerwise_nvtx_tracing", "enable_log_requests", "enable_mfu_metrics"),
        *(
            "enable_logging_iteration_details",
            "enable_trace_replay",
            "jit_monitor_mode",
            "jit_monitor_verbose",
        ),
        *("kv_cache_metrics", "kv_cache_metrics_sample", "log_config_file", "log_level", "logging_config"),
        *("otlp_traces_endpoint", "profiler_config", "show_hidden_metrics_for_version"),
    )
)
"""Arguments that are passed to vLLM unchanged."""

_COUNTS = {"tensor_parallel_size": "GPUs", "data_parallel_size": "replicas"}


def problem_with(option: str, value: object) -> str | None:
    """Why this argument cannot have this value; None if it can, as far as is known without vLLM."""
    if option in REFUSED:
        return f"{option!r} cannot be set here: {REFUSED[option]}"
    if option not in PASSED:
        near = difflib.get_close_matches(option, PASSED, n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        return f"vLLM has no engine argument {shown(option)}{hint} (see `vllm serve --help`; write _ for -)"
    if option in _COUNTS and (type(value) is not int or value < 1):
        return f"must be a number of {_COUNTS[option]}, 1 or more, not {shown(value)}"
    if option == "pipeline_parallel_size" and value != 1:
        return "must be 1; use tensor_parallel_size to spread a family over GPUs"
    return None
