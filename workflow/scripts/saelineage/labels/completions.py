"""Completions: ask a language-model service, and keep each answer as a file so that nothing is paid for twice.

Any service that understands OpenAI's `/chat/completions` will do. Its address and key come from the environment alone.
The key appears in one request header and nowhere else: everything that a service sends back goes through
`Service.without_key` before it is logged, raised or written.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import sleep
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import requests

from saelineage.errors import InputError
from saelineage.files.atomic import read_json, sha256_json, write_json
from saelineage.files.hub import SERVER_ERROR, TOO_MANY_REQUESTS, first_line

logger = logging.getLogger(__name__)

URL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"
DEFAULT_URL = "https://api.openai.com/v1"
CONNECT_SECONDS = 10.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
SHOWN_CHARACTERS = 300
SHORTEST_SECRET = 8
REMEDIES = {
    400: "correct labels.explanations.request, which the service does not accept",
    401: f"correct {KEY_VARIABLE}",
    403: f"set a {KEY_VARIABLE} that may use this model, or choose another labels.explanations.model",
    404: f"correct {URL_VARIABLE} or labels.explanations.model",
}


class Completion(NamedTuple):
    """A service's answer."""

    text: str
    """Empty where the service declines to answer."""
    model: str | None
    """The answering model, as the service names it."""


class Failure(NamedTuple):
    """The reason for a missing completion, where a retry may help."""

    problem: str
    retry_after: str | None
    """The server's `Retry-After` header."""


class Service:
    """A language-model service.

    Attributes:
        url: the address for chat completions; it holds no secrets.
    """

    def __init__(self, base_url: str, key: str, timeout_s: float = 120.0, retries: int = 5):
        """Set the service's address and key, without sending anything yet.

        Args:
            base_url: the address without `/chat/completions`.
            key: sent as the bearer token, to this address only.
            timeout_s: seconds without a byte after which a request counts as lost.
            retries: number of retries of a request that is lost, comes too early (429) or meets a fault (5xx).

        Raises:
            InputError: if the address is invalid or holds secrets, or the key does not fit into a header; the message
                repeats neither.
        """
        self.url = f"{_checked_url(base_url)}/chat/completions"
        self._key = _checked_key(key)
        escaped = self._key.replace("/", r"\/")
        self._spellings = [self._key, escaped, quote(self._key, safe="")] if len(self._key) >= SHORTEST_SECRET else []
        self.timeout_s, self.retries = timeout_s, retries

    @classmethod
    def from_environment(cls, timeout_s: float = 120.0, retries: int = 5) -> "Service":
        """Take the address from OPENAI_BASE_URL (by default OpenAI's) and the key from OPENAI_API_KEY.

        Raises:
            InputError: if a variable is missing or invalid, naming it.
        """
        return cls(os.environ.get(URL_VARIABLE, DEFAULT_URL), os.environ.get(KEY_VARIABLE, ""), timeout_s, retries)

    def complete(self, body: Mapping[str, object]) -> Completion:
        """Ask for one completion.

        Args:
            body: the request: model, messages and further fields of the service.

        Raises:
            InputError: if the service refuses, redirects, stays out of reach, or does not answer as a chat completion.
        """
        failures = 0
        while True:
            answer = self._try(body)
            if isinstance(answer, Completion):
                return answer
            if failures >= self.retries:
                raise InputError(
                    f"{self.url} {answer.problem}, {self.retries + 1} times in a row; rerun later (answers so far are "
                    "kept), or raise labels.explanations.retries"
                )
            seconds = pause_seconds(failures, answer.retry_after, datetime.now(UTC))
            logger.warning("%s %s; trying again in %.0f seconds", self.url, answer.problem, seconds)
            sleep(seconds)
            failures += 1

    def _try(self, body: Mapping[str, object]) -> "Completion | Failure":
        """Send a request once; a failure is one that a retry may mend.

        Raises:
            InputError: if a retry cannot help.
        """
        try:
            response = self._post(body)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            return Failure(f"could not be reached ({self.without_key(first_line(error))})", None)
        except requests.RequestException as error:
            problem = self.without_key(first_line(error))
            raise InputError(f"{self.url} must accept a request ({problem}); correct {URL_VARIABLE}") from None
        if response.status_code == TOO_MANY_REQUESTS or response.status_code >= SERVER_ERROR:
            return Failure(self._status(response), response.headers.get("Retry-After"))
        return self._completion(response)

    def without_key(self, text: str) -> str:
        """Replace the key in a text, also as JSON and addresses spell it.

        A key of less than 8 characters is a word such as "none", for a server that needs no key, and stays.
        """
        for spelling in self._spellings:
            text = text.replace(spelling, "[key]")
        return text

    def _post(self, body: Mapping[str, object]) -> requests.Response:
        # Redirects are not followed, because they could lead to a host that the key is not meant for.
        return requests.post(
            self.url,
            json=dict(body),
            auth=self._sign,  # not headers=, which a .netrc file would override
            timeout=(min(CONNECT_SECONDS, self.timeout_s), self.timeout_s),
            allow_redirects=False,
        )

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _completion(self, response: requests.Response) -> Completion:
        """Read an answer as a chat completion.

        Raises:
            InputError: if it is not one.
        """
        if response.is_redirect:
            raise InputError(
                f"{self.url} answered {response.status_code}, a redirect, but a key is sent to one address only; "
                f"set {URL_VARIABLE} to the final address"
            )
        if response.status_code != requests.codes.ok:
            remedy = REMEDIES.get(response.status_code, f"correct {URL_VARIABLE} or labels.explanations")
            raise InputError(f"{self.url} {self._status(response)}; {remedy}")
        try:
            answer = response.json()
            text, model = answer["choices"][0]["message"]["content"], answer.get("model")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise InputError(
                f"{self.url} must answer with a chat completion, but it {self._status(response)}; "
                f"correct {URL_VARIABLE}, which usually ends in /v1"
            ) from None
        return Completion(self._clean(text) or "", self._clean(model))

    def _clean(self, value: object) -> str | None:
        """Clean a text for a file: without the key, and without lone surrogates, which UTF-8 cannot encode."""
        return whole_characters(self.without_key(value)) if isinstance(value, str) else None

    def _status(self, response: requests.Response) -> str:
        """Summarise an answer on one line."""
        shown = " ".join(self.without_key(response.content.decode("utf-8", "replace")).split())
        shown = shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."
        return f"answered {response.status_code} ({shown or 'empty'})"


