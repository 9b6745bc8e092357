"""Lines of a batch: which are requests, how the others are refused, and what the command line adds."""

import pytest

from eft_server.batch.requests import Defaults, RequestFile, parse_weights
from eft_server.errors import BatchError, ConfigError

from ..api.served import family
from .conftest import a_line

MAX_BODY_BYTES = 2000


def requests(path):
    return RequestFile(path, MAX_BODY_BYTES)


def test_requests_come_in_the_files_order(write_requests):
    path = write_requests(a_line("b"), a_line("a") | {"url": "/v1/completions", "body": {"prompt": "Hi"}})
    first, second = requests(path)
    assert (first.custom_id, first.url) == ("b", "/v1/chat/completions")
    assert (second.url, second.body) == ("/v1/completions", {"prompt": "Hi"})
    assert requests(path).custom_ids() == {"a", "b"}


def test_a_byte_order_mark_blank_lines_and_crlf_are_nothing(write_requests):
    path = write_requests("", a_line("a"), "", " \t", a_line("b", content="\ufeff"), "")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [request.custom_id for request in requests(path)] == ["a", "b"]
    assert requests(path).custom_ids() == {"a", "b"}
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"", 1))
    assert requests(path).custom_ids() == {"a", "b"}


def test_a_file_that_was_joined_from_two_is_read_and_one_in_another_encoding_told_apart(write_requests):
    path = write_requests(a_line("a"))
    path.write_bytes(
        b"\xef\xbb\xbf" + path.read_bytes() + b"\xef\xbb\xbf" + path.read_bytes().replace(b'"a"', b'"b"')
    )
    assert requests(path).custom_ids() == {"a", "b"}
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(BatchError, match=r"in\.jsonl:1: .*UTF-16, and not UTF-8"):
        requests(path).custom_ids()


def test_a_line_is_named_by_its_number_in_the_file(write_requests):
    path = write_requests("", a_line("a"), "", "{")
    with pytest.raises(BatchError, match=r"in\.jsonl:4: is not a JSON object"):
        requests(path).custom_ids()


def test_a_body_is_left_to_the_server_to_judge(write_requests):
    assert requests(write_requests(a_line("a", nonsense=1))).custom_ids() == {"a"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (" " * 100_000, "is longer than"),
        ("{", "is not a JSON object of a request"),
        ("[]", "is not a JSON object of a request"),
        ('{"custom_id": "a", "custom_id": "b"}', "the key 'custom_id' is given twice"),
        (a_line("a", temperature=float("nan")), "NaN is not a JSON number"),
        (a_line("a") | {"id": 1}, "unknown key 'id'; known: custom_id, method, url, body"),
        ({"method": "POST"}, "custom_id is missing; it has to be a text of 1 to 512 characters"),
        (a_line("") | {}, "custom_id has to be a text of 1 to 512 characters, not ''"),
        (a_line("a") | {"custom_id": 7}, "custom_id has to be a text of 1 to 512 characters, not 7"),
        (a_line("a") | {"method": "GET"}, "method has to be 'POST', not 'GET'"),
        (
            a_line("a") | {"url": "/v1/embeddings"},
            "url has to be one of '/v1/chat/completions', '/v1/completions', '/v1/responses', '/v1/eft/score', "
            "'/v1/eft/explain', not '/v1/embeddings'",
        ),
        (a_line("a") | {"body": []}, "body has to be an object, the request, not an array"),
        (a_line("a", user="x" * 100_000), "is longer than"),
        (a_line("first"), "custom_id 'first' is already taken"),
    ],
)
def test_what_is_no_request_is_refused_with_its_line(write_requests, line, problem):
    path = write_requests(a_line("first"), line, a_line("third"))
    with pytest.raises(BatchError) as caught:
        requests(path).custom_ids()
    assert str(caught.value).startswith(f"{path}:2: ")
    assert problem in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BatchError, match=r"in\.jsonl: there is no such file"):
        requests(tmp_path / "in.jsonl").custom_ids()


EFT = {"weights": {"helpful": 0.5}}


@pytest.mark.parametrize(
    ("body", "added"),
    [
        ({}, {"model": "demo", "eft": EFT}),
        ({"eft": None, "model": None}, {"model": "demo", "eft": EFT}),
        ({"model": "demo"}, {"eft": EFT}),
        ({"model": "demo", "eft": {"scale": 1}}, {}),
        ({"model": "demo", "vllm_xargs": {"eft.helpful": 1}}, {}),
        ({"model": "demo-helpful"}, {}),
        ({"model": "demo/base"}, {}),
        ({"model": "demo:helpful=1"}, {}),
    ],
)
def test_the_command_line_speaks_for_bodies_that_say_nothing_of_behaviour(body, added):
    assert Defaults("demo", "demo", EFT).complete(body) == body | added


def test_without_options_bodies_stay_as_they_are():
    defaults = Defaults.checked(family(), None, None, None)
    assert defaults.complete({"prompt": "Hi"}) == {"prompt": "Hi"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("gpt-4", None, None), "the command line's model: 'gpt-4' is not served"),
        ((None, {"helpful": 7.0}, None), "the command line's eft.weights.helpful: 7.0 is out of bounds"),
        ((None, {"helpfull": 1.0}, None), "unknown expert 'helpfull'"),
        ((None, None, float("nan")), "the command line's eft.scale: must be a finite number"),
        (("demo/base", {"helpful": 1.0}, None), "is a single member and takes no weights"),
        (("demo:rude=1", None, None), "the command line's model.rude: unknown expert 'rude'"),
        (("demo:scale=1", {"helpful": 1.0}, None), "either in eft or in the model's name, not in both"),
    ],
)
def test_options_out_of_the_familys_bounds_are_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        Defaults.checked(family(), *options)


def test_a_name_with_weights_is_noted_in_its_canonical_form():
    defaults = Defaults.checked(family(), "demo:harmless=0.30,helpful=7e-1", None, None)
    assert defaults.complete({}) == {"model": "demo:helpful=0.7,harmless=0.3"}


def test_weights_are_read():
    assert parse_weights("helpful=0.7, harmless=.3") == {"helpful": 0.7, "harmless": 0.3}


@pytest.mark.parametrize("text", ["", "helpful", "helpful=", "=1", "helpful:1", "helpful=1,helpful=1", "a=b"])
def test_weights_in_another_form_are_refused(text):
    with pytest.raises(BatchError, match=r"like helpful=0\.7,harmless=0\.3"):
        parse_weights(text)
