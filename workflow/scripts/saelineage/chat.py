"""Conversations as token rows: the tokenizer's own chat template, and the class of each token.

A row holds one conversation, exactly the ids of its rendering by `apply_chat_template`, without a BOS or an EOS of this
project's. A longer conversation is cut at n_ctx ids. A shorter one is filled up with EOS, which comes after everything
that a causal model reads of it and is masked in activations and losses (`TokenRows.text_mask`, `predicted`).

A template is a program from elsewhere. It runs in the sandbox of transformers, with limits on time and memory, and with
a fixed date, so that equal conversations give equal rows.
"""

import hashlib
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from saelineage.corpora.counts import document_counts
from saelineage.corpora.messages import CLASSES, messages_of
from saelineage.errors import InputError
from saelineage.files.atomic import atomic_path
from saelineage.files.limits import limited
from saelineage.foreign.chat_templates import DEFAULT, no_template
from saelineage.tokens import (
    ENCODE_DOCUMENTS,
    ControlStrings,
    check_tokenizer_folder,
    classes_path,
    copy_to_npy,
    id_type,
    load_tokenizer,
    most_rows,
    rows_info,
    special_ids,
    tokenizer_errors,
)

TEMPLATE = 1
"""Number of the class of tokens that no message holds."""
MOST_SECONDS = 5.0
"""Limit for one rendering; real templates take a few milliseconds."""
MOST_GROWTH, MOST_ADDED = 4, 1 << 20
"""Limit for a rendering, in characters: `MOST_GROWTH` x those of its messages, and `MOST_ADDED`."""
MOST_MEMORY = 2 << 30
"""Limit for the address space that a rendering may add."""
MOST_PATTERNS = 10_000
"""Sequences of roles whose renderings are kept."""
FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro +%}"
"""Put before templates that ask for today's date; it is the date that Llama's templates fall back on."""
MARK = re.compile("\ue000([0-9]+)\ue001")
"""A message's number, rendered in place of its content."""


class Conversation(NamedTuple):
    """A rendered conversation."""

    text: str
    ids: Int[np.ndarray, " token"]
    offsets: Sequence[tuple[int, int]]
    """Characters [start, end) of each token."""
    classes: UInt8[np.ndarray, " token"]
    """Class of each token, from 1 (`corpora.messages.CLASSES`)."""


class Pattern(NamedTuple):
    """What a template writes around messages of some roles."""

    pieces: list[str]
    """Texts before, between and after the contents."""
    numbers: list[int]
    """The message whose content stands after each piece but the last. Some may be left out, or stand twice."""


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, folder: Path | str):
        """Open the tokenizer in a folder.

        Raises:
            InputError: if it has no chat template.
        """
        from transformers import AutoTokenizer  # imported here because it takes seconds

        check_tokenizer_folder(folder)
        with tokenizer_errors(folder):
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        template = self._tokenizer.chat_template
        template = template.get(DEFAULT) if isinstance(template, dict) else template
        if not template:
            raise InputError(no_template(folder))
        self._template = FIXED_DATE + template if "strftime_now" in template else template
        self._patterns: dict[tuple[str, ...], Pattern] = {}

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """Render messages as text.

        Raises:
            InputError: if the template refuses them, breaks off, or takes too much time, memory or space.
        """
        most = MOST_GROWTH * sum(len(message["content"]) for message in messages) + MOST_ADDED
        try:
            with limited(MOST_SECONDS, MOST_MEMORY):
                text = self._tokenizer.apply_chat_template(
                    list(messages), chat_template=self._template, tokenize=False, add_generation_prompt=False
                )
        except Exception as error:  # a template may raise anything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise InputError(
                f"the tokenizer's chat template does not render a conversation ({reason}); correct the conversation "
                "or leave it out, or use a tokenizer with another template"
            ) from error
        if not isinstance(text, str) or len(text) > most:
            raise InputError(
                f"the tokenizer's chat template must write at most {most} characters of this conversation, but writes "
                "more; use a tokenizer with another template"
            )
        return text

    def classes(self, text: str, messages: Sequence[dict[str, str]]) -> UInt8[np.ndarray, " character"]:
        """The class of each character of a rendering.

        The same roles are rendered with marks in place of the contents, which gives the template's own pieces. They are
        then found in the rendering, one after the other, and what stands between is a message's content, as it is or
        without the space around it. A template may also change a content (as some leave out earlier thoughts); then all
        up to the next piece is content.

        Raises:
            InputError: if the template's pieces depend on the contents.
        """
        pattern = self._pattern(tuple(message["role"] for message in messages))
        classes = np.full(len(text), TEMPLATE, dtype=np.uint8)
        place = len(pattern.pieces[0])
        is_found = text.startswith(pattern.pieces[0])
        for nth, (number, following) in enumerate(zip(pattern.numbers, pattern.pieces[1:], strict=True), start=1):
            is_last = nth == len(pattern.numbers)
            end = _end_of(text, place, messages[number]["content"], following, is_last) if is_found else -1
            is_found = end >= 0
            classes[place : max(end, place)] = 1 + CLASSES.index(messages[number]["role"])
            place = end + len(following)
        if not is_found or place != len(text):
            raise InputError(
                "the tokenizer's chat template must write the same around messages of the same roles, but what it "
                "writes depends on their contents, so its tokens cannot be told from theirs; leave this conversation "
                "out, or use a tokenizer with another template"
            )
        return classes

    def _pattern(self, roles: tuple[str, ...]) -> Pattern:
        if roles not in self._patterns:
            if len(self._patterns) == MOST_PATTERNS:
                self._patterns.clear()
            marked = [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)]
            parts = MARK.split(self.render(marked))
            self._patterns[roles] = Pattern(parts[::2], [int(number) for number in parts[1::2]])
        return self._patterns[roles]


