"""The progress of a start, on stderr: a line for each stage, and on a terminal also a live line.

Members are loaded in the engine's processes, which may be forked earlier: they report as datagrams, to a socket whose
path is in the environment.
"""

import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from eft_server.sizes import in_words

__all__ = ["Stages", "member_is_loaded", "weights_are_loading"]

_SOCKET = "EFT_START_SOCKET"
_LONGEST = 4096
_TOLD_EVERY_S = 1.0
_LINE_EVERY_S = 30.0

CLEAR = "\r\x1b[K"
"""Clears the terminal's line and returns to its beginning."""


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


_Weight = TypeVar("_Weight", bound=_Sized)


def member_is_loaded(name: str, weight_bytes: int) -> None:
    """Report a loaded member to the program that starts the engine, if it listens."""
    _send(name, weight_bytes, loaded=True)


def weights_are_loading(name: str, weights: Iterable[tuple[str, _Weight]]) -> Iterator[tuple[str, _Weight]]:
    """Pass a member's weights through, and report the progress to the program that starts the engine."""
    read_bytes, told_s = 0, time.monotonic()
    for weight_name, weight in weights:
        yield weight_name, weight
        read_bytes += weight.nbytes
        if time.monotonic() - told_s >= _TOLD_EVERY_S:
            told_s = time.monotonic()
            _send(name, read_bytes, loaded=False)


def _send(name: str, weight_bytes: int, *, loaded: bool) -> None:
    address = os.environ.get(_SOCKET)
    if address is None:
        return
    message = json.dumps({"name": name, "weight_bytes": weight_bytes, "loaded": loaded}).encode()
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(message, address)


class Stages:
    """The stages of a start, shown as they begin and end. Use it in a ``with`` statement.

    Nothing here runs in a thread until `listen` is called, so that the program can be forked before.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        began_s: float | None = None,
        may_go_on: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin.

        Args:
            quiet: Show nothing.
            began_s: When the start began, in seconds since the epoch; None means now.
            may_go_on: Called between stages; raises if the start has been interrupted.
        """
        self._may_go_on = may_go_on
        self._began_s = time.time() if began_s is None else began_s
        self._quiet = quiet
        isatty = getattr(sys.stderr, "isatty", bool)  # stderr may be None, or not a file.
        self._is_live = isatty() and os.environ.get("TERM") != "dumb"
        self._stage: tuple[str, float] | None = None
        self._told_s = 0.0
        self._listener: _Listener | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_listening()
        self._end_stage("failed after " if kind is not None else "")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start began."""
        return time.time() - self._began_s

    def begin(self, stage: str) -> None:
        """End the current stage and begin another."""
        self._end_stage()
        self._may_go_on()
        self._stage = stage, time.time()
        if not self._is_live:
            self.show(stage)
        self._show_stage()

    def show(self, fact: str) -> None:
        """Show a permanent line."""
        self._told_s = time.time()
        self._write(f"{CLEAR if self._is_live else ''}[{self.elapsed_s:5.1f} s] {fact}\n")
        self._show_stage()

    def listen(self) -> None:
        """From now on, show members as they are loaded."""
        if not self._quiet:
            # The temporary folder's path may be too long for a socket.
            with suppress(OSError):
                self._listener = _Listener(self._show_member)

    def _show_member(self, name: str, weight_bytes: int, loaded: bool) -> None:
        if loaded:
            self.show(f"  {name}: {in_words(weight_bytes)}")
        elif self._is_live:
            self._show_stage(f": {in_words(weight_bytes)} of {name}")
        elif time.time() - self._told_s >= _LINE_EVERY_S:
            self.show(f"  {name}: {in_words(weight_bytes)} so far")

    def end(self, fact: str) -> None:
        """End the start, with a line that says how it ended."""
        self._stop_listening()
        self._end_stage()
        self._may_go_on()
        self.show(fact)

    def _stop_listening(self) -> None:
        if self._listener:
            self._listener.close()
            self._listener = None

    def _show_stage(self, detail: str = "") -> None:
        if self._is_live and self._stage:
            self._write(f"{CLEAR}{self._stage[0]}{detail} …")

    def _end_stage(self, how: str = "") -> None:
        if self._stage is None:
            return
        stage, since_s = self._stage
        self._stage = None
        if self._is_live:
            self.show(f"{stage}: {how}{time.time() - since_s:.1f} s")

    def _write(self, text: str) -> None:
        if not self._quiet and sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()


class _Listener:
    """Passes each member on once, even if several processes load it."""

    def __init__(self, show: Callable[[str, int, bool], None]) -> None:
        self._show = show
        self._folder = tempfile.TemporaryDirectory(prefix="eft-")
        self._address = str(Path(self._folder.name) / "start")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        os.environ[_SOCKET] = self._address
        self._thread = threading.Thread(target=self._read, name="eft-stages", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.environ.pop(_SOCKET, None)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", self._address)
        self._thread.join()
        self._socket.close()
        self._folder.cleanup()

    def _read(self) -> None:
        told = set()
        while message := self._socket.recv(_LONGEST):
            member = json.loads(message)
            name, loaded = member["name"], member["loaded"]
            if name not in told:
                self._show(name, member["weight_bytes"], loaded)
            if loaded:
                told.add(name)
