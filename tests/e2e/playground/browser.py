"""The browser that the tests drive: Chromium or Chrome, as the system has it."""

import os
import shutil

__all__ = ["NO_BROWSER", "VARIABLE", "find_browser"]

VARIABLE = "EFT_TEST_BROWSER"
"""Names a browser, which then has to be there."""

NO_BROWSER = f"The playground is not tested: there is no Chromium. `make browser` installs it; {VARIABLE} names another"

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """The path of a browser, or None if there is none and the environment does not ask for one.

    Raises:
        FileNotFoundError: The environment names one that is not there.
    """
    if named := os.environ.get(VARIABLE):
        if (path := shutil.which(named)) is None:
            raise FileNotFoundError(
                f"{VARIABLE} is {named!r}, and there is no such program: try `make browser`"
            )
        return path
    return next((path for name in _NAMES if (path := shutil.which(name))), None)
