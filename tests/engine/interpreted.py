"""Triton's interpreter, several times faster where kernels call helpers of their own."""

from typing import Any


def patch_once() -> None:
    """Have the interpreter replace Triton's functions once a launch, not for each helper that a kernel calls."""
    from triton import language
    from triton.runtime import interpreter

    replace = interpreter._patch_lang

    def replace_once(helper: Any) -> Any:
        modules = [module for module in (language, language.core) if module in helper.__globals__.values()]
        if any(language.core.is_builtin(module.load) for module in modules):
            return replace(helper)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = replace_once
