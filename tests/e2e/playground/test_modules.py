"""The pure modules of /playground, run by a real browser: no engine, and input as it should not be."""

import ast
import itertools
import json
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

STATIC = Path(str(files("eft_server.playground") / "static"))

BOUNDS = {
    "weights": {"helpful": {"min": 0, "max": 2}, "harmless": {"min": 0, "max": 2}},
    "scale": {"min": 0, "max": 2},
    "amplify": {"min": 0, "max": 2},
    "total": 2,
}


def _card(name: str, kind: str, weights: dict[str, float], bounds: Any) -> dict[str, Any]:
    eft = {"kind": kind, "weights": weights, "scale": 1, "amplify": 1, "filter": None, "bounds": bounds}
    return {"id": name, "max_model_len": 512, "eft": eft}


CARDS = [
    _card("demo", "composite", {"helpful": 0.5, "harmless": 0.5}, BOUNDS),
    _card("demo-harmless", "alias", {"helpful": 0, "harmless": 1}, BOUNDS),
    _card("demo/base", "member", {}, None),
    _card("demo/helpful", "member", {}, None),
]
SETTINGS: dict[str, Any] = {
    "model": "demo",
    "weights": {"helpful": 0.5, "harmless": 0.5},
    "scale": 1,
    "amplify": 1,
    "filter": None,
    "temperature": 1,
    "top_p": 1,
    "max_tokens": 64,
    "seed": 7,
}
HOSTILE = [
    "",
    "plain",
    'it\'s "quoted" \\ $HOME `id` $(id) %s !!',
    "\nlines\r\n\ttabs\x00\x07\x1b[31m",
    "</script><img src=x onerror=alert(1)><!--",
    "__proto__",
    "@/etc/passwd",
    "END\nEND",
    "RTL \u202e gnidda \u200f\u2066 \u2028 \ufeff",
    "emoji 👩‍🚀 and \U0001d4b3 and \U000e0041",
    "'''\"\"\"",
    "{name} %(x)s \\N{BULLET} \\u0041",
]
LONE = "a\ud800b"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args: Any) -> None:
        pass

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.removeprefix("/playground"))


