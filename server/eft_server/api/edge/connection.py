"""One HTTP/1.1 connection: uvicorn's, impatient with half-sent headers and unread answers, and with JSON errors."""

import array
import asyncio
import fcntl
import json
import termios
from typing import Any

import h11
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from eft_server.api.edge.errors import ApiError

__all__ = ["AHEAD_BYTES", "HEADER_TIMEOUT_S", "STALL_BYTES", "STALL_S", "Connection"]

HEADER_TIMEOUT_S = 15.0
STALL_S = 30.0
STALL_BYTES = 1024
"""How much of an answer that waits to be read has to be taken in STALL_S seconds."""

AHEAD_BYTES = 1 << 16
"""How much of what follows a request is read while that is being answered."""


class Connection(H11Protocol):
    """Ends itself when headers are not complete in time, or an answer is not read; uvicorn would wait for ever.

    An answer that nobody reads keeps its request's place, and what the request holds in the engine.
    """

    _headers_due: asyncio.TimerHandle | None = None
    _progress_due: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first request."""
        super().connection_made(transport)
        self._expect_headers()

    @override
    def data_received(self, data: bytes) -> None:
        """Take in what arrived; the clock runs only while no request is being answered or read to be answered."""
        refused = self.conn.our_state is h11.DONE
        super().data_received(data)
        if refused and self.conn.our_state is h11.IDLE:
            self._stop_waiting()  # The body that was refused is over: what comes has its own time.
        # A body whose answer is out already, such as a refusal of its key, is read to its end for nothing.
        if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:
            self._expect_headers()
        else:
            self._stop_waiting()
        # A next request that came early would hide that the client has left: its end is read behind it.
        # A body that is not taken stays where it is: there reading goes on when the application asks for more.
        early = self.conn.their_state is h11.DONE
        if early and self.flow.read_paused and len(self.conn.trailing_data[0]) < AHEAD_BYTES:
            self.flow.resume_reading()

    @override
    def pause_writing(self) -> None:
        """Start waiting for the client to read: there is as much on its way as may be."""
        super().pause_writing()
        self._expect_progress()

    @override
    def resume_writing(self) -> None:
        """Go on: the client has read most of it."""
        if not self.transport.is_closing():
            self._stop_expecting_progress()
        super().resume_writing()

    @override
    def on_response_complete(self) -> None:
        """Be ready for the next request, or leave once this answer has been read."""
        super().on_response_complete()
        self._expect_last_progress()

    @override
    def timeout_keep_alive_handler(self) -> None:
        """Leave, since no next request came."""
        super().timeout_keep_alive_handler()
        self._expect_last_progress()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_waiting()
        self._stop_expecting_progress()
        super().connection_lost(exc)

    @override
    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP in the shape of every other error."""
        body = json.dumps(ApiError(msg, code="invalid_http").body()).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        events: tuple[Any, ...] = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self._leave()

    def _leave(self) -> None:
        self.transport.close()
        self._expect_last_progress()

    def _expect_headers(self) -> None:
        if self._headers_due is None:
            self._headers_due = self.loop.call_later(HEADER_TIMEOUT_S, self._leave)

    def _stop_waiting(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _expect_last_progress(self) -> None:
        """A connection that is closed lives on until the rest of its answer is read."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._expect_progress()

    def _expect_progress(self) -> None:
        self._stop_expecting_progress()
        self._progress_due = self.loop.call_later(STALL_S, self._check_progress, self._unread())

    def _check_progress(self, waiting: int) -> None:
        if waiting - self._unread() >= STALL_BYTES:
            self._expect_progress()
        else:
            # Closing would wait until the rest is read. The application is told as of any client that leaves.
            self.transport.abort()

    def _unread(self) -> int:
        """How many bytes have not arrived, here and in the system's own buffer, which may hold megabytes."""
        count = array.array("i", [0])
        fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
        return self.transport.get_write_buffer_size() + count[0]

    def _stop_expecting_progress(self) -> None:
        if self._progress_due is not None:
            self._progress_due.cancel()
            self._progress_due = None
