"""One HTTP/1.1 connection: uvicorn's, with time limits on headers and unread answers, and with JSON errors."""

import array
import asyncio
import fcntl
import json
import termios
from typing import Any

import h11
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.metrics import count_error
from eft_server.api.serving.current import CurrentRequest

__all__ = ["AHEAD_BYTES", "HEADER_TIMEOUT_S", "STALL_BYTES", "STALL_S", "Connection"]

HEADER_TIMEOUT_S = 15.0
STALL_S = 30.0
STALL_BYTES = 1024
"""The client has to read at least this much of a waiting answer in STALL_S seconds."""

AHEAD_BYTES = 1 << 16
"""At most this much data behind a request is read while it is being answered."""


class Connection(H11Protocol):
    """Closes if headers are not complete in time, or an answer is not read; uvicorn would wait for ever.

    An unread answer would keep its request's place and its resources in the engine.
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
        """Take data in; the clock runs only while no request is being read or answered."""
        refused = self.conn.our_state is h11.DONE
        super().data_received(data)
        if refused and self.conn.our_state is h11.IDLE:
            self._stop_waiting()  # The refused body has ended: the next request has its full time.
        # A body that has already been answered, such as by a refusal of its key, is read and dropped.
        if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:
            self._expect_headers()
        else:
            self._stop_waiting()
        # An early next request must not hide that the client has left, so reading goes on behind it.
        # A body that the application has not read yet stays buffered: reading resumes when it asks for more.
        early = self.conn.their_state is h11.DONE
        if early and self.flow.read_paused and len(self.conn.trailing_data[0]) < AHEAD_BYTES:
            self.flow.resume_reading()

    @override
    def pause_writing(self) -> None:
        """Start waiting for the client to read: the write buffer is full."""
        super().pause_writing()
        self._expect_progress()

    @override
    def resume_writing(self) -> None:
        """Stop waiting: the client has read most of the buffer."""
        if not self.transport.is_closing():
            self._stop_expecting_progress()
        super().resume_writing()

    @override
    def on_response_complete(self) -> None:
        """Wait for the next request, or close once this answer has been read."""
        super().on_response_complete()
        self._expect_last_progress()

    @override
    def timeout_keep_alive_handler(self) -> None:
        """Close, since no further request came."""
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
        """Answer invalid HTTP with an error in the usual shape."""
        error = ApiError(msg, code="invalid_http")
        count_error(error.status, error.code)
        body = json.dumps(error.body()).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
            ("x-request-id", CurrentRequest().id),
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
        """A closing connection stays open until the rest of its answer is read."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._expect_progress()

    def _expect_progress(self) -> None:
        self._stop_expecting_progress()
        self._progress_due = self.loop.call_later(STALL_S, self._check_progress, self._unread())

    def _check_progress(self, waiting: int) -> None:
        if waiting - self._unread() >= STALL_BYTES:
            self._expect_progress()
        else:
            # Closing would wait until the rest is read. To the application, the client has disconnected.
            self.transport.abort()

    def _unread(self) -> int:
        """Bytes that the client has not received, here and in the system's buffer, which may hold megabytes."""
        count = array.array("i", [0])
        fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
        return self.transport.get_write_buffer_size() + count[0]

    def _stop_expecting_progress(self) -> None:
        if self._progress_due is not None:
            self._progress_due.cancel()
            self._progress_due = None
