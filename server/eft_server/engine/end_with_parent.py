"""Ends an engine whose program was killed: otherwise vLLM's would keep its memory and wait for ever."""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess

__all__ = ["end_with_parent"]

_WATCH = "eft-parent"


def end_with_parent() -> None:
    """Watch the parent process, and exit when it is gone; the workers then do the same.

    A second call does nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and not any(thread.name == _WATCH for thread in threading.enumerate()):
        threading.Thread(target=_leave_after, args=(parent,), name=_WATCH, daemon=True).start()


def _leave_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
