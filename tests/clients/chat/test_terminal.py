"""A chat in a terminal: the real command behind a pseudo-terminal, typed at."""

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..talker import Talker, talking

# The first terminal that a session opens is the one whose Ctrl-C reaches it, and one that is closed ends it, also where
# whoever runs these tests has left SIGHUP ignored (nohup).
CODE = (
    "import os, signal; os.close(os.open(os.ttyname(0), os.O_RDWR)); signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    "from eft_server.cli import main; main()"
)
EFT = [sys.executable, "-c", CODE, "chat"]
DEADLINE_S = 60.0
SETTLED_LOOKS = 5
"""The program slept in so many looks in a row: it waits."""
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


class Typist:
    """Types at a program, and reads what it writes."""

    def __init__(self, process: "subprocess.Popen[bytes]", terminal: int) -> None:
        self.process = process
        self.terminal = terminal
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.seen = ""
        self.read_to = 0

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def enter(self, text: str) -> None:
        self.type(f"{text}\r")

    def expect(self, pattern: str) -> str:
        """Wait until what follows the last find matches; the match."""
        end_s = time.monotonic() + DEADLINE_S
        while not (found := re.compile(pattern).search(self.seen, self.read_to)):
            left_s = end_s - time.monotonic()
            if (
                left_s < 0
                or not select.select([self.terminal], [], [], max(0, left_s))[0]
                or not self._read()
            ):
                pytest.fail(f"{pattern!r} did not come after {self.seen[self.read_to :]!r}")
        self.read_to = found.end()
        return found[0]

    def settle(self) -> None:
        """Wait until the program waits for a key.

        Python loses a Ctrl-C that comes between the prompt and readline's wait for a key (`readline.c` looks for
        signals only where one ended that wait): a moment that nobody hits by hand, and a busy machine stretches.
        """
        stat = Path(f"/proc/{self.process.pid}/stat")
        end_s = time.monotonic() + DEADLINE_S
        asleep = 0
        while asleep < SETTLED_LOOKS:
            assert time.monotonic() < end_s, "the program never waited"
            state = stat.read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
            time.sleep(0.01)

    def _read(self) -> bool:
        try:
            data = os.read(self.terminal, 65536)
        except OSError:  # What Linux says of a terminal whose program has gone.
            return False
        self.seen += self.decoder.decode(data)
        return bool(data)

    def end(self) -> int:
        """Read to the end; the exit status."""
        end_s = time.monotonic() + DEADLINE_S
        while select.select([self.terminal], [], [], max(0, end_s - time.monotonic()))[0] and self._read():
            pass
        return self.process.wait(max(1, end_s - time.monotonic()))


@pytest.fixture
def talker() -> Iterator[Talker]:
    with talking() as talker:
        yield talker