class Answers:
    """A service's answers, kept as files.

    Attributes:
        n_asked: number of answers requested from the service.
        origins: addresses and models of the answers given out, whether new or kept.
    """

    def __init__(self, folder: Path | str, timeout_s: float = 120.0, retries: int = 5):
        """Look into a folder first, and ask the service that the environment names only for what is missing.

        Where every answer is in the folder, no service and no key are needed.
        """
        self.folder, self._timeout_s, self._retries = Path(folder), timeout_s, retries
        self._service: Service | None = None
        self.n_asked = 0
        self.origins: set[tuple[str, str]] = set()

    def answer(self, body: Mapping[str, object], attempt: int) -> str:
        """Give the answer to a request, from the folder or else from the service.

        Args:
            body: the request.
            attempt: 1, or 2 ... for another answer to the same request.

        Raises:
            InputError: if the service gives no answer, or the file in the folder is damaged.
        """
        path = self.path(body, attempt)
        if not path.exists():
            self._ask(body, attempt, path)
        kept = read_json(path)
        if not isinstance(kept.get("answer"), str):
            raise InputError(f"'{path}' must hold an answer, but does not; delete it and rerun")
        self.origins.add((str(kept.get("url")), kept.get("model") or "unnamed"))
        return kept["answer"]

    def path(self, body: Mapping[str, object], attempt: int) -> Path:
        """The file of an answer: `{sha256 of request and attempt}.json`."""
        return self.folder / f"{sha256_json({'request': body, 'attempt': attempt})}.json"

    def _ask(self, body: Mapping[str, object], attempt: int, path: Path) -> None:
        if self._service is None:
            self._service = Service.from_environment(self._timeout_s, self._retries)
        completion = self._service.complete(body)
        self.n_asked += 1
        kept = {"url": self._service.url, "request": body, "attempt": attempt}
        write_json(path, kept | {"answer": completion.text, "model": completion.model})


def pause_seconds(failures: int, asked_for: str | None, now: datetime) -> float:
    """Seconds until a request is retried: 1, 2, 4 ..., or longer if the server asks for it, 60 at most.

    Args:
        failures: number of earlier failures of this request.
        asked_for: the server's `Retry-After`, in seconds or as a date; anything else is ignored.
        now: the time with which a date is compared.
    """
    seconds = FIRST_PAUSE_SECONDS * 2**failures
    if asked_for is not None and asked_for.strip().isdecimal():
        seconds = max(seconds, float(asked_for))
    elif asked_for is not None:
        with suppress(ValueError, TypeError):  # not a date, or one without a time zone
            seconds = max(seconds, (parsedate_to_datetime(asked_for) - now).total_seconds())
    return min(seconds, LONGEST_PAUSE_SECONDS)


def whole_characters(text: str) -> str:
    """Join surrogate pairs into characters, and replace lone surrogates by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _checked_url(base_url: str) -> str:
    """Check a base URL and drop its last slash."""
    if set("@?#") & set(base_url):  # anywhere, because a password may hold anything
        raise InputError(
            f"{URL_VARIABLE} must be an address alone, but it has a user, a password, a query or a fragment; "
            f"put the key into {KEY_VARIABLE}"
        )
    try:
        parts = urlsplit(base_url.strip())
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise InputError(f"{URL_VARIABLE} must be an address such as {DEFAULT_URL}, but it is not; correct or unset it")
    return base_url.strip().rstrip("/")


def _checked_key(key: str) -> str:
    """Check that a key fits into a header."""
    if not key.strip():
        raise InputError(
            f"{KEY_VARIABLE} must be set to ask a language model for explanations (any word if your server needs no "
            "key); set it, or remove labels.explanations from the config"
        )
    if not (key.strip().isascii() and key.strip().isprintable() and " " not in key.strip()):
        raise InputError(f"{KEY_VARIABLE} must be one word of ASCII characters, but it is not; copy the key again")
    return key.strip()
