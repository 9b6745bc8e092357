"""A chat without a terminal: the real command, each line of its input a turn."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eft_client.chat.run import ChatOptions, run

from ..talker import Talker, talking

EFT = [sys.executable, "-c", "from eft_server.cli import main; main()", "chat"]


@pytest.fixture
def talker() -> Iterator[Talker]:
    with talking() as talker:
        yield talker


def piped(talker: Talker, lines: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EFT, "--url", talker.url, *options],
        input=lines,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def said(talker: Talker, index: int = -1) -> list[str]:
    return [message["content"] for message in talker.bodies[index]["messages"]]


def test_each_line_is_a_turn_and_answers_alone_are_printed(talker: Talker) -> None:
    talker.say = lambda body: ["I ", "heard ", body["messages"][-1]["content"]]
    done = piped(talker, "one\n\ntwo\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "I heard one\nI heard two\n", "")
    assert said(talker) == ["one", "I heard one", "two"]


def test_options_are_what_the_first_answer_is_asked_with(talker: Talker) -> None:
    behaviour = "--weights helpful=0.7,harmless=0.2 --scale 1.5 --amplify 1.25 --filter base:0.9"
    sampling = "--temperature 0.5 --max-tokens 9 --seed 3"
    piped(
        talker,
        "Hi\n",
        *behaviour.split(),
        *sampling.split(),
        "--system",
        "Be brief.",
        "--model",
        "demo-careful",
    )
    assert talker.bodies == [
        {
            "model": "demo-careful",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "max_tokens": 9,
            "seed": 3,
            "eft": {
                "weights": {"helpful": 0.7, "harmless": 0.2},
                "scale": 1.5,
                "amplify": 1.25,
                "filter": {"kind": "base", "top_p": 0.9},
            },
            "stream": True,
        }
    ]


def test_without_options_nothing_is_said_of_behaviour(talker: Talker) -> None:
    piped(talker, "Hi\n")
    assert "eft" not in talker.bodies[0]


def test_commands_set_what_comes_after_them(talker: Talker) -> None:
    lines = (
        "/weights helpful=0.7 harmless=0.3\n/temperature 0\n/max-tokens 8\n/seed 5\n/system Be brief.\none\n"
        "/scale 0.5\n/amplify 1.5\n/filter expert:0.9\n/temperature default\ntwo\n"
        "/weights default\n/scale default\n/amplify default\n/filter off\n/system off\n/seed off\nthree\n"
        "/model demo/base\nfour\n"
    )
    assert piped(talker, lines).returncode == 0
    one, two, three, four = talker.bodies
    assert one["eft"] == {"weights": {"helpful": 0.7, "harmless": 0.3}}
    assert (one["temperature"], one["max_tokens"], one["seed"]) == (0, 8, 5)
    assert one["messages"][0] == {"role": "system", "content": "Be brief."}
    assert two["eft"] == one["eft"] | {
        "scale": 0.5,
        "amplify": 1.5,
        "filter": {"kind": "expert", "top_p": 0.9},
    }
    assert "temperature" not in two
    assert three["eft"] == {"filter": None}
    assert "seed" not in three
    assert three["messages"][0] == {"role": "user", "content": "one"}
    assert (four["model"], "eft" in four) == ("demo/base", False)


def test_two_settings_answer_with_one_seed_and_remember_their_own_answers(talker: Talker) -> None:
    talker.say = lambda body: [next(iter(body["eft"]["weights"]))]
    done = piped(
        talker,
        "/compare helpful = 1 | demo-careful harmless = 1, scale=0.5\none\ntwo\n/compare off\n/model demo\n",
    )
    assert (
        done.stdout.splitlines()
        == [
            "left: demo helpful=1",
            "helpful",
            "right: demo-careful harmless=1 scale=0.5",
            "harmless",
        ]
        * 2
    )
    left, right = talker.bodies[2:]
    assert left["seed"] == right["seed"]
    assert (said(talker, 2), said(talker, 3)) == (["one", "helpful", "two"], ["one", "harmless", "two"])
    assert right["model"] == "demo-careful"


def test_weights_may_be_in_a_models_name(talker: Talker) -> None:
    name = "demo:helpful=0.7,harmless=0.2,filter=base:0.9"
    lines = (
        "one\n/scale 0.5\ntwo\n/model demo-careful:filter=off\nthree\n"
        "/compare demo:helpful=0.25,harmless=1 scale=0.5 | demo\nfour\n"
    )
    assert piped(talker, lines, "--model", name, "--weights", "helpful=1").returncode == 0
    one, two, three, left, right = ((body["model"], body.get("eft")) for body in talker.bodies)
    keep = {"filter": {"kind": "base", "top_p": 0.9}}
    assert one == ("demo", {"weights": {"helpful": 1.0}} | keep)
    assert two == ("demo", {"weights": {"helpful": 1.0}, "scale": 0.5} | keep)
    assert three == ("demo-careful", {"filter": None})
    assert left == ("demo", {"weights": {"helpful": 0.25, "harmless": 1.0}, "scale": 0.5})
    assert right == ("demo", None)


def test_a_chat_is_taken_back_asked_again_saved_and_gone_on_with(talker: Talker, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    talker.say = lambda body: [str(len(talker.bodies))]
    piped(talker, f"one\ntwo\n/retry\nthree\n/undo\n/save {path}\n")
    assert [turn["question"] for turn in json.loads(path.read_text())["turns"]] == ["one", "two"]
    assert json.loads(path.read_text())["turns"][1]["answers"][0]["text"] == "3"
    piped(talker, f"/load {path}\nfour\n/clear\nfive\n")
    assert said(talker, -2) == ["one", "1", "two", "3", "four"]
    assert said(talker) == ["five"]


def test_thoughts_are_told_apart_from_the_answers_that_a_pipe_gets(talker: Talker) -> None:
    talker.say = lambda body: ["THINK Hm, ", "THINK \x1b[2Jlet me see.", "It is ", "seven."]
    done = piped(talker, "one\ntwo\n")
    assert done.stdout == "It is seven.\n" * 2
    assert done.stderr == "Hm, ␛[2Jlet me see.\n\n" * 2
    assert said(talker) == ["one", "It is seven.", "two"]


def test_an_answer_that_is_all_thought_leaves_the_pipe_empty(talker: Talker) -> None:
    talker.say = lambda body: ["THINK Hm"]
    done = piped(talker, "one\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "Hm\n")


def test_a_line_may_go_on_and_may_begin_with_a_slash(talker: Talker) -> None:
    piped(talker, "one\\\ntwo\n//weights are what?\n")
    assert said(talker)[::2] == ["one\ntwo", "/weights are what?"]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_last_line_keeps_its_backslash_since_it_goes_on_nowhere(end: str, talker: Talker) -> None:
    done = piped(talker, "one\nWhat is in C:\\" + end)
    assert done.returncode == 0
    assert said(talker)[::2] == ["one", "What is in C:\\"]


def test_several_lines_that_end_without_the_last_are_asked_all_the_same(talker: Talker) -> None:
    piped(talker, "one\\\ntwo\\\n")
    assert said(talker) == ["one\ntwo\\"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_byte_order_mark_blank_lines_and_crlf_are_nothing(encoding: str, talker: Talker) -> None:
    done = subprocess.run(
        [*EFT, "--url", talker.url],
        input=b"\xef\xbb\xbf/weights helpful=0.5\r\n\r\n \r\none\\\r\ntwo\r\n",
        capture_output=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert [said(talker), talker.bodies[0]["eft"]] == [["one\ntwo"], {"weights": {"helpful": 0.5}}]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (b"caf\xe9 ol\xc3\xa9\n", b"error: line 1 of the input: not UTF-8: "),
        ("one\n".encode("utf-16"), b"error: line 1 of the input: UTF-16, and not UTF-8; convert it"),
        ("one\n".encode("utf-16-le"), b"error: line 1 of the input: zero bytes, as in UTF-16"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_what_is_not_utf_8_is_refused_and_not_asked(
    lines: bytes, told: bytes, encoding: str, talker: Talker
) -> None:
    done = subprocess.run(
        [*EFT, "--url", talker.url],
        input=lines,
        capture_output=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert (done.returncode, done.stdout, talker.bodies) == (1, b"", [])
    assert done.stderr.startswith(told) and done.stderr.count(b"\n") == 1


def test_a_line_that_is_not_utf_8_is_named_after_those_before_it(talker: Talker) -> None:
    lines = "\ufeffol\u00e9\n\n\ufeffone\n".encode() + b"\xff\n"
    done = subprocess.run(
        [*EFT, "--url", talker.url], input=lines, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, b"line 4 of the input: not UTF-8" in done.stderr) == (1, True)
    assert said(talker)[::2] == ["ol\u00e9", "one"]


def test_what_a_model_writes_cannot_act_on_a_terminal(talker: Talker) -> None:
    talker.say = lambda body: ["\x1b]0;mine\x07", "\x1b", "[2J", "\u202e", "fine"]
    done = piped(talker, "Hi\n/history\n")
    assert done.stdout.startswith("␛]0;mine␇␛[2J\ufffdfine\n")
    assert not set(done.stdout) & set("\x1b\x07\u202e")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/weights helpful=7", "helpful=7 is out of bounds; allowed: 0 to 2"),
        ("/weights helpfull=1", "known: helpful, harmless"),
        ("/weights helpful", "expert=number"),
        ("/wieghts helpful=1", "unknown command /wieghts; /help lists the commands"),
        ("/model large", "there is no model 'large'; known: demo, demo-careful, demo/base"),
        ("/model large:helpful=1", "there is no model 'large'; known: demo, demo-careful, demo/base"),
        ("/model demo:helpful=7", "helpful=7 is out of bounds; allowed: 0 to 2"),
        ("/model demo:helpfull=1", "there is no expert 'helpfull'; known: helpful, harmless"),
        ("/model demo:", "there is no model 'demo:'"),
        ("/model demo/base:helpful=1", "demo/base is a single member and takes no weights"),
        ("/scale x", "scale must be a number, not 'x'"),
        ("/max-tokens 0", "max-tokens must be a whole number from 1, not '0'"),
        ("/seed -1", "seed must be a whole number"),
        ("/temperature -1", "temperature must be a finite number from 0, not -1"),
        ("/filter nucleus:0.9", "expert:TOP_P or base:TOP_P"),
        ("/filter base:2", "allowed: 0 to 1"),
        ("/compare helpful=1", "LEFT | RIGHT"),
        ("/compare", "nothing is compared"),
        ("/compare demo demo/base | demo", "names several models"),
        ("/retry", "nothing to ask again"),
        ("/undo", "nothing to undo"),
        ("/save", "/save needs a file"),
        ("/load /nowhere/chat.json", "cannot be read"),
        ("/clear all", "/clear takes no argument"),
        (
            "REFUSE eft.weights.helpful: the operator says \x1b[2Jno",
            "400: eft.weights.helpful: the operator says ␛[2Jno",
        ),
    ],
)
def test_what_goes_wrong_ends_it_in_words(
    line: str, words: str, talker: Talker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talker.say = lambda body: [body["messages"][-1]["content"]]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{line}\nnever asked\n"))
    assert run(ChatOptions(url=talker.url, sampling={})) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ")
    assert words in complaint
    assert "\x1b" not in complaint
    assert "never asked" not in json.dumps(talker.bodies)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--weights", "helpful=7"), "out of bounds; allowed: 0 to 2"),
        (("--weights", "helpful=1,helpful=0"), "'helpful' is named twice"),
        (
            ("--weights", "helpful=much"),
            "helpful must be a number, not 'much'; expected expert=number, like",
        ),
        (("--weights", ""), "no weight in it"),
        (("--amplify", "7"), "amplify=7 is out of bounds; allowed: "),
        (("--filter", "small:0.9"), "filter must be expert:TOP_P or base:TOP_P"),
        (("--model", "large"), "known: demo"),
        (("--api-key-env", "NO_SUCH_VARIABLE"), "the environment has no variable 'NO_SUCH_VARIABLE'"),
        (("--temperature", "inf"), "temperature must be a finite number from 0, not inf"),
        (("--scale", "nan"), "scale=nan is out of bounds"),
        (("--url", "nonsense"), "is no base URL"),
        (("--url", "http://127.0.0.1:9/v1"), "http://127.0.0.1:9/v1: "),
    ],
)
def test_a_beginning_that_cannot_be_is_an_error_in_words(options, words, talker: Talker) -> None:
    done = piped(talker, "Hi\n", *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert talker.bodies == []


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_ends_it_in_one_line(unbuffered: str, talker: Talker) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*EFT, "--url", talker.url],
            input=b"one\ntwo\n",
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    told = b"error: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr, len(talker.bodies)) == (1, told, 1)


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_a_chat_without_input_or_output_is_refused_in_one_line(closed: str, talker: Talker) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *EFT, "--url", talker.url]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert done.stderr.startswith(b"error: a chat needs a standard input and a standard output")


def test_an_output_that_takes_no_more_ends_it_quietly(talker: Talker) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*EFT, "--url", talker.url],
        input=b"Hi\n",
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert b"Traceback" not in done.stderr
