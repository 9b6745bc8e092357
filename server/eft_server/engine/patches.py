"""Changes to existing vLLM objects: each fails with the object's name if vLLM is not as expected."""

from typing import Any, TypeVar

__all__ = ["overwrite", "retype"]

T = TypeVar("T")


def retype(built: Any, ours: type[T]) -> T:
    """Change an object's class to a subclass, where vLLM fixes the class and a second object would cost too much.

    Raises:
        RuntimeError: `ours` is not a subclass of its class.
    """
    if not issubclass(ours, type(built)):
        raise RuntimeError(f"this vLLM has a {_named(built)}, of which {_named(ours)} is not a subclass")
    built.__class__ = ours
    changed: T = built
    return changed


def overwrite(target: Any, name: str, value: Any) -> Any:
    """Replace an attribute of a vLLM object.

    Returns:
        The previous value.

    Raises:
        RuntimeError: There is no such attribute.
    """
    try:
        before = getattr(target, name)
    except AttributeError:
        raise RuntimeError(
            f"this vLLM has no {name!r} in {_named(target)}, which has to be replaced"
        ) from None
    setattr(target, name, value)
    return before


def _named(target: Any) -> str:
    kind = target if hasattr(target, "__name__") else type(target)
    return ".".join(part for part in (getattr(kind, "__module__", ""), kind.__name__) if part)
