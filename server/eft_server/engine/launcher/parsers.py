"""Checks the tool and reasoning parsers in a family file: vLLM must know them, and they must suit the tokenizer."""

from typing import Any

from eft_server.errors import ConfigError
from eft_server.family.file import ServerConfig

__all__ = ["parser_options", "template_variables"]


def parser_options(config: ServerConfig, chat_template: str | None) -> dict[str, Any]:
    """Check the parsers before the engine is started, and return its options for them.

    The backend for grammars is set explicitly: with "auto", vLLM checks a request for any suitable backend, and then
    compiles it with the one that the first request started.

    Args:
        config: The family file.
        chat_template: The template that renders messages.

    Raises:
        ConfigError: vLLM has no such parser, the tokenizer lacks tokens that it needs, or the chat template does
            not show tools to the model.
    """
    tools, reasoning = config.server.tool_parser, config.server.reasoning_parser
    if tools or reasoning:
        _check_known(tools, reasoning)
        _check_tokenizer(config, tools, reasoning)
    if tools and "tools" not in template_variables(chat_template):
        raise ConfigError(
            f"server.tool_parser {tools!r}: the chat template does not mention tools, so no member would see them"
        )
    backend = {"backend": "xgrammar", "reasoning_parser": reasoning or ""}
    return {"structured_outputs_config": backend}


def template_variables(chat_template: str | None) -> frozenset[str]:
    """The variables of a chat template, which requests can set; none without a template.

    Raises:
        ConfigError: The template is not valid.
    """
    from jinja2 import TemplateError, meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if chat_template is None:
        return frozenset()
    try:
        environment = _compile_jinja_template(chat_template).environment
        return frozenset(meta.find_undeclared_variables(environment.parse(chat_template)))
    except TemplateError as error:
        raise ConfigError(f"the chat template cannot be read: {error}") from error


def _check_known(tools: str | None, reasoning: str | None) -> None:
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    for key, name, registry in (
        ("tool_parser", tools, ToolParserManager),
        ("reasoning_parser", reasoning, ReasoningParserManager),
    ):
        known = registry.list_registered()
        if name is not None and name not in known:
            raise ConfigError(f"server.{key}: vLLM has no parser {name!r}; known: {', '.join(known)}")


def _check_tokenizer(config: ServerConfig, tools: str | None, reasoning: str | None) -> None:
    from vllm.parser import ParserManager
    from vllm.tokenizers import get_tokenizer

    base = config.base
    try:
        ParserManager.get_parser(
            tool_parser_name=tools,
            reasoning_parser_name=reasoning,
            enable_auto_tools=tools is not None,
            model_name=base.model,
            tokenizer=get_tokenizer(base.model, revision=base.revision),
        )
    except (TypeError, ValueError) as error:
        named = " and ".join(
            f"{key} {name!r}"
            for key, name in (("tool_parser", tools), ("reasoning_parser", reasoning))
            if name
        )
        raise ConfigError(f"server: {named}: no fit for this family: {error}") from error
