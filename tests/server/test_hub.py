"""Members from a model hub: its refusals in words, and its cache without it."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from eft_server import environment
from eft_server.errors import ConfigError, FamilyError
from eft_server.family import checkpoint
from eft_server.family.adapter import is_adapter
from eft_server.family.family import Source

from .hub_cache import add_to_cache

READ = """
import json, sys
from eft_server.family.checkpoint import read_checkpoint
from eft_server.family.family import Source
from eft_server.errors import FamilyError

for model, revision in json.loads(sys.argv[1]):
    try:
        read_checkpoint("base", Source(model, revision))
    except FamilyError as error:
        print(json.dumps(str(error)))
"""

NO_TOKEN = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"}


class Hub(BaseHTTPRequestHandler):
    """Refuses as the hub does: the status says little, the header X-Error-Code says why."""

    def do_GET(self):
        authorization = self.headers.get("Authorization", "")
        if "wrong" in authorization:
            self.refuse(401, "X-Error-Message", "Invalid credentials in Authorization header")
        elif "/org/gated/" in self.path:
            self.refuse(403 if authorization else 401, "X-Error-Code", "GatedRepo")
        elif "/org/model/" in self.path:
            self.refuse(404, "X-Error-Code", "RevisionNotFound")
        else:
            self.refuse(401, "X-Error-Code", "RepoNotFound")

    do_HEAD = do_GET

    def refuse(self, status, header, value):
        self.send_response(status)
        self.send_header(header, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    """The address of a hub that refuses everything."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def errors(tmp_path, endpoint, *members, **environment):
    """What reading these members from a hub says, in a process of its own: its client reads its settings once."""
    inherited = {name: value for name, value in os.environ.items() if name not in NO_TOKEN}
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(members)],
        env=inherited | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hubs_refusals_say_what_to_do(hub, tmp_path):
    gated, private, revision = errors(
        tmp_path, hub, ("org/gated", None), ("org/private", None), ("org/model", "v9")
    )
    assert gated == (
        f"member 'base' (org/gated): is gated: accept its licence at {hub}/org/gated with an account, "
        "and set HF_TOKEN to a token of it"
    )
    assert f"(org/private): is not on the hub ({hub}/org/private), or is private: check the id" in private
    assert "set HF_TOKEN to a token that may read it" in private
    assert "member 'base' (org/model at v9): the hub has no revision 'v9' of it" in revision
    assert f"{hub}/org/model/tree/main" in revision


def test_a_token_without_access_and_a_wrong_one_are_told_apart(hub, tmp_path):
    (gated,) = errors(tmp_path, hub, ("org/gated", None), HF_TOKEN="hf_valid")
    assert "accept its licence" in gated and "with the account of your HF_TOKEN" in gated
    (wrong,) = errors(tmp_path, hub, ("org/model", None), HF_TOKEN="hf_wrong")
    assert "the hub refuses the token: HF_TOKEN is wrong or has expired" in wrong


def test_without_a_network_the_message_says_how_to_go_without(tmp_path):
    (error,) = errors(tmp_path, "http://127.0.0.1:9", ("org/model", "v1"))
    cache = tmp_path / "hub"
    assert f"is not in the hub's cache {cache}, and the hub (http://127.0.0.1:9) cannot be reached" in error
    assert f"(hf download org/model --revision v1 --cache-dir {cache}), or name a directory" in error


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Offline mode, and its cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_offline_a_member_is_read_from_the_cache(offline, write_checkpoint):
    folder = write_checkpoint("here")
    (folder / "model.safetensors").touch()
    add_to_cache(offline, "org/model", folder, "v1")
    read = checkpoint.read_checkpoint("base", Source("org/model", "v1"))
    assert read.report.parameters == checkpoint.read_checkpoint("x", Source(str(folder))).report.parameters
    with pytest.raises(
        FamilyError, match=r"\(org/model\): is not in the hub's cache .* the server is offline"
    ):
        checkpoint.read_checkpoint("base", Source("org/model"))


def test_a_model_of_the_hub_beside_an_adapter_is_known(offline, write_checkpoint):
    folder = write_checkpoint("here")
    add_to_cache(offline, "org/model", folder)
    assert not is_adapter(Source("org/model"))
    (folder / "adapter_config.json").write_text("{}")
    add_to_cache(offline, "org/both", folder)
    assert is_adapter(Source("org/both"))
    assert not is_adapter(Source("org/neither"))


@pytest.mark.parametrize(
    ("removed", "missing"),
    [
        ("config.json", "lacks config.json: download"),
        ("tokenizer.json", r"lacks tokenizer.json \(or another tokenizer\): download"),
        ("model.safetensors", r"lacks model.safetensors \(or other weights\): download"),
    ],
)
def test_offline_the_files_that_are_missing_are_named(offline, write_checkpoint, removed, missing):
    folder = write_checkpoint("here")
    (folder / "model.safetensors").touch()
    (add_to_cache(offline, "org/model", folder) / removed).unlink()
    with pytest.raises(FamilyError, match=missing) as caught:
        checkpoint.read_checkpoint("base", Source("org/model"))
    assert f"(hf download org/model --cache-dir {offline})" in str(caught.value)


def test_offline_every_shard_has_to_be_there(offline, write_checkpoint):
    folder = write_checkpoint("here")
    shards = [f"model-0000{number}-of-00005.safetensors" for number in range(1, 6)]
    index = {"weight_map": {f"layer.{number}": shard for number, shard in enumerate(shards)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / shards[1]).touch()
    # What a download leaves where it was stopped: a link to nothing.
    (folder / shards[0]).symlink_to("nothing")
    snapshot = add_to_cache(offline, "org/model", folder)
    with pytest.raises(FamilyError, match="is offline") as caught:
        checkpoint.read_checkpoint("base", Source("org/model"))
    assert f"{snapshot} lacks {shards[0]}, {shards[2]}, {shards[3]} and 1 more" in str(caught.value)


def test_settings_that_come_too_late_are_refused(monkeypatch, tmp_path):
    import huggingface_hub  # noqa: F401

    with pytest.raises(
        ConfigError, match="set HF_HUB_OFFLINE=1 in the environment before the program starts"
    ):
        environment.use_hub(offline=True)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not a directory"):
        environment.use_hub(cache_dir=tmp_path / "file")
    assert "HF_HUB_OFFLINE" not in os.environ
