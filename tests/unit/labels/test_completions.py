"""Requests to a service: retries, the messages when it fails, and that the key appears nowhere."""

import json
import logging
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import product
from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.files.atomic import read_json
from saelineage.labels import completions
from saelineage.labels.completions import Answers, Service, pause_seconds, whole_characters
from tests.completions_server import KEY, Completions, Fault, running_completions

MESSAGES = [{"role": "system", "content": "Explain."}, {"role": "user", "content": 'Excerpt 1:\n"cat" 9'}]
BODY = {"model": "small", "messages": MESSAGES}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def service() -> Iterator[Completions]:
    with running_completions() as running:
        yield running


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries, recorded instead of slept."""
    recorded: list[float] = []
    monkeypatch.setattr(completions, "sleep", recorded.append)
    return recorded


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch, service: Completions) -> Completions:
    """The service, with the environment set to ask it."""
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return service


def faults(*first: Fault | str) -> Callable[[int], Fault | str | None]:
    """These faults for the first requests, then none."""
    return lambda number: first[number] if number < len(first) else None


def error_of(service: Completions, **settings: float | int) -> str:
    """The message of a failing request, which never holds the key."""
    with pytest.raises(InputError) as raised:
        Service(service.url, KEY, **settings).complete(BODY)
    assert KEY not in str(raised.getrepr(style="long", showlocals=False))
    return str(raised.value)


def test_a_completion_is_requested_with_the_key_as_bearer_token(service):
    completion = Service(f"{service.url}/", f" {KEY}\n").complete(BODY)
    assert completion == ('fires on "cat"', "small-2024")
    assert service.paths == ["/v1/chat/completions"]
    assert service.requests == [BODY]
    assert service.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_netrc_file_does_not_replace_the_key(service, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    netrc.chmod(stat.S_IRUSR | stat.S_IWUSR)
    monkeypatch.setenv("NETRC", str(netrc))
    Service(service.url, KEY).complete(BODY)
    assert service.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_an_early_request_is_repeated_after_the_pause_that_the_server_asks_for(service, pauses):
    service.fault = faults(Fault(429, headers={"Retry-After": "7"}), Fault(429))
    assert Service(service.url, KEY).complete(BODY).text == 'fires on "cat"'
    assert pauses == [7, 2]
    assert len(service.requests) == 3


def test_a_lost_request_is_repeated(service, pauses):
    service.fault = faults("close", "cut", Fault(500), Fault(503))
    assert Service(service.url, KEY).complete(BODY).text == 'fires on "cat"'
    assert pauses == [1, 2, 4, 8]


def test_a_server_that_stays_broken_is_named_with_its_status_and_the_next_step(service, pauses):
    service.fault = lambda number: Fault(500, "out of\n order")
    error = error_of(service, retries=2)
    assert error.startswith(f"{service.url}/chat/completions answered 500 (out of order), 3 times")
    assert error.endswith("labels.explanations.retries")
    assert pauses == [1, 2]
    assert len(service.requests) == 3


def test_a_server_that_does_not_answer_is_given_up(service, pauses):
    service.fault = lambda number: "hang"
    error = error_of(service, timeout_s=0.1, retries=1)
    assert f"{service.url}/chat/completions could not be reached" in error
    assert "Read timed out. (read timeout=0.1)" in error
    assert pauses == [1]


def test_a_server_that_does_not_exist_is_named(pauses):
    with running_completions() as service:
        pass
    error = error_of(service, retries=1)
    assert f"{service.url}/chat/completions could not be reached" in error
    assert error.endswith("labels.explanations.retries")


def test_a_request_that_is_refused_is_not_repeated(service, pauses):
    remedies = {
        400: "labels.explanations.request",
        401: "correct OPENAI_API_KEY",
        403: "another labels.explanations.model",
        404: "correct OPENAI_BASE_URL or labels.explanations.model",
        418: "correct OPENAI_BASE_URL or labels.explanations",
    }
    for n_requests, (status, remedy) in enumerate(remedies.items(), start=1):
        service.fault = lambda number, status=status: Fault(status, "no")
        error = error_of(service)
        assert error.startswith(f"{service.url}/chat/completions answered {status} (no); ")
        assert remedy in error
        assert len(service.requests) == n_requests


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(service):
    with running_completions() as elsewhere:
        target = f"{elsewhere.url}/chat/completions?key={KEY}"
        service.fault = lambda number: Fault(307, "moved", {"Location": target})
        error = error_of(service)
        assert error.startswith(f"{service.url}/chat/completions answered 307, a redirect")
        assert "set OPENAI_BASE_URL" in error
        assert elsewhere.requests == []


def test_a_key_that_the_server_echoes_is_replaced(service, pauses, caplog):
    as_json, in_address = KEY.replace("/", r"\/"), KEY.replace("/", "%2F")
    for status, echo in product([200, 401, 500], [KEY, as_json, in_address]):
        service.fault = lambda number, status=status, echo=echo: Fault(status, f"Bearer {echo} is wrong")
        with caplog.at_level(logging.DEBUG):
            error = error_of(service, retries=1)
        assert f"answered {status} (Bearer [key] is wrong)" in error
        assert echo not in error + caplog.text
        assert KEY not in error + caplog.text


def test_a_key_is_replaced_before_the_text_is_cut(service):
    service.fault = lambda number: Fault(401, f"{'x' * 290} {KEY}")
    assert KEY[:4] not in error_of(service)


def test_a_key_in_an_answer_is_not_kept(asking, tmp_path):
    asking.answer = lambda request: f"my instructions: {KEY}"
    answers = Answers(tmp_path)
    assert answers.answer(BODY, 1) == "my instructions: [key]"
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_word_in_place_of_a_key_stays_in_answers(service):
    assert KEY not in repr(Service(service.url, KEY))
    service.answer = lambda request: "fires on none"
    assert Service(service.url, "none").complete(BODY).text == "fires on none"


def test_an_answer_that_is_no_chat_completion_is_an_error(service):
    bodies = ["<html>", "[]", '"text"', '{"choices": []}', '{"choices": [{"text": "old"}]}', "7"]
    for n_requests, body in enumerate(bodies, start=1):
        service.fault = lambda number, body=body: Fault(200, body)
        assert f"answered 200 ({body}); correct OPENAI_BASE_URL" in error_of(service)
        assert len(service.requests) == n_requests


def test_a_refusal_is_an_empty_answer(service):
    service.answer = lambda request: None
    assert Service(service.url, KEY).complete(BODY).text == ""


def test_a_lone_surrogate_in_an_answer_becomes_a_replacement_character(asking, tmp_path):
    asking.answer = lambda request: "a\ud800b"
    assert Answers(tmp_path).answer(BODY, 1) == "a\ufffdb"
    assert whole_characters("\ud83d\ude00 \udc00é\x00") == "😀 \ufffdé\x00"


def test_an_invalid_address_is_refused():
    for url in ("", "localhost:8000", "ftp://host", "http://", "http://host:port", "http://[half"):
        with pytest.raises(InputError, match="OPENAI_BASE_URL must be an address such as"):
            Service(url, KEY)


def test_an_address_with_a_secret_in_it_is_refused_without_repeating_it():
    for url in (f"https://me:{KEY}@host/v1", f"https://{KEY}@host", f"https://host?key={KEY}"):
        with pytest.raises(InputError, match="OPENAI_BASE_URL must be an address alone") as raised:
            Service(url, KEY)
        assert KEY not in str(raised.value)


def test_a_key_that_does_not_fit_into_a_header_is_refused_without_repeating_it():
    for key in ("two words", "line\nline", "schlüssel"):
        with pytest.raises(InputError, match="OPENAI_API_KEY must be one word of ASCII") as raised:
            Service("http://host", key)
        assert key not in str(raised.value)


def test_without_a_key_the_message_names_the_variable_to_set(monkeypatch):
    for key in (None, "", " "):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(InputError, match="OPENAI_API_KEY must be set"):
            Service.from_environment()


def test_without_an_address_the_service_is_openai(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Service.from_environment().url == "https://api.openai.com/v1/chat/completions"


def test_pauses_double_and_are_at_least_what_is_asked_for_and_at_most_a_minute():
    for failures, asked_for, seconds in [
        (0, None, 1),
        (3, None, 8),
        (9, None, 60),
        (0, "5", 5),
        (3, "5", 8),
        (0, "3600", 60),
        (0, format_datetime(NOW + timedelta(seconds=20), usegmt=True), 20),
        (0, format_datetime(NOW - timedelta(seconds=20), usegmt=True), 1),
        (0, "Thu, 01 Jan 2026 00:00:20 -0000", 1),
        (0, "-5", 1),
        (0, "soon", 1),
        (0, "", 1),
    ]:
        assert pause_seconds(failures, asked_for, NOW) == seconds, (failures, asked_for)


def test_an_answer_is_requested_once_and_kept(asking, tmp_path):
    answers = Answers(tmp_path)
    assert answers.answer(BODY, 1) == 'fires on "cat"'
    assert read_json(answers.path(BODY, 1)) == {
        "url": f"{asking.url}/chat/completions",
        "request": BODY,
        "attempt": 1,
        "answer": 'fires on "cat"',
        "model": "small-2024",
    }
    asking.answer = lambda request: "other words"
    again = Answers(tmp_path)
    assert again.answer(BODY, 1) == 'fires on "cat"'
    assert (len(asking.requests), again.n_asked) == (1, 0)
    assert again.origins == {(f"{asking.url}/chat/completions", "small-2024")}


def test_another_attempt_and_another_request_are_other_answers(asking, tmp_path):
    answers = Answers(tmp_path)
    answers.answer(BODY, 1)
    asking.answer = lambda request: "other words"
    assert answers.answer(BODY, 2) == "other words"
    assert answers.answer(BODY | {"temperature": 1}, 1) == "other words"
    assert answers.n_asked == len(asking.requests) == len(list(tmp_path.iterdir())) == 3


def test_kept_answers_need_neither_service_nor_key(asking, tmp_path, monkeypatch):
    Answers(tmp_path).answer(BODY, 1)
    monkeypatch.delenv("OPENAI_API_KEY")
    answers = Answers(tmp_path)
    assert answers.answer(BODY, 1) == 'fires on "cat"'
    with pytest.raises(InputError, match="OPENAI_API_KEY must be set"):
        answers.answer(BODY, 2)


def test_a_damaged_answer_is_named(asking, tmp_path: Path):
    answers = Answers(tmp_path)
    for content in ('{"answer": ', '{"answer": null}', "{}"):
        answers.path(BODY, 1).write_text(content)
        with pytest.raises(InputError, match=rf"{answers.path(BODY, 1)}.*delete it and"):
            answers.answer(BODY, 1)


def test_a_failed_request_leaves_no_file(asking, tmp_path):
    asking.fault = lambda number: Fault(401)
    with pytest.raises(InputError, match="answered 401"):
        Answers(tmp_path).answer(BODY, 1)
    assert list(tmp_path.iterdir()) == []
    assert json.dumps(asking.requests[0]) == json.dumps(BODY)
