"""A small language-model service on loopback: OpenAI's `/chat/completions`, with faults on demand.

Its explainer names the token that fires most. Its simulator gives 9 to that token and 0 to all others, so that a
feature that follows one token is explained perfectly.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple

from tests.loopback import serving

KEY = "sk-secret-0123456789/abc"
SHOWN = re.compile(r'^(".*") 9$', flags=re.MULTILINE)
NUMBERED = re.compile(r'^[0-9]+ (".*")$', flags=re.MULTILINE)


class Fault(NamedTuple):
    """An answer other than a completion."""

    status: int
    body: str = "out of order"
    headers: Mapping[str, str] = {}


def is_explainer(request: dict) -> bool:
    """Tell requests for an explanation from those for a simulation."""
    return request["messages"][1]["content"].startswith("Excerpt 1:")


def follow_one_token(request: dict) -> str:
    """Answer as an explainer, or as a simulator that takes the explanation literally."""
    prompt = request["messages"][1]["content"]
    if is_explainer(request):
        return f"fires on {SHOWN.search(prompt)[1]}"
    explanation = json.loads(re.match(r"What makes the feature fire: (.*)\n", prompt)[1])
    token = explanation.removeprefix("fires on ")
    return json.dumps([9 * (text == token) for text in NUMBERED.findall(prompt)])


class Completions:
    """The service: its requests, its answers and its faults.

    Attributes:
        url: the value for OPENAI_BASE_URL.
        requests: the bodies of all requests, in order; `headers` and `paths` are in the same order.
        answer: given a request, the text of the completion, or None for a refusal.
        fault: given a request's number from 0 on, None (answer), a `Fault`, `"close"` (end the connection without an
            answer), `"cut"` (after half of it) or `"hang"` (send nothing until the service ends).
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.paths: list[str] = []
        self.answer: Callable[[dict], str | None] = follow_one_token
        self.fault: Callable[[int], Fault | str | None] = lambda number: None
        self.ended = threading.Event()


@contextmanager
def running_completions() -> Iterator[Completions]:
    """Run a service on a free port of loopback."""
    service = Completions()
    with serving(type("HandlerOfService", (Handler,), {"service": service})) as address:
        service.url = f"{address}/v1"
        try:
            yield service
        finally:
            service.ended.set()


class Handler(BaseHTTPRequestHandler):
    """Answers POST as a chat completion."""

    protocol_version = "HTTP/1.1"
    service: Completions

    def do_POST(self) -> None:
        """Answer, or commit the fault."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = len(self.service.requests)
        self.service.headers.append(dict(self.headers))
        self.service.paths.append(self.path)
        self.service.requests.append(request)
        fault = self.service.fault(number)
        if fault == "hang":
            self.service.ended.wait()
        if fault in ("hang", "close"):
            self.close_connection = True
        elif isinstance(fault, Fault):
            self._send(fault.status, fault.body.encode(), fault.headers)
        else:
            message = {"role": "assistant", "content": self.service.answer(request)}
            answer = {"model": f"{request['model']}-2024", "choices": [{"index": 0, "message": message}]}
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, cut=fault == "cut")

    def log_message(self, *_args: object) -> None:
        """Log nothing to the console."""

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.close_connection = cut
        self.wfile.write(body[: len(body) // 2] if cut else body)
