"""Completions: asking a language-model service, each answer kept as a file, so that nothing is paid for twice.

Any service that understands OpenAI's `/chat/completions` will do. Where it is and the key to it come from the
environment alone. The key stands in one request header and nowhere else: whatever a service sends back goes through
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
    400: "the service does not take such a request; see labels.explanations.request",
    401: f"correct {KEY_VARIABLE}",
    403: f"this {KEY_VARIABLE} may not ask; take another, or another labels.explanations.model",
    404: f"correct {URL_VARIABLE} or labels.explanations.model",
}


class Completion(NamedTuple):
    """What a service answered."""

    text: str
    """Empty where it would not say anything."""
    model: str | None
    """The model that it says has answered."""


class Failure(NamedTuple):
    """Why there is no completion, where trying again may help."""

    problem: str
    retry_after: str | None
    """What the server says about when to try again."""


class Service:
    """A language-model service.

    Attributes:
        url: where chat completions are asked for; it holds no secrets.
    """

    def __init__(self, base_url: str, key: str, timeout_s: float = 120.0, retries: int = 5):
        """Say where the service is; nothing is asked yet.

        Args:
            base_url: what stands before `/chat/completions`.
            key: sent as the bearer token, to this address only.
            timeout_s: seconds without a byte after which a request counts as lost.
            retries: how often a request is tried again that was lost, came too early (429) or met a fault (5xx).

        Raises:
            InputError: if the address is none, or holds secrets of its own, or the key cannot stand in a header; the
                message repeats neither.
        """
        self.url = f"{_checked_url(base_url)}/chat/completions"
        self._key = _checked_key(key)
        escaped = self._key.replace("/", r"\/")
        self._spellings = [self._key, escaped, quote(self._key, safe="")] if len(self._key) >= SHORTEST_SECRET else []
        self.timeout_s, self.retries = timeout_s, retries

    @classmethod
    def from_environment(cls, timeout_s: float = 120.0, retries: int = 5) -> "Service":
        """The service that OPENAI_BASE_URL (without it OpenAI's own) and OPENAI_API_KEY name.

        Raises:
            InputError: saying which variable to set.
        """
        return cls(os.environ.get(URL_VARIABLE, DEFAULT_URL), os.environ.get(KEY_VARIABLE, ""), timeout_s, retries)

    def complete(self, body: Mapping[str, object]) -> Completion:
        """Ask for one completion.

        Args:
            body: the request: model, messages and what else the service should know.

        Raises:
            InputError: if the service refuses, redirects, stays out of reach, or answers what is no chat completion.
        """
        for failures in range(self.retries + 1):
            found = self._try(body)
            if isinstance(found, Completion):
                return found
            if failures < self.retries:
                seconds = pause_seconds(failures, found.retry_after, datetime.now(UTC))
                logger.warning("%s %s; trying again in %.0f seconds", self.url, found.problem, seconds)
                sleep(seconds)
        raise InputError(
            f"{self.url} {found.problem}, {self.retries + 1} times over; run again later (answers so far are kept), "
            "or raise labels.explanations.retries"
        )

    def _try(self, body: Mapping[str, object]) -> "Completion | Failure":
        """A completion, or what may be better next time.

        Raises:
            InputError: on what will not be.
        """
        try:
            response = self._post(body)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            return Failure(f"could not be reached ({self.without_key(first_line(error))})", None)
        except requests.RequestException as error:
            problem = self.without_key(first_line(error))
            raise InputError(f"{self.url} cannot be asked ({problem}); correct {URL_VARIABLE}") from None
        if response.status_code == TOO_MANY_REQUESTS or response.status_code >= SERVER_ERROR:
            return Failure(self._status(response), response.headers.get("Retry-After"))
        return self._completion(response)

    def without_key(self, text: str) -> str:
        """A text with the key blotted out, also as JSON and addresses may spell it.

        One of less than 8 characters is a word such as "none", given to a server that asks for no key, and stays.
        """
        for spelling in self._spellings:
            text = text.replace(spelling, "[key]")
        return text

    def _post(self, body: Mapping[str, object]) -> requests.Response:
        # Redirects are not followed, for they could lead to a host that the key is not meant for.
        return requests.post(
            self.url,
            json=dict(body),
            auth=self._sign,  # not as a header, which a .netrc file would replace
            timeout=(min(CONNECT_SECONDS, self.timeout_s), self.timeout_s),
            allow_redirects=False,
        )

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _completion(self, response: requests.Response) -> Completion:
        """What an answer says, once it is a chat completion.

        Raises:
            InputError: if it is none.
        """
        if response.is_redirect:
            raise InputError(
                f"{self.url} answered {response.status_code}, a redirect, which is not followed with a key; "
                f"set {URL_VARIABLE} to the address that answers itself"
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
        """A text that can be kept: without the key, and without lone surrogates, which no file can hold."""
        return whole_characters(self.without_key(value)) if isinstance(value, str) else None

    def _status(self, response: requests.Response) -> str:
        """What was answered, in a few words on one line."""
        shown = " ".join(self.without_key(response.content.decode("utf-8", "replace")).split())
        shown = shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."
        return f"answered {response.status_code} ({shown or 'without a word'})"


class Answers:
    """A service's answers, kept as files.

    Attributes:
        n_asked: how many the service was asked for.
        origins: the addresses and models that the answers given out came from, whether asked now or earlier.
    """

    def __init__(self, folder: Path | str, timeout_s: float = 120.0, retries: int = 5):
        """Look into a folder before asking the service that the environment names.

        Where every answer is in the folder, no service and no key are needed.
        """
        self.folder, self._timeout_s, self._retries = Path(folder), timeout_s, retries
        self._service: Service | None = None
        self.n_asked = 0
        self.origins: set[tuple[str, str]] = set()

    def answer(self, body: Mapping[str, object], attempt: int) -> str:
        """The answer to a request, from the folder or, if it is not there, from the service.

        Args:
            body: the request.
            attempt: 1, or 2 ... for another answer to the same request.

        Raises:
            InputError: if the service cannot be asked, or the file in the folder is damaged.
        """
        path = self.path(body, attempt)
        if not path.exists():
            self._ask(body, attempt, path)
        kept = read_json(path)
        if not isinstance(kept.get("answer"), str):
            raise InputError(f"'{path}' must hold an answer, but does not; delete it and run again")
        self.origins.add((str(kept.get("url")), kept.get("model") or "unnamed"))
        return kept["answer"]

    def path(self, body: Mapping[str, object], attempt: int) -> Path:
        """Where an answer is kept: `{sha256 of request and attempt}.json`."""
        return self.folder / f"{sha256_json({'request': body, 'attempt': attempt})}.json"

    def _ask(self, body: Mapping[str, object], attempt: int, path: Path) -> None:
        if self._service is None:
            self._service = Service.from_environment(self._timeout_s, self._retries)
        found = self._service.complete(body)
        self.n_asked += 1
        kept = {"url": self._service.url, "request": body, "attempt": attempt}
        write_json(path, kept | {"answer": found.text, "model": found.model})


def pause_seconds(failures: int, asked_for: str | None, now: datetime) -> float:
    """Seconds until a request is tried again: 1, 2, 4 ..., or longer if the server asks for it, 60 at most.

    Args:
        failures: how often it failed before.
        asked_for: the server's `Retry-After`, in seconds or as a date; what is neither is passed over.
        now: the time, which a date is compared with.
    """
    seconds = FIRST_PAUSE_SECONDS * 2**failures
    if asked_for is not None and asked_for.strip().isdecimal():
        seconds = max(seconds, float(asked_for))
    elif asked_for is not None:
        with suppress(ValueError, TypeError):  # no date, or one without a time zone
            seconds = max(seconds, (parsedate_to_datetime(asked_for) - now).total_seconds())
    return min(seconds, LONGEST_PAUSE_SECONDS)


def whole_characters(text: str) -> str:
    """A text whose surrogates are joined in pairs; one that stands alone is no character and becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _checked_url(base_url: str) -> str:
    """A base URL without its last slash."""
    if set("@?#") & set(base_url):  # wherever they stand, for a password may hold anything
        raise InputError(
            f"{URL_VARIABLE} must be an address alone, but it holds a user, a password, a query or a fragment; "
            f"put the key into {KEY_VARIABLE}"
        )
    try:
        parts = urlsplit(base_url.strip())
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise InputError(
            f"{URL_VARIABLE} must be an address such as {DEFAULT_URL}, but it is none; correct or unset it"
        )
    return base_url.strip().rstrip("/")


def _checked_key(key: str) -> str:
    """A key that can stand in a header."""
    if not key.strip():
        raise InputError(
            f"{KEY_VARIABLE} must be set to ask a language model for explanations (any word, if your server asks for "
            "none); set it, or take labels.explanations out of the config"
        )
    if not (key.strip().isascii() and key.strip().isprintable() and " " not in key.strip()):
        raise InputError(f"{KEY_VARIABLE} must be one word of ASCII characters, but it is not; copy the key again")
    return key.strip()
