"""The options of `vllm serve` that are not the engine's: each is refused for a reason or acts as vLLM says.

A test compares the two lists with vLLM's options. The engine's own are in `family.vllm_options`.
"""

from collections.abc import Mapping
from typing import Any

from eft_server.errors import ConfigError, shown

__all__ = ["ACTING", "REFUSED", "refuse_options"]

_TEMPLATES = "the members' templates come from the family file: <member>.template"
_TOOLS = "use server.tool_parser in the family file"
_NOT_SERVED = "it is for an endpoint that a family does not have"
_NOT_SHOWN = "no response of a family shows it"
_TEXT_ONLY = "media are not supported"
_NO_OUTPUTS = "the log holds no texts"
_ONE_MACHINE = "the processes of a family run on one machine"

REFUSED: Mapping[str, str] = {
    "lora_modules": "name an expert's adapter as experts.<name>.adapter in the family file",
    "chat_template": _TEMPLATES,
    "chat_template_content_format": _TEMPLATES,
    "trust_request_chat_template": _TEMPLATES,
    "default_chat_template_kwargs": _TEMPLATES,
    "trust_request_mm_kwargs": _TEXT_ONLY,
    "response_role": "answers have the role assistant",
    "return_tokens_as_token_ids": "a request asks for it with its field of the same name",
    "enable_auto_tool_choice": _TOOLS,
    "tool_call_parser": _TOOLS,
    "tool_parser_plugin": "only vLLM's own parsers are known",
    "exclude_tools_when_tool_choice_none": "templates get the tools of every request that has some",
    "tool_strict_level": "each tool's own strict decides",
    "tool_server": "the server calls no tools",
    "max_log_len": _NO_OUTPUTS,
    "enable_log_outputs": _NO_OUTPUTS,
    "enable_log_deltas": _NO_OUTPUTS,
    "log_error_stack": "the log has the traceback of every failure that is not a client's",
    "enable_prompt_tokens_details": _NOT_SHOWN,
    "enable_per_request_metrics": _NOT_SHOWN,
    "enable_force_include_usage": "a stream has its usage if the request asks with stream_options",
    "sse_keep_alive_interval": "streams hold nothing but events",
    "enable_server_load_tracking": "/metrics says how many requests run and wait",
    "cohere_is_reasoning_model": _NOT_SERVED,
    "cohere_format": _NOT_SERVED,
    "anthropic_disabled_thinking_effort": _NOT_SERVED,
    "enable_flash_late_interaction": _NOT_SERVED,
    "tokens_only": "its requests would reach the engine without weights",
    "enable_scale_out": "its requests would reach the engine without weights",
    "grpc_port": "its requests would reach the engine without weights",
    "data_parallel_supervisor_port": _ONE_MACHINE,
    "dp_supervisor_probe_interval_s": _ONE_MACHINE,
    "dp_supervisor_probe_timeout_s": _ONE_MACHINE,
    "dp_supervisor_probe_failure_threshold": _ONE_MACHINE,
}
"""Options that cannot be set for a family, with the reason."""

ACTING = frozenset(
    (
        *("host", "port", "uds", "root_path", "middleware"),
        *("api_key", "allow_credentials", "allowed_origins", "allowed_methods", "allowed_headers"),
        *(
            "ssl_keyfile",
            "ssl_certfile",
            "ssl_ca_certs",
            "ssl_cert_reqs",
            "ssl_ciphers",
            "enable_ssl_refresh",
        ),
        *("uvicorn_log_level", "disable_uvicorn_access_log", "disable_access_log_for_endpoints"),
        *("h11_max_incomplete_event_size", "h11_max_header_count", "disable_fastapi_docs"),
        *("fingerprint_mode", "fingerprint_value"),
        # So in every case: an id in each response, documentation without other hosts, the tokenizer's description.
        *("enable_request_id_headers", "enable_offline_docs", "enable_tokenizer_info_endpoint"),
    )
)
"""Options that do for a family what they do for any model."""


def refuse_options(args: Any) -> None:
    """Check the command line of `vllm serve`.

    Args:
        args: its namespace.

    Raises:
        ConfigError: An option is set that cannot be set for a family.
    """
    from vllm.entrypoints.launchers.cli_args import FrontendArgs

    usual = FrontendArgs()
    for name, reason in REFUSED.items():
        value = getattr(args, name, getattr(usual, name))
        if value != getattr(usual, name):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {shown(value)} cannot be set for a family: {reason}")
