"""The address that the server listens on, taken before anything that takes long."""

import socket

from eft_server.errors import ConfigError

__all__ = ["listener_on"]


def listener_on(host: str, port: int) -> socket.socket:
    """A socket that is bound to the address, and does not listen yet.

    Raises:
        ConfigError: The address cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        raise ConfigError(
            f"server: cannot listen on {host}:{port}: {exc}; choose another --host or --port"
        ) from exc
    return listener
