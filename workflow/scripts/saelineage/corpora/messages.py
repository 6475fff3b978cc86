"""Conversations: documents that are lists of messages, kept as one JSON text each."""

import json

from saelineage.errors import InputError

ROLES = ("system", "user", "assistant")
CLASSES = ("template", *ROLES)
"""Classes of the tokens of a conversation. In an array of classes the first is 1; 0 is what fills a row up."""
MOST_MESSAGES = 10_000


def conversation(cell: object, column: str, corpus: str, where: str) -> str:
    """The messages in a cell of a table as JSON, each with its role and its content alone; empty if all are blank.

    Args:
        cell: a list of mappings with a `role` and a `content`. Other keys, such as a name, are left out.
        column, corpus, where: for error messages.

    Raises:
        InputError: if it is anything else, or has too many messages.
    """
    if not isinstance(cell, list) or not cell:
        raise InputError(_wrong(corpus, column, where, f"must be a list of messages, not {_kind(cell)}"))
    if len(cell) > MOST_MESSAGES:
        raise InputError(_wrong(corpus, column, where, f"must have at most {MOST_MESSAGES} messages, not {len(cell)}"))
    messages = [_message(each, number, column, corpus, where) for number, each in enumerate(cell, start=1)]
    if not any(message["content"].strip() for message in messages):
        return ""
    return json.dumps(messages, ensure_ascii=False)


def messages_of(document: str) -> list[dict[str, str]]:
    """The messages of a conversation that `conversation` wrote."""
    return json.loads(document)


def _message(message: object, number: int, column: str, corpus: str, where: str) -> dict[str, str]:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if role not in ROLES:
        found = f"has {role!r:.40}" if isinstance(message, dict) and "role" in message else f"is {_kind(message)}"
        reason = f"must have a role of {', '.join(ROLES)} in each message, but message {number} {found}"
        raise InputError(_wrong(corpus, column, where, reason))
    if not isinstance(content, str):
        reason = f"must have text as the content of each message, but that of message {number} is {_kind(content)}"
        raise InputError(_wrong(corpus, column, where, reason))
    return {"role": str(role), "content": content}


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return f"{type(value).__name__} without a role" if isinstance(value, dict) else type(value).__name__


def _wrong(corpus: str, column: str, where: str, reason: str) -> str:
    return (
        f"corpus '{corpus}': '{column}' in {where} {reason}; correct that row or leave it out, or set "
        f"corpora.{corpus}.messages_column to another column"
    )
