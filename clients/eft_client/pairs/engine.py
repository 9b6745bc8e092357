"""An engine in this process, or a server that runs already: either gives a client."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from eft_client.errors import WrongArgument
from eft_client.settings import api_key_of
from eft_client.sync import EftClient

__all__ = ["opened"]


@contextmanager
def opened(  # noqa: PLR0913 (one for each option)
    family: str | os.PathLike[str] | None,
    url: str | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    api_key_env: str | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Iterator[EftClient]:
    """A client of the server at `url`; without one, of an engine that is started here for the family.

    Args:
        family: A bundled family's name, or a family file; a server needs none.
        url: A running server's base URL, with its /v1.
        overrides: Keys of the family file to replace, such as ``server.activations=true``; only for an engine here.
        model: The name that requests ask for; by default the family's own.
        api_key_env: The environment variable that holds the server's key.
        transport: What carries requests to `url` in place of the network, for tests.

    Raises:
        WrongArgument: There is neither a family nor a server, or overrides are given for a server.
        EftError: The family cannot be read, or the server cannot be reached.
    """
    if url is not None:
        if overrides:
            raise WrongArgument(
                f"--set {overrides[0]!r:.200}: a server that runs keeps its family file; leave out --url, or --set"
            )
        with EftClient(url, api_key_of(api_key_env), model=model, transport=transport) as client:
            yield client
        return
    if family is None:
        raise WrongArgument("neither a family nor --url; give a family file, or the URL of a running server")
    from eft_server import load

    with load(os.fspath(family), overrides=overrides) as client:
        yield client