def written_by_template(folder: Path | str) -> str:
    """What a tokenizer's chat template writes for short conversations, as far as it takes them.

    Raises:
        InputError: if the tokenizer has no chat template.
    """
    template, texts = ChatTemplate(folder), []
    for roles in (("user", "assistant"), ("system", "user", "assistant")):
        with suppress(InputError):  # some templates take no system message
            texts.append(template.render([{"role": role, "content": "a"} for role in roles]))
    return "".join(texts)


def encode_conversations(documents: Iterable[str], folder: Path | str) -> Iterator[Conversation]:
    """Render and encode conversations, a block at a time. Control tokens become their ids.

    Args:
        documents: conversations as `corpora.messages.conversation` wrote them.
        folder: the tokenizer.

    Raises:
        InputError: naming the first conversation that the template does not render.
    """
    template, tokenizer = ChatTemplate(folder), load_tokenizer(folder)
    remaining, number = iter(documents), 0
    while block := list(islice(remaining, ENCODE_DOCUMENTS)):
        rendered = []
        for document in block:
            number += 1
            messages = messages_of(document)
            try:
                text = template.render(messages)
                rendered.append((text, template.classes(text, messages)))
            except InputError as error:
                raise InputError(f"conversation {number} ({document[:80]}...): {error}") from error
        with tokenizer_errors(folder):
            encodings = tokenizer.encode_batch([text for text, _ in rendered], add_special_tokens=False)
        for (text, classes), encoding in zip(rendered, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            yield Conversation(text, ids, encoding.offsets, classes_of(encoding.offsets, classes))


def classes_of(
    offsets: Sequence[tuple[int, int]], characters: UInt8[np.ndarray, " character"]
) -> UInt8[np.ndarray, " token"]:
    """The class of each token: that of its first character of a message, or the template's if it has none."""
    places = np.arange(len(characters))
    of_message = np.where(characters != TEMPLATE, places, len(characters))
    next_of_message = np.append(np.minimum.accumulate(of_message[::-1])[::-1], len(characters))
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    first = next_of_message[starts]
    return np.append(characters, TEMPLATE)[np.where(first < ends, first, len(characters))].astype(np.uint8)


def write_conversations(
    documents: Iterable[str], tokenizer_folder: Path | str, n_ctx: int, max_tokens: int | None, path: Path | str
) -> dict:
    """Write conversations as rows of ids, and beside them the classes of these (`tokens.classes_path`).

    Args:
        documents: the conversations of one split.
        tokenizer_folder: a tokenizer with a chat template.
        n_ctx: ids per row.
        max_tokens: upper limit of the ids written, in whole rows; None writes all.
        path: the .npy file of the ids.

    Returns:
        The same as `tokens.write_rows` (a conversation is a document), and `classes_sha256`; `n_cut`, conversations
        longer than a row; `n_filled`, ids that fill rows up. `n_control_strings` are those in the messages, which
        become ids as those of the template do.
    """
    tokenizer, ends = load_tokenizer(tokenizer_folder), special_ids(tokenizer_folder)
    dtype, max_rows = id_type(tokenizer, tokenizer_folder), most_rows(max_tokens, n_ctx, path)
    counter, digests = ControlStrings(tokenizer), (hashlib.sha256(), hashlib.sha256())
    n_cut, n_filled, lengths = 0, 0, array("q")
    folder = Path(path).parent
    with (
        atomic_path(path) as of_ids,
        atomic_path(classes_path(path)) as of_classes,
        tempfile.TemporaryFile(dir=folder) as raw_ids,
        tempfile.TemporaryFile(dir=folder) as raw_classes,
    ):
        for conversation in islice(encode_conversations(counter.in_messages(documents), tokenizer_folder), max_rows):
            ids, classes = np.full(n_ctx, ends["eos"], dtype=dtype), np.zeros(n_ctx, dtype=np.uint8)
            n_ids = min(n_ctx, len(conversation.ids))
            ids[:n_ids], classes[:n_ids] = conversation.ids[:n_ids], conversation.classes[:n_ids]
            for row, raw, digest in zip((ids, classes), (raw_ids, raw_classes), digests, strict=True):
                raw.write(row.tobytes())
                digest.update(row.tobytes())
            lengths.append(n_ids)
            n_cut, n_filled = n_cut + (len(conversation.ids) > n_ctx), n_filled + n_ctx - n_ids
        n_rows = len(lengths)
        if n_rows == 0:
            raise InputError(f"'{path}': there must be at least one conversation, but there is none; add some")
        for raw, temporary, kind in ((raw_ids, of_ids, dtype), (raw_classes, of_classes, np.uint8)):
            raw.flush()
            copy_to_npy(raw, temporary, kind, (n_rows, n_ctx))
    return rows_info(path, n_rows, n_ctx, tokenizer_folder, digests[0].hexdigest()) | {
        **document_counts(np.array(lengths, dtype=np.int64)),
        "classes_sha256": digests[1].hexdigest(),
        "n_cut": n_cut,
        "n_filled": n_filled,
        "n_control_strings": counter.n_found,
    }


def _end_of(text: str, place: int, content: str, following: str, is_last: bool) -> int:
    """The end of a content that begins at a place and is followed by a piece of the template; -1 if there is none."""
    for written in dict.fromkeys((content, content.strip(), content.lstrip(), content.rstrip())):
        end = place + len(written)
        if text.startswith(written + following, place) and (not is_last or end + len(following) == len(text)):
            return end
    if is_last:
        end = len(text) - len(following)
        return end if end >= place and text.endswith(following) else -1
    return text.find(following, place) if following else -1
