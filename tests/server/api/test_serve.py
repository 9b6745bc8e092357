"""What happens around the engine: listening and announcing. Whole runs are tested end to end."""

import contextlib
import json
import logging.config
import shlex
import socket

import pytest

from eft_server.api import serve
from eft_server.api.edge.listener import listener_on
from eft_server.errors import ConfigError

from .served import family


def test_a_taken_port_is_refused_before_the_engine_starts() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            listener_on("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_refused_before_the_engine_starts() -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        listener_on("host.invalid", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_announcement_holds_a_command_that_can_be_pasted(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(listener_on(host, 0)) as listener:
        serve._announce(family(), listener, needs_key=True)
    first, second = capsys.readouterr().out.splitlines()
    shown = f"[{host}]" if ":" in host else host
    command = shlex.split(second)
    assert first.startswith(f"Serving 'demo' at http://{shown}:")
    assert command[0] == "curl"
    assert "Authorization: Bearer KEY" in command
    assert json.loads(command[-1])["eft"]["weights"] == {"helpful": 0.5, "harmless": 0.5}


def test_the_access_log_has_no_line_for_a_probe_or_scrape_that_went_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("uvicorn.access")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "filters", [])
    config = serve._log_config()
    logging.config.dictConfig(
        {key: config[key] for key in ("version", "disable_existing_loggers", "formatters", "filters")}
        | {"handlers": {"access": config["handlers"]["access"]}}
        | {"loggers": {"uvicorn.access": config["loggers"]["uvicorn.access"]}}
    )
    wanted = [("/v1/models", 200), ("/readyz", 503), ("/metrics", 401), ("/livez/", 404)]
    for path, status in [("/livez", 200), ("/health?a", 200), ("/metrics", 200), *wanted]:
        logger.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", path, "1.1", status)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(wanted)
    for line, (path, status) in zip(lines, wanted, strict=True):
        assert f'"GET {path} HTTP/1.1" {status}' in line