@pytest.fixture(scope="module")
def static_url() -> Iterator[str]:
    """Where the files of the page are, sent as they lie in the package."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=STATIC))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def page(browser: Browser, static_url: str) -> Iterator[Page]:
    """A page beside the modules."""
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(f"{static_url}/icon.svg")
    yield opened
    context.close()


def _call(page: Page, module: str, expression: str, argument: Any = None) -> Any:
    """The value of an expression over the module `m` and the argument `x`; JSON carries both, lone surrogates too."""
    source = f"""async (given) => {{
        const m = await import("/playground/js/{module}.js");
        const x = JSON.parse(given);
        return JSON.stringify(await ({expression}) ?? null);
    }}"""
    return json.loads(page.evaluate(source, json.dumps(argument)))


# Addresses


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"weights": {"helpful": 1e-7, "harmless": 1.9}},
        {"filter": {"kind": "base", "top_p": 0.9}, "seed": None},
        {"seed": 2**53 - 1, "temperature": 0, "top_p": 0.05, "max_tokens": 1},
        {"model": "demo-harmless", "weights": {"helpful": 0, "harmless": 0}, "scale": 0},
    ],
)
def test_an_address_gives_the_same_settings_again(page: Page, change: dict[str, Any]) -> None:
    settings = SETTINGS | change
    found = _call(
        page, "address", "m.fromHash(m.toHash(x[0], x[1]), x[1], x[2])", [settings, CARDS, SETTINGS]
    )
    assert found == {"settings": settings, "notices": []}


def test_an_address_of_a_plain_member_has_no_weights(page: Page) -> None:
    settings = SETTINGS | {"model": "demo/base"}
    address = _call(page, "address", "m.toHash(...x)", [settings, CARDS])
    assert address == "#v=1&m=demo/base&t=1&p=1&n=64&seed=7"
    found = _call(page, "address", "m.fromHash(...x)", [address, CARDS, SETTINGS])
    assert found == {"settings": settings, "notices": []}


@pytest.mark.parametrize(
    ("words", "change", "notice"),
    [
        (
            "w.helpful=7",
            {"weights": {"helpful": 2, "harmless": 0}},
            "helpful in the address is 7; allowed: 0 to 2. It is 2 now.",
        ),
        ("w.helpful=-1e300", {"weights": {"helpful": 0, "harmless": 0.5}}, "allowed: 0 to 2. It is 0 now."),
        ("s=NaN", {}, "scale in the address is “NaN”, which is no number"),
        ("t=1e999", {}, "which is no number"),
        ("t=", {}, "which is no number"),
        ("t=0x10", {}, "which is no number"),
        ("n=3.5", {"max_tokens": 4}, "allowed: a whole number from 1 to 512. It is 4 now."),
        ("n=99999999", {"max_tokens": 512}, "It is 512 now."),
        ("p=0", {"top_p": 0.01}, "allowed: above 0, up to 1. It is 0.01 now."),
        ("seed=1e300", {"seed": 2**53 - 1}, "allowed: a whole number from 0 on."),
        ("f=expert", {}, "which is no number"),
        ("f=expert:2", {"filter": {"kind": "expert", "top_p": 1}}, "allowed: 0 to 1"),
        ("f=<b>", {}, "is no filter"),
        ("w.__proto__=1", {}, "takes no weight for “__proto__”"),
        ("w.constructor=1", {}, "takes no weight for “constructor”"),
        ("__proto__=1", {}, "means nothing here"),
        ("prompt=secret", {}, "means nothing here"),
        ("key=secret", {}, "means nothing here"),
        ("t=0.5&t=1.5", {"temperature": 0.5}, "twice; the first one counts"),
        ("m=none", {}, "This server has no model “none”."),
        ("%E2%80%AE=1&t=0.5", {"temperature": 0.5}, "“\ufffd”"),
    ],
)
def test_what_an_address_should_not_say_is_ignored_with_a_notice(
    page: Page, words: str, change: dict[str, Any], notice: str
) -> None:
    base = {} if words.startswith("m=") else {"m": "demo"}
    start = "".join(f"&{name}={value}" for name, value in base.items())
    weights = "" if "weights" not in change or change["weights"]["harmless"] else "&w.harmless=0"
    seed = "" if words.startswith("seed") else "&seed=7"
    found = _call(
        page, "address", "m.fromHash(...x)", [f"#v=1{start}{weights}{seed}&{words}", CARDS, SETTINGS]
    )
    assert found["settings"] == SETTINGS | change
    assert len(found["notices"]) == 1
    assert notice in found["notices"][0]


@pytest.mark.parametrize("text", ["#", "", "#v=2&m=demo&t=0", "#t=0", "#%", "#v=1&" + "t=0&" * 5000])
def test_another_address_changes_nothing(page: Page, text: str) -> None:
    found = _call(page, "address", "m.fromHash(...x)", [text, CARDS, SETTINGS])
    assert found["settings"] == SETTINGS
    assert len(found["notices"]) == (len(text) > 1)


def test_an_address_above_the_total_says_so(page: Page) -> None:
    found = _call(
        page, "address", "m.fromHash(...x)", ["#v=1&m=demo&w.helpful=2&w.harmless=1&s=2", CARDS, SETTINGS]
    )
    assert found["settings"]["weights"] == {"helpful": 2, "harmless": 1}
    assert found["notices"] == [
        "Scale times the sum of the weights is above 2, which the server refuses: lower one of them."
    ]


# Alignment


def _tokens(*texts: str) -> list[dict[str, Any]]:
    return [{"id": hash(text) % 1000, "text": text} for text in texts]


def test_the_first_difference_is_that_of_the_ids(page: Page) -> None:
    one, other = _tokens("To", " make", " it"), _tokens("To", " make", " that", " go")
    first = partial(_call, page, "align", "m.firstDifference(...x)")
    assert first([one, other]) == 2
    assert first([one, one]) is None
    assert first([one, one[:2]]) == 2
    assert first([[], one]) == 0
    assert first([[], []]) is None
    assert first([[{"id": 1, "text": "a"}], [{"id": 2, "text": "a"}]]) == 0


def test_words_are_aligned_whatever_tokens_they_are_made_of(page: Page) -> None:
    one = _tokens("I", " ne", "ed", " salt", ".")
    other = _tokens("I", " need", " a", " little", " salt", ".")
    runs = _call(page, "align", "m.align(...x)", [one, other])
    assert runs == [
        {"same": True, "a": [0, 3], "b": [0, 2]},
        {"same": False, "a": [3, 3], "b": [2, 4]},
        {"same": True, "a": [3, 5], "b": [4, 6]},
    ]
    assert _call(page, "align", "m.counterpart(...x)", [runs, "a", 4])["index"] == 5
    assert _call(page, "align", "m.counterpart(...x)", [runs, "b", 3])["index"] == 3
    assert _call(page, "align", "m.counterpart(...x)", [runs, "b", 6]) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([], []),
        (["a"], []),
        ([], ["a", " b"]),
        (["a", " b", " c"], ["x", " y"]),
        (["你", "好", "吗"], ["你", "们", "好", "吗"]),
        (["\u202eabc", " __proto__", "\n\n", "</script>"], [" __proto__", "\n", "</script>", "constructor"]),
    ],
)
def test_runs_cover_both_sides_in_order(page: Page, one: list[str], other: list[str]) -> None:
    runs = _call(page, "align", "m.align(...x)", [_tokens(*one), _tokens(*other)])
    for side, texts in (("a", one), ("b", other)):
        ends = [0, *(run[side][1] for run in runs)]
        assert [run[side][0] for run in runs] == ends[:-1]
        assert ends[-1] == len(texts)
    assert all(before["same"] != after["same"] for before, after in itertools.pairwise(runs))
    for run in runs:
        if run["same"]:
            assert "".join(one[slice(*run["a"])]) == "".join(other[slice(*run["b"])])


def test_characters_split_into_other_tokens_are_not_the_same(page: Page) -> None:
    one = [{"id": 1, "text": "\ufffd"}, {"id": 2, "text": "\ufffd"}]
    other = [{"id": 1, "text": "\ufffd"}, {"id": 3, "text": "\ufffd"}]
    assert _call(page, "align", "m.align(...x)", [one, other]) == [{"same": False, "a": [0, 2], "b": [0, 2]}]


def test_long_texts_with_nothing_in_common_are_one_run(page: Page) -> None:
    sides = [[{"id": at * 2 + odd, "text": f" {at * 2 + odd}"} for at in range(3000)] for odd in (0, 1)]
    assert _call(page, "align", "m.align(...x)", sides) == [{"same": False, "a": [0, 3000], "b": [0, 3000]}]


# Snippets


def _snippets(page: Page, text: str, mode: str = "chat", **change: Any) -> dict[str, str]:
    settings = SETTINGS | change
    eft = {
        "weights": settings["weights"],
        "scale": 1,
        "amplify": 1,
        "filter": {"kind": "expert", "top_p": 0.9},
    }
    messages = [{"role": "system", "content": text}, {"role": "user", "content": text}]
    conversation = {"mode": mode, "messages": messages, "prompt": text}
    request = {
        "settings": settings,
        "conversation": conversation,
        "eft": eft,
        "base": "http://[::1]:80/it's/v1",
    }
    found = _call(page, "snippets", "m.snippets(x)", request)
    assert isinstance(found, dict)
    return found


def _expected(page: Page, text: str, mode: str, **change: Any) -> dict[str, Any]:
    settings = SETTINGS | change
    messages = [{"role": "system", "content": text}, {"role": "user", "content": text}]
    sampling = {name: settings[name] for name in ("model", "max_tokens", "temperature", "top_p", "seed")}
    question: dict[str, Any] = {"messages": messages} if mode == "chat" else {"prompt": text}
    eft = {
        "weights": settings["weights"],
        "scale": 1,
        "amplify": 1,
        "filter": {"kind": "expert", "top_p": 0.9},
    }
    return {**question, **{name: value for name, value in sampling.items() if value is not None}, "eft": eft}


def _shell(script: str) -> tuple[list[str], str]:
    """The arguments and the input that a shell gives to curl."""
    function = 'curl() { printf "%s\\0" "$@"; if [ "${!#}" = @- ]; then cat; fi; }\n'
    done = subprocess.run(
        ["/bin/bash"],
        input=(function + script).encode(),
        check=True,
        capture_output=True,
        env={"EFT_API_KEY": "k", "PATH": "/usr/bin:/bin"},
    )
    *arguments, rest = done.stdout.decode().split("\0")
    return arguments, rest


@pytest.mark.parametrize("mode", ["chat", "text"])
@pytest.mark.parametrize("text", [*HOSTILE, LONE])
def test_curl_sends_what_the_page_asks(page: Page, text: str, mode: str) -> None:
    arguments, _ = _shell(_snippets(page, text, mode)["curl"])
    path = "chat/completions" if mode == "chat" else "completions"
    assert arguments[:-1] == [
        "-s",
        f"http://[::1]:80/it's/v1/{path}",
        "-H",
        "Content-Type: application/json",
        "-H",
        "Authorization: Bearer k",
        "-d",
    ]
    assert json.loads(arguments[-1]) == _expected(page, text, mode)


def test_curl_pipes_a_body_that_is_no_argument(page: Page) -> None:
    text = "END\n'it''s'\n" * 10_000
    arguments, body = _shell(_snippets(page, text)["curl"])
    assert arguments[-2:] == ["--data-binary", "@-"]
    assert json.loads(body) == _expected(page, text, "chat")


def _call_in(code: str) -> tuple[str, list[Any], dict[str, Any]]:
    """The call that gives the answer: its function, and its arguments as literals."""
    tree = ast.parse(code)
    [call] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "answer"
    ]
    assert isinstance(call, ast.Call)
    values = {word.arg or "": ast.literal_eval(word.value) for word in call.keywords}
    return ast.unparse(call.func), [ast.literal_eval(each) for each in call.args], values


@pytest.mark.parametrize("mode", ["chat", "text"])
@pytest.mark.parametrize("text", [*HOSTILE, LONE])
def test_python_sends_what_the_page_asks(page: Page, text: str, mode: str) -> None:
    made = _snippets(page, text, mode, seed=None, temperature=0.1, max_tokens=1)
    expected = _expected(page, text, mode, seed=None, temperature=0.1, max_tokens=1)
    function, positional, values = _call_in(made["openai"])
    assert function == ("client.chat.completions.create" if mode == "chat" else "client.completions.create")
    extra = values.pop("extra_body")
    assert values | extra == expected
    assert positional == []

    function, positional, values = _call_in(made["eft"])
    assert function == ("client.chat" if mode == "chat" else "client.complete")
    assert positional == [expected.pop("messages" if mode == "chat" else "prompt")]
    behaviour = expected.pop("eft")
    assert values == expected | behaviour


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_unseen_is_in_a_snippet(page: Page, text: str) -> None:
    for code in _snippets(page, text).values():
        assert all(character.isprintable() or character in {"\n", "\u200d"} for character in code)


def test_python_literals_are_those_of_python(page: Page) -> None:
    value = {
        "on": True,
        "off": False,
        "none": None,
        "numbers": [0, -0.5, 1e-7, 1e21, 2**53 - 1],
        "empty": [{}, []],
    }
    assert ast.literal_eval(_call(page, "snippets", "m.python(x)", value)) == value
    deep = {"a": [{"b": "x" * 60, "c": ["y" * 60, {"d": "z" * 60}]}]}
    assert ast.literal_eval(_call(page, "snippets", "m.python(x)", deep)) == deep


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("/playground", "http://h:8/v1"),
        ("/playground/", "http://h:8/v1"),
        ("/a/playground", "http://h:8/a/v1"),
        ("/playground/playground", "http://h:8/playground/v1"),
    ],
)
def test_the_address_of_the_api_is_beside_the_page(page: Page, path: str, base: str) -> None:
    assert _call(page, "snippets", "m.baseUrl(x)", {"origin": "http://h:8", "pathname": path}) == base


# Words


def _words(page: Page, kind: str, received: int = 0, **failure: Any) -> dict[str, Any]:
    expression = """(async () => {
        const { Failure } = await import("/playground/js/api.js");
        return m.inWords(new Failure(x.kind, x.failure), { received: x.received });
    })()"""
    found = _call(page, "words", expression, {"kind": kind, "failure": failure, "received": received})
    assert isinstance(found, dict)
    return found


BOUND = "eft.weights.helpful: 3.0 is out of bounds; allowed: 0 to 2"


@pytest.mark.parametrize(
    ("kind", "failure", "title", "text", "again"),
    [
        (
            "refused",
            {"status": 400, "message": BOUND, "param": "eft.weights.helpful"},
            "The server refused the weight of helpful",
            f"{BOUND}.",
            False,
        ),
        (
            "refused",
            {"status": 400, "message": "too hot", "param": "temperature"},
            "The server refused the temperature",
            "temperature: too hot.",
            False,
        ),
        (
            "refused",
            {"status": 400, "message": "513 tokens", "code": "context_length_exceeded"},
            "The text is too long for this model",
            "513 tokens. Shorten the prompt, or lower max tokens.",
            False,
        ),
        (
            "refused",
            {"status": 422, "message": ""},
            "The server refused the request",
            "It answered 422.",
            False,
        ),
        (
            "refused",
            {"status": 404, "message": "no model x", "code": "model_not_found"},
            "The server has no such model",
            "no model x. Reload the page to see the models that it has now.",
            False,
        ),
        (
            "refused",
            {"status": 404},
            "The server has nothing at this address",
            "It may be older than this page.",
            False,
        ),
        (
            "refused",
            {"status": 413, "message": "at most 16 MiB"},
            "The request is too large",
            "at most 16 MiB. Shorten the prompt or the conversation.",
            False,
        ),
        (
            "unauthorised",
            {"status": 401},
            "The server wants an API key",
            "The key is missing or wrong.",
            False,
        ),
        (
            "unauthorised",
            {"status": 403, "message": "read-only key"},
            "This API key may not do that",
            "read-only key. Use another key.",
            False,
        ),
        (
            "busy",
            {"status": 408},
            "The request did not reach the server in time",
            "The connection may be slow. Try again.",
            True,
        ),
        (
            "busy",
            {"status": 429, "retryAfter": 3},
            "The server is busy",
            "It has as many requests as it takes. Try again in 3 s.",
            True,
        ),
        (
            "busy",
            {"status": 502},
            "The server cannot be reached behind its gateway",
            "It may be starting or stopping. Try again in a moment.",
            True,
        ),
        (
            "busy",
            {"status": 503, "message": "The server is starting.", "retryAfter": 300},
            "The server takes no requests now",
            "The server is starting. Try again in 5 min.",
            True,
        ),
        (
            "busy",
            {"status": 504},
            "The answer took too long",
            "The server gave up on it. Lower max tokens, or try again when it is less busy.",
            True,
        ),
        (
            "lost",
            {"message": "Failed to fetch"},
            "The connection to the server is lost",
            "The server does not answer: it may have stopped, or the network is down. Try again when it is back.",
            True,
        ),
        (
            "lost",
            {"message": "the stream ended early"},
            "The connection to the server is lost",
            "The stream broke off before its end. Try again when it is back.",
            True,
        ),
        (
            "ended",
            {"status": 500},
            "The server failed while it answered",
            "It gave no reason; its log has one. Try again; if it stays, tell whoever runs the server.",
            True,
        ),
        (
            "ended",
            {"status": 503, "message": "stopping"},
            "The server is stopping",
            "stopping. Try again; if it stays, tell whoever runs the server.",
            True,
        ),
        (
            "file",
            {"message": "The file is no JSON"},
            "The file was not opened",
            "The file is no JSON.",
            False,
        ),
        ("stopped", {}, "Stopped", "You stopped this answer.", True),
    ],
)
def test_failures_are_told_in_words(
    page: Page, kind: str, failure: dict[str, Any], title: str, text: str, again: bool
) -> None:
    assert _words(page, kind, **failure) == {"title": title, "text": text, "again": again}


def test_what_had_come_is_said_to_be_kept(page: Page) -> None:
    assert _words(page, "lost", received=1)["text"].endswith("What had come is kept: 1 token.")
    assert (
        _words(page, "stopped", received=12)["text"]
        == "You stopped this answer. What had come is kept: 12 tokens."
    )
    assert "kept" not in _words(page, "file", received=12)["text"]


def test_a_servers_words_are_bounded_and_can_be_read(page: Page) -> None:
    text = _words(page, "refused", status=400, message="a\u202eb\x1b[31m\nc" + "x" * 5000, param="\u2066p")[
        "text"
    ]
    assert text.startswith("\ufffdp: a\ufffdb\ufffd[31m cxxx")
    assert len(text) < 700


@pytest.mark.parametrize(
    "error",
    [
        "new TypeError('no')",
        "'no'",
        "{message: 'no'}",
        "Object.assign(new Error('no'), {kind: 'constructor', name: 'Failure'})",
    ],
)
def test_other_errors_are_the_pages(page: Page, error: str) -> None:
    found = _call(page, "words", f"m.inOneSentence({error})")
    assert found == "Something in this page went wrong. no. What was written is still here."


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "Waiting for the first token …"),
        ({"seconds": 9.6}, "Waiting for the first token … Waiting for 9 s."),
        ({"ahead": 0}, "The server is busy; this request is next."),
        ({"ahead": 1}, "The server is busy; 1 request is ahead."),
        ({"ahead": 3, "seconds": 12}, "The server is busy; 3 requests are ahead. Waiting for 12 s."),
    ],
)
def test_waiting_is_told_in_words(page: Page, state: dict[str, Any], words: str) -> None:
    assert _call(page, "words", "m.waiting(x)", state) == words


# Sessions


def _token(at: int, text: str) -> dict[str, Any]:
    return {"id": at, "text": text, "logprob": -0.5, "explained": {"index": 0}}


def _state() -> dict[str, Any]:
    """A state of the page with every part in it, and with texts that are not harmless."""
    tokens = [_token(1, text) for text in (*HOSTILE, LONE)] + [
        {"id": 2, "text": "\ufffd", "logprob": None, "bytes": [240], "special": True}
    ]
    prompt = {
        "id": 1,
        "kind": "prompt",
        "parent": None,
        "mode": "chat",
        "messages": [{"role": "user", "content": "</script>"}],
        "text": "",
        "ids": [1, 2],
        "prompts": {"base": [1]},
    }
    piece = {
        "id": 2,
        "kind": "piece",
        "parent": 1,
        "at": 0,
        "tokens": tokens,
        "settings": SETTINGS,
        "origin": "answer",
        "state": "done",
        "finish": "stop",
        "failure": {"kind": "lost"},
    }
    conversation = {"mode": "chat", "messages": prompt["messages"], "prompt": ""}
    prepared = {"ids": [1, 2], "prompts": None}
    answer = {"settings": SETTINGS, "tokens": tokens[:2], "finish": "length"}
    scores = {"tokens": 2, "logprob": -0.5, "kl": None, "rewards": {"helpful": 0.5, "harmless": None}}
    row = {"value": 0.5, "tokens": tokens[:2], "finish": None, "scores": scores}
    return {
        "settings": SETTINGS,
        "conversation": {"mode": "chat", "system": "", "draft": LONE},
        "tree": {
            "nodes": {"1": prompt, "2": piece},
            "current": 2,
            "past": [None, 1],
            "future": [2],
            "next": 3,
        },
        "compare": {
            "b": SETTINGS | {"model": "demo/base"},
            "result": {"conversation": conversation, "prompt": prepared, "a": answer, "b": answer},
        },
        "sweep": {
            "what": "weights.helpful",
            "hold": True,
            "from": None,
            "to": 2,
            "steps": 5,
            "result": {
                "conversation": conversation,
                "settings": SETTINGS,
                "what": "weights.helpful",
                "hold": False,
                "prompt": prepared,
                "rows": [row],
            },
        },
    }


def _kept(value: Any) -> Any:
    if isinstance(value, list):
        return [_kept(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: _kept(item) for name, item in value.items() if name != "explained"}
    return kept | ({"failure": None} if "failure" in kept else {})


def test_a_session_comes_back_as_it_went_out(page: Page) -> None:
    found = _call(page, "session", "m.importSession(m.exportSession(x[0], x[1]), x[1])", [_state(), CARDS])
    assert found.pop("saved_at")
    assert found == _kept(_state())


def test_a_session_that_is_almost_empty_comes_back(page: Page) -> None:
    tree = {"nodes": {}, "current": None, "past": [], "future": [], "next": 1}
    state = {"settings": SETTINGS, "conversation": {"mode": "text", "system": "", "draft": ""}, "tree": tree}
    found = _call(page, "session", "m.importSession(m.exportSession(x[0], x[1]), x[1])", [state, CARDS])
    assert found.pop("saved_at")
    assert found == state | {"compare": None, "sweep": None}


def test_a_file_says_what_it_is(page: Page) -> None:
    text = _call(page, "session", "m.exportSession(x[0], x[1], new Date(0))", [_state(), CARDS])
    data = json.loads(text)
    assert list(data)[:4] == ["format", "version", "saved_at", "server"]
    assert data["server"] == {"model": "demo", "members": ["base", "helpful"]}
    assert data["saved_at"] == "1970-01-01T00:00:00.000Z"
    name = _call(page, "session", "m.fileName(x, new Date(0))", CARDS)
    assert name == "eft-demo-1970-01-01T00-00-00.json"


def _refusal(page: Page, file: str) -> str:
    expression = """(() => {
        try { m.importSession(...x); return null; } catch (e) { return `${e.name}: ${e.message}`; }
    })()"""
    found = _call(page, "session", expression, [file, CARDS])
    assert isinstance(found, str), "it was taken"
    return found


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("format", "other", 'format is "other"; expected "eft-playground"'),
        ("version", 2, "version is 2; expected 1"),
        ("server.members", ["base"], 'server.members are "base": the session comes from another family'),
        (
            "settings.model",
            "gone",
            'settings.model is "gone"; this server has demo, demo-harmless, demo/base, demo/helpful',
        ),
        ("settings.weights.helpful", 7, "settings.weights.helpful is 7; allowed here: 0 to 2"),
        ("settings.weights.helpful", "1", 'settings.weights.helpful is "1"; expected a finite number'),
        (
            "settings.weights",
            {"evil": 1},
            'settings.weights has "evil"; this server\'s experts are helpful, harmless',
        ),
        ("settings.max_tokens", 1.5, "settings.max_tokens is 1.5; expected a whole number"),
        ("settings.top_p", 0, "settings.top_p is 0; allowed here: above 0, up to 1"),
        (
            "settings.filter",
            {"kind": "x", "top_p": 1},
            'settings.filter.kind is "x"; expected "expert", "base"',
        ),
        ("settings", [], "settings is a list; expected an object"),
        ("conversation.draft", None, "conversation.draft is null; expected text"),
        ("tree.nodes.2.parent", 2, "tree.nodes.2.parent is 2; expected an earlier node"),
        ("tree.nodes.2.parent", 9, "tree.nodes.2.parent is 9; expected an earlier node"),
        ("tree.nodes.2.at", 1, "tree.nodes.2.at is 1; that answer has 0 tokens"),
        ("tree.nodes.2.id", 1, "tree.nodes.2.id is 1; expected 2"),
        ("tree.nodes.1.parent", 1, "tree.nodes.1.parent is 1; expected an earlier node"),
        ("tree.nodes.1.ids", [-1], "tree.nodes.1.ids[0] is -1; expected a whole number from 0 to 2147483647"),
        ("tree.nodes.1.ids", [2**31], "tree.nodes.1.ids[0] is 2147483648; expected a whole number"),
        (
            "tree.nodes.1.messages",
            [{"role": "<b>", "content": ""}],
            'messages[0].role is "<b>"; expected "system"',
        ),
        ("tree.nodes.2.tokens", [{"id": 1, "text": 1, "logprob": 0}], "tokens[0].text is 1; expected text"),
        (
            "tree.nodes.2.tokens",
            [{"id": 1, "text": "", "logprob": 0, "bytes": [256]}],
            "bytes[0] is 256; expected",
        ),
        ("tree.nodes.2", None, "tree.nodes.2 is null; expected an object"),
        ("tree.current", 3, "tree.current names node 3, which is not there"),
        ("tree.past", [7], "tree.past names node 7, which is not there"),
        ("tree.next", 2, "tree.next is 2; expected more than 2"),
        ("tree.nodes.2.settings.model", "gone", 'tree.nodes.2.settings.model is "gone"; this server has'),
        (
            "compare.result.a.settings.weights",
            {"x": 1},
            'compare.result.a.settings.weights has "x"; this server\'s',
        ),
        ("sweep.result.hold", 1, "sweep.result.hold is 1; expected true or false"),
        ("compare.b.model", "\u202e", 'compare.b.model is "\ufffd"; this server has'),
        ("sweep.steps", 1e9, "sweep.steps is 1000000000; expected a whole number from 2 to 100"),
        ("sweep.result.rows", [{}] * 101, "sweep.result.rows has 101 entries; allowed: up to 100"),
    ],
)
def test_a_session_that_cannot_be_is_refused_with_the_place(
    page: Page, place: str, value: Any, message: str
) -> None:
    data = json.loads(_call(page, "session", "m.exportSession(...x)", [_state(), CARDS]))
    *way, last = place.split(".")
    inside = data
    for name in way:
        inside = inside[name]
    inside[last] = value
    found = _refusal(page, json.dumps(data))
    assert found.startswith("Misfit: ")
    assert message in found


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("", "The file is no JSON"),
        ("{", "The file is no JSON"),
        ("null", "The file is no session of this page"),
        ("[]", "The file is no session of this page"),
        ("{}", "The file is no session of this page"),
        ('{"__proto__": {"format": "eft-playground"}}', "The file is no session of this page"),
        ('{"format": "eft-playground", "version": 1}', "saved_at is missing; expected text"),
    ],
)
def test_another_file_is_refused(page: Page, file: str, message: str) -> None:
    assert message in _refusal(page, file)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(page: Page) -> None:
    """The page makes it, since bringing it there takes long."""
    expression = """(() => {
        try { m.importSession("x".repeat(40_000_001), x); } catch ({ message }) { return message; }
    })()"""
    assert _call(page, "session", expression, CARDS) == "The file is too large; allowed: up to 40 MB"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"scale":1,', '"scale":1e999,', "settings.scale is Infinity; expected a finite number"),
        ('"scale":1,', '"scale":NaN,', "The file is no JSON"),
        (
            '"helpful":0.5,',
            '"__proto__":0.5,',
            'settings.weights has the name "__proto__", which is not allowed',
        ),
    ],
)
def test_numbers_and_names_that_json_lets_through_are_refused(
    page: Page, old: str, new: str, message: str
) -> None:
    text = _call(page, "session", "m.exportSession(...x)", [_state(), CARDS])
    assert old in text
    assert message in _refusal(page, text.replace(old, new, 1))


def test_objects_keep_their_prototypes(page: Page) -> None:
    text = _call(page, "session", "m.exportSession(...x)", [_state(), CARDS])
    polluted = text.replace('"saved_at"', '"__proto__": {"polluted": 1}, "saved_at"', 1)
    expression = "[m.importSession(...x).polluted ?? null, ({}).polluted ?? null]"
    assert _call(page, "session", expression, [polluted, CARDS]) == [None, None]


# Tokens


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ({"text": " the "}, "·the·"),
        ({"text": "\n\t"}, "⏎⇥"),
        ({"text": "\x1b"}, "⟨1B⟩"),
        ({"text": "\u200b\r"}, "⟨E2 80 8B 0D⟩"),
        ({"text": ""}, "∅"),
        ({"text": "\ufffd", "bytes": [226, 130]}, "⟨E2 82⟩"),
        ({"text": "\ufffd"}, "⟨…⟩"),
        ({"text": "<|end|>", "special": True}, "<|end|>"),
        ({"text": "é\x07"}, "é\x07"),
    ],
)
def test_every_token_can_be_seen(page: Page, token: dict[str, Any], shown: str) -> None:
    assert _call(page, "tokens", "m.shownToken(x)", token) == shown


# Plays: a conversation that changes while answers come


_PLAY = """(async () => {
    const { createStore } = await import("/playground/js/store.js");
    const t = await import("/playground/js/tree.js");
    const start = { cards: x.cards, settings: x.settings, mode: "chat", system: "", draft: "", tree: t.emptyTree() };
    const store = createStore({ ...start, look: null, running: null, explaining: null, trouble: null });
    const stopped = (signal, wait = 0) => new Promise((_, reject) => signal.addEventListener("abort", () =>
        setTimeout(() => reject(Object.assign(new Error("stopped"), { kind: "stopped" })), wait)));
    const soon = (wait = 0) => new Promise((resolve) => setTimeout(resolve, wait));
    const api = {
        tokenize: async () => ({ tokens: [1] }),
        explain: async ({ completion, span }) => ({ tokens: completion.slice(...span).map((id) => ({ id })) }),
        complete: ({ signal, onEvent }) => {
            onEvent({ index: 0, tokens: [{ id: 9, text: "late", logprob: 0 }], finish_reason: null });
            return stopped(signal);
        },
    };
    const play = m.createPlay({ store, api });
    const say = (draft) => (store.set({ draft }), play.send());
    %s
})()"""


def _play(page: Page, script: str) -> Any:
    return _call(page, "play", _PLAY % script, {"cards": CARDS, "settings": SETTINGS})


def test_what_still_comes_for_a_session_is_not_put_into_the_one_that_was_opened(page: Page) -> None:
    """Its nodes have the same numbers."""
    script = """
    say("Hello!");
    await soon(5);
    let { tree } = t.addPrompt(t.emptyTree(), { mode: "text", text: "other", ids: [2], parent: null });
    const kept = { tokens: [{ id: 5, text: "kept", explained: {} }], state: "done", settings: x.settings };
    play.replace({ tree: t.addPieces(tree, 1, 0, 1, kept).tree });
    await soon(150);
    const { running, trouble, tree: now } = store.get();
    return [now.nodes[2].tokens.map(({ id }) => id), now.nodes[2].state, running, trouble];
    """
    assert _play(page, script) == [[5], "done", None, None]


def test_a_question_that_was_superseded_does_not_end_the_one_behind_it(page: Page) -> None:
    script = """
    api.tokenize = (_, { signal }) => stopped(signal, 20);
    say("Hello!");
    say("Hello again!");
    await soon(60);
    return Boolean(store.get().running);
    """
    assert _play(page, script) is True


def test_explanations_out_of_sight_are_dropped_when_there_are_many(page: Page) -> None:
    explained = """[1, 2, 3].map((id) => ({ id, text: "x", explained: { id } }))"""
    script = f"""
    let {{ tree }} = t.addPrompt(t.emptyTree(), {{ mode: "text", text: "a", ids: [2], parent: null }});
    for (let at = 0; at < 3; at++) ({{ tree }} = t.addPieces(tree, 1, 0, 1, {{ tokens: {explained} }}));
    const count = ({{ tokens }}) => tokens.filter(({{ explained }}) => explained).length;
    const known = (tree) => [2, 3, 4].map((id) => count(tree.nodes[id]));
    const all = t.goTo(tree, 2);
    const few = t.lightened(all, 1);
    return [known(t.lightened(all, 9)), known(t.lightened(all, 8)), known(few), few.nodes[3].tokens[0]];
    """
    assert _play(page, script) == [[3, 3, 3], [3, 0, 3], [3, 0, 0], {"id": 1, "text": "x"}]


def test_answers_beside_the_chat_are_no_longer_than_the_context_has_room_for(page: Page) -> None:
    """As in the chat."""
    expression = """(async () => {
        let asked = null;
        const api = { complete: async ({ settings }) => void (asked = settings.max_tokens) };
        const prompt = { ids: Array(500).fill(1), prompts: null };
        await m.answer({ api, cards: x.cards, settings: x.settings, prompt, onTokens: () => {} });
        return asked;
    })()"""
    assert _call(page, "runs/answers", expression, {"cards": CARDS, "settings": SETTINGS}) == 12


def test_a_long_day_can_be_opened_again(page: Page) -> None:
    expression = """(() => {
        const bytes = [32, 112, 101, 112, 112, 101, 114];
        const token = { id: 1145, text: " pepper", logprob: -0.123456, bytes, special: false };
        const tokens = Array(100000).fill(token);
        const tree = { ...x.state.tree, nodes: { ...x.state.tree.nodes } };
        const piece = Object.values(tree.nodes).find(({ kind }) => kind === "piece");
        tree.nodes[piece.id] = { ...piece, tokens: [...piece.tokens, ...tokens] };
        const again = m.importSession(m.exportSession({ ...x.state, tree }, x.cards), x.cards);
        return again.tree.nodes[piece.id].tokens.length - piece.tokens.length;
    })()"""
    assert _call(page, "session", expression, {"state": _state(), "cards": CARDS}) == 100_000


def test_a_part_of_a_character_can_be_seen_before_it_is_explained(page: Page) -> None:
    """A stream has no text for it, and the whole character for the last part."""
    choice = {
        "index": 0,
        "token_ids": [5, 6, 7],
        "logprobs": {"tokens": ["", "é", ""], "token_logprobs": [-1, -1, -1]},
        "finish_reason": "stop",
    }
    events = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
    expression = """(async () => {
        globalThis.fetch = async () => new Response(x.events);
        const tokens = [];
        await m.createApi().complete({ ...x, ids: [1], onEvent: (progress) => tokens.push(...progress.tokens) });
        const t = await import("/playground/js/tokens.js");
        return [tokens.map(t.shownToken), t.plainText(tokens)];
    })()"""
    found = _call(page, "api", expression, {"events": events, "settings": SETTINGS})
    assert found == [["⟨…⟩", "é", "end of turn"], "é"]
