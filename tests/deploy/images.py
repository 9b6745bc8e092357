"""Images and containers without a daemon: a namespace of its own and a change of root are all that one is."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

BASE = "localhost/eft-base"
DAEMONLESS = {"BUILDAH_ISOLATION": "chroot"}

# What Docker gives a read-only container, little shared memory included, and what the image's volumes are.
MOUNTS = """
set -e
mount --bind {root} {root} && mount -o remount,bind,ro {root}
mount -t proc proc {root}/proc
mount --bind /sys {root}/sys
mount --bind /dev {root}/dev
mount -t tmpfs -o mode=1777,size=64m tmpfs {root}/dev/shm
for writable in tmp home/eft cache; do mount -t tmpfs -o mode=1777 tmpfs {root}/$writable; done
exec chroot --userspec={user} {root} /usr/bin/env -i {environment} {command}
"""


def buildah(*arguments: str) -> str:
    """What a command of buildah's prints."""
    environment = os.environ | DAEMONLESS
    return subprocess.run(
        ["buildah", *arguments], check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


def base_image(folder: Path) -> str:
    """The image to build on: $BASE, or Debian's packages by debootstrap, put into an empty folder first."""
    if given := os.environ.get("BASE"):
        return given
    missing = [name for name in ("buildah", "debootstrap") if not shutil.which(name)]
    if missing or os.geteuid():
        pytest.fail(
            f"needs root, {' and '.join(missing) or 'and nothing else'} (or BASE, an image with Python)"
        )
    if BASE not in buildah("images", "--format", "{{.Name}}").splitlines():
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", str(folder)], check=True)
        container = buildah("from", "scratch")
        subprocess.run(["cp", "--archive", f"{folder}/.", buildah("mount", container)], check=True)
        buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
        buildah("commit", "--rm", container, BASE)
    return BASE


class Container:
    """A container of the image, without anything running in it.

    Attributes:
        root: its root file system.
        config: the image's configuration.
    """

    def __init__(self, root: Path, config: dict[str, object]) -> None:
        self.root = root
        self.config = config

    @contextmanager
    def running(self, user: str, *command: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
        """Run the entry point read-only, as a user that the image does not know."""
        environment = [*self.config["Env"]]
        entry = [*self.config["Entrypoint"], *command]
        script = MOUNTS.format(
            root=self.root, user=user, environment=" ".join(environment), command=" ".join(entry)
        )
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_until_healthy(port: int, log: Path, process: "subprocess.Popen[bytes]", most_s: float = 180) -> None:
    """Wait until /health answers."""
    deadline = time.monotonic() + most_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")


def terminate(process: "subprocess.Popen[bytes]") -> int:
    """Send SIGTERM to process 1 of the container, as runtimes do, and return its exit status."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    return process.wait(timeout=60)