@contextmanager
def typing(
    talker: Talker, home: Path, *options: str, columns: int = 100, **environment: str
) -> Iterator[Typist]:
    """The command in a terminal of its own, at its first prompt."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    process = subprocess.Popen(
        [*EFT, "--url", talker.url, *options],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=inherited | {"TERM": "xterm-256color", "XDG_STATE_HOME": str(home)} | environment,
    )
    os.close(theirs)
    typist = Typist(process, ours)
    try:
        typist.expect("demo.*> ")
        yield typist
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_weights_change_between_answers_and_show_at_the_prompt(talker: Talker, tmp_path: Path) -> None:
    talker.say = lambda body: ["I ", "heard ", body["messages"][-1]["content"]]
    with typing(talker, tmp_path) as typist:
        assert "demo helpful=0.5 harmless=0.25" in typist.seen
        typist.enter("one")
        typist.expect("I heard one")
        typist.expect(r"\[demo helpful=0\.5 harmless=0\.25 · 4 tokens")
        typist.enter("/weights helpful=0.7 harmless=0.3")
        typist.expect(r"demo helpful=0\.7 harmless=0\.3.*> ")
        typist.enter("two")
        typist.expect("I heard two")
        typist.expect("> ")
        typist.enter("/weights helpful=7")
        typist.expect("helpful=7 is out of bounds; allowed: 0 to 2")
        typist.expect("> ")
        typist.type(CTRL_D)
        assert typist.end() == 0
    assert "eft" not in talker.bodies[0]
    assert talker.bodies[1]["eft"] == {"weights": {"helpful": 0.7, "harmless": 0.3}}


def test_control_c_stops_an_answer_and_not_the_program(talker: Talker, tmp_path: Path) -> None:
    talker.say = lambda body: ["Let me think", "WAIT"]
    with typing(talker, tmp_path) as typist:
        typist.enter("Hi")
        typist.expect("Let me think")
        typist.type(CTRL_C)
        typist.expect("stopped")
        typist.expect("> ")
        assert talker.left.wait(DEADLINE_S)
        typist.settle()
        typist.type("half a line" + CTRL_C)
        typist.expect("> ")
        talker.say = lambda body: ["Still here."]
        typist.enter("And now?")
        typist.expect("Still here")
        typist.expect("> ")
        typist.enter("/quit")
        assert typist.end() == 0
    assert [message["content"] for message in talker.bodies[-1]["messages"]] == [
        "Hi",
        "Let me think",
        "And now?",
    ]


def test_two_settings_stream_side_by_side_and_stop_together(talker: Talker, tmp_path: Path) -> None:
    talker.say = lambda body: ["More of it" if "helpful" in body["eft"]["weights"] else "Less of it"]
    with typing(talker, tmp_path) as typist:
        typist.enter("/compare helpful=1 | harmless=1")
        typist.expect("Both answer from now on")
        typist.expect("> ")
        typist.enter("How?")
        typist.expect(r"both with seed \d+")
        typist.expect(r"demo helpful=1 +│ demo harmless=1")
        typist.expect(r"More of it +│ Less of it")
        typist.expect("> ")
        talker.say = lambda body: ["Let me think", "WAIT"]
        typist.enter("And?")
        typist.expect(r"Let me think +│ Let me think")
        typist.type(CTRL_C)
        typist.expect("stopped")
        typist.expect("stopped")
        typist.expect("> ")
        typist.type(CTRL_D)
        assert typist.end() == 0
    assert talker.bodies[0]["seed"] == talker.bodies[1]["seed"]


def test_a_side_that_is_refused_leaves_the_other_its_answer(talker: Talker, tmp_path: Path) -> None:
    talker.say = lambda body: ["REFUSE no room"] if "harmless" in body["eft"]["weights"] else ["Gladly."]
    with typing(talker, tmp_path) as typist:
        typist.enter("/compare helpful=1 | harmless=1")
        typist.expect("Both answer from now on")
        typist.enter("How?")
        typist.expect("Gladly")
        typist.expect("error: 400: no room")
        typist.expect("> ")


def test_in_a_narrow_terminal_one_comes_after_the_other(talker: Talker, tmp_path: Path) -> None:
    talker.say = lambda body: ["More." if "helpful" in body["eft"]["weights"] else "Less."]
    with typing(talker, tmp_path, columns=50) as typist:
        typist.enter("/compare helpful=1 | harmless=1")
        typist.expect("Both answer from now on")
        typist.enter("How?")
        typist.expect(r"left: demo helpful=1[^│]+More\.")
        typist.expect(r"right: demo harmless=1[^│]+Less\.")


def test_what_is_typed_ahead_waits_for_the_next_prompt(talker: Talker, tmp_path: Path) -> None:
    talker.say = lambda body: ["Let me think", "WAIT"]
    with typing(talker, tmp_path) as typist:
        typist.enter("Hi")
        typist.expect("Let me think")
        typist.type("/scale 0.5")
        os.kill(typist.process.pid, signal.SIGINT)
        between = typist.expect("(?s).*stopped.*> ")
        assert "/scale" not in between
        typist.enter("")
        typist.expect(r"\[demo .* scale=0\.5\]")


def test_tab_completes_commands_experts_and_models(talker: Talker, tmp_path: Path) -> None:
    with typing(talker, tmp_path) as typist:
        typist.enter("/wei\thelpf\t0.5")
        typist.expect(r"\[demo helpful=0\.5\]")
        typist.enter("/mod\tdemo-c\t")  # "/model" and "/models" begin alike, so the rest is typed.
        typist.expect("unknown command /mod")
        typist.enter("/model demo-c\t")
        typist.expect(r"\[demo-careful harmless=1 scale=0\.5\]")


def test_what_was_typed_is_there_next_time(talker: Talker, tmp_path: Path) -> None:
    with typing(talker, tmp_path) as typist:
        typist.enter("/weights helpful=0.125")
        typist.expect(r"\[demo helpful=0\.125\]")
        typist.process.send_signal(signal.SIGHUP)
        typist.end()
    (history,) = (tmp_path / "eft").iterdir()
    assert history.stat().st_mode & 0o077 == 0
    with typing(talker, tmp_path) as typist:
        typist.enter(UP)
        typist.expect(r"\[demo helpful=0\.125\]")


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_an_empty_line_parts_thoughts_from_the_answer(environment, talker: Talker, tmp_path: Path) -> None:
    talker.say = lambda body: ["THINK Let me ", "THINK see.", "It is ", "seven.", "THINK Or is it?", "Yes."]
    escapes = r"(\x1b\[\d+m)*"
    with typing(talker, tmp_path, **environment) as typist:
        typist.enter("How many?")
        typist.expect(rf"Let me {escapes}see\.{escapes}\s*\r\n{escapes}\r\n{escapes}It is seven\.")
        typist.expect(rf"\r\n{escapes}\r\n{escapes}Or is it\?{escapes}\r\n{escapes}\r\n{escapes}Yes\.")
        typist.expect("> ")
        typist.enter("/compare helpful=1 | harmless=1")
        typist.expect("Both answer from now on")
        typist.enter("How many?")
        typist.expect(r"Let me see\. +[│|] Let me see\. *(\x1b\[K)?\r\n")
        typist.expect(r"It is seven\. +[│|] It is seven\.")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "dumb", "NO_COLOR": "1"}])
def test_a_dumb_terminal_gets_no_escape(environment, talker: Talker, tmp_path: Path) -> None:
    talker.say = lambda body: ["Hello \x1b[31mthere"]
    with typing(talker, tmp_path, **environment) as typist:
        typist.enter("/compare helpful=1 | harmless=1")
        typist.expect("Both answer from now on")
        typist.enter("Hi")
        typist.expect(r"Hello ␛\[31mthere +│ Hello ␛\[31mthere")
        typist.expect("> ")
        typist.enter("/scale x")
        typist.expect("scale must be a number")
        typist.expect("> ")
        typist.type(CTRL_D)
        assert typist.end() == 0
        assert "\x1b" not in typist.seen


def test_no_color_takes_the_colours_and_nothing_else(talker: Talker, tmp_path: Path) -> None:
    with typing(talker, tmp_path, NO_COLOR="1") as typist:
        typist.enter("/scale x")
        typist.expect("scale must be a number")
        assert not re.search(r"\x1b\[[\d;]*m", typist.seen)


def test_a_history_that_cannot_be_kept_is_said_and_no_obstacle(talker: Talker, tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("in the way")
    with typing(talker, home) as typist:
        assert "the history of what you type cannot be saved" in typist.seen
        typist.enter("Hi")
        typist.expect(r"Hi\r\nHi")
