"""Annotations: for every token of the probe its text, its document and its properties in words.

Token rows hold ids alone. The documents are encoded again as `tokens.write_rows` did, and the offsets give the text of
each token. Properties are binary: a token is punctuation or it is not, follows `local` or does not.

Tokens are numbered through all corpora, one corpus after the other: row x n_ctx + place in the row.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Int, Integer
from safetensors import SafetensorError
from tokenizers import Tokenizer

from saelineage.chat import Conversation
from saelineage.corpora.messages import CLASSES
from saelineage.errors import InputError
from saelineage.files.tensors import read_tensors, write_tensors
from saelineage.tokens import TEXT, TokenRows, excerpt

ENCODE_DOCUMENTS = 64
MIN_TOKENS = 20
"""Least number of tokens with a property of kind `token`, `after` or `syntax`."""
MOST_TOKENS, MOST_AFTER = 300, 150
"""Largest number of properties of kind `token` and `after`, the most frequent first."""
Name = tuple[str, str]
"""Kind and name of a property."""


class Annotations(NamedTuple):
    """Text, document and properties of every token."""

    starts: dict[str, int]
    """Number of the first token of each corpus, in the config's order."""
    n_ctx: int
    """Tokens in a row."""
    pieces: Int[np.ndarray, " token"]
    """Each token's text, as an index into `strings`; -1 for BOS and EOS."""
    strings: list[str]
    """Texts of tokens. Joined they give the document; of tokens that share a character, the first has it."""
    documents: Int[np.ndarray, " token"]
    """Number of each token's document, counted through all corpora; -1 for BOS and EOS."""
    properties: list[tuple[str, str]]
    """Kind and name of each property."""
    matrix: scipy.sparse.csr_array
    """[token, property] bool: true where the token has the property; BOS and EOS have none."""


class Cut:
    """A document cut into tokens, with the classes of its characters.

    Attributes:
        text: the document.
        starts, ends: characters [start, end) of each token, without gaps.
        places: place of each token in its row, from 1, because BOS is 0.
        numbers: number of each token in the document, from 0.
        n_tokens: tokens of the whole document.
    """

    def __init__(
        self,
        text: str,
        ends: Integer[np.ndarray, " all_tokens"],
        places: Integer[np.ndarray, " token"],
        first: int = 0,
    ):
        """Cut a document.

        Args:
            text: the document.
            ends: the character after each token, ascending; the last is the document's length.
            places: place of each token in its row; fewer than tokens where the rows hold a part of the document.
            first: the number of the first token that the rows hold.
        """
        self.text, self.places, self.n_tokens = text, places, len(ends)
        self.numbers = first + np.arange(len(places))
        self.ends = ends[self.numbers]
        self.starts = np.concatenate([[0], ends])[self.numbers].astype(np.int64)

    def count(self, of: Bool[np.ndarray, " character"]) -> Int[np.ndarray, " token"]:
        """Count the characters of a class in each token."""
        before = np.concatenate([[0], np.cumsum(of)])
        return before[self.ends] - before[self.starts]

    def last_before(self, of: Bool[np.ndarray, " character"]) -> Int[np.ndarray, " character_plus_1"]:
        """For each character, and the end, the last character of a class before it, or -1."""
        here = np.where(of, np.arange(len(of)), -1)
        return np.concatenate([[-1], np.maximum.accumulate(here)]) if len(of) else np.full(1, -1)

    def first_from(self, of: Bool[np.ndarray, " character"]) -> Int[np.ndarray, " character_plus_1"]:
        """For each character, and the end, the first character of a class at or after it, or the document's length."""
        here = np.where(of, np.arange(len(of)), len(of))
        return np.concatenate([np.minimum.accumulate(here[::-1])[::-1], [len(of)]])

    @cached_property
    def _characters(self) -> tuple[list[str], Int[np.ndarray, " character"]]:
        """The distinct characters of the document, and at each place the index of its character."""
        codes = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        distinct, where = np.unique(codes, return_inverse=True)
        return [chr(code) for code in distinct], where

    def where(self, predicate: Callable[[str], bool]) -> Bool[np.ndarray, " character"]:
        """Mark the characters for which a predicate holds."""
        distinct, where = self._characters
        return np.array([predicate(character) for character in distinct], dtype=bool)[where]

    @cached_property
    def space(self) -> Bool[np.ndarray, " character"]:
        """Whitespace."""
        return self.where(str.isspace)

    @cached_property
    def newline(self) -> Bool[np.ndarray, " character"]:
        """Line ends."""
        return self.where(lambda character: character in "\n\r")

    @cached_property
    def word(self) -> Bool[np.ndarray, " character"]:
        """Letters, digits and the underscore."""
        return self.where(lambda character: character.isalnum() or character == "_")

    @cached_property
    def has_text(self) -> Bool[np.ndarray, " token"]:
        """Tokens with more than whitespace."""
        return self.count(~self.space) > 0

    @cached_property
    def firsts(self) -> Int[np.ndarray, " token"]:
        """The first character of each token that is not whitespace; the token's start where all are."""
        return np.where(self.has_text, self.first_from(~self.space)[self.starts], self.starts)

    @cached_property
    def lasts(self) -> Int[np.ndarray, " token"]:
        """The last character of each token that is not whitespace; the token's start where all are."""
        return np.where(self.has_text, self.last_before(~self.space)[self.ends], self.starts)

    def are_all(self, predicate: Callable[[str], bool]) -> Bool[np.ndarray, " token"]:
        """Mark the tokens with text for all of whose characters but whitespace a predicate holds."""
        return self.has_text & (self.count(self.where(predicate) & ~self.space) == self.count(~self.space))

    def is_at(self, of: Bool[np.ndarray, " character"], where: Int[np.ndarray, " token"]) -> Bool[np.ndarray, " token"]:
        """Mark the tokens whose given character is of a class; no character outside the document is."""
        return np.concatenate([of, [False]])[np.where((where < 0) | (where > len(of)), len(of), where)]


class Rule(NamedTuple):
    """A property that follows from a document cut into tokens."""

    sentence: str
    holds: Callable[[Cut], Bool[np.ndarray, " token"]]


def _indents(cut: Cut) -> Bool[np.ndarray, " token"]:
    at_start = cut.last_before(~cut.space)[:-1] <= cut.last_before(cut.newline)[:-1]
    return ~cut.has_text & (cut.count(cut.space & ~cut.newline & at_start) > 0)


def _is_capitalised(cut: Cut) -> Bool[np.ndarray, " token"]:
    begins = cut.has_text & cut.is_at(cut.where(str.isupper), cut.firsts)
    return begins & (cut.count(cut.where(str.islower)) > 0)


def _is_upper_case(cut: Cut) -> Bool[np.ndarray, " token"]:
    return (cut.count(cut.where(str.isupper)) > 0) & (cut.count(cut.where(str.islower)) == 0)


def _starts_word(cut: Cut) -> Bool[np.ndarray, " token"]:
    return cut.has_text & cut.is_at(cut.word, cut.firsts) & ~cut.is_at(cut.word, cut.firsts - 1)


def _goes_on(cut: Cut) -> Bool[np.ndarray, " token"]:
    return (cut.ends > cut.starts) & cut.is_at(cut.word, cut.starts) & cut.is_at(cut.word, cut.starts - 1)


def _ends_word(cut: Cut) -> Bool[np.ndarray, " token"]:
    return cut.has_text & cut.is_at(cut.word, cut.lasts) & ~cut.is_at(cut.word, cut.lasts + 1)


def _is_first_on_line(cut: Cut) -> Bool[np.ndarray, " token"]:
    before, newline = cut.last_before(~cut.space), cut.last_before(cut.newline)
    return cut.has_text & (before[cut.firsts] <= newline[cut.firsts])


def _is_last_on_line(cut: Cut) -> Bool[np.ndarray, " token"]:
    after, newline = cut.first_from(~cut.space), cut.first_from(cut.newline)
    # at the document's end both are its length
    return cut.has_text & (after[cut.lasts + cut.has_text] >= newline[cut.lasts + cut.has_text])


SHAPES = {
    "whitespace": Rule(
        "The token is whitespace and nothing else.", lambda cut: ~cut.has_text & (cut.ends > cut.starts)
    ),
    "newline": Rule("A line ends within the token.", lambda cut: cut.count(cut.newline) > 0),
    "indentation": Rule("The token is whitespace at the beginning of a line.", _indents),
    "punctuation": Rule(
        "The token is punctuation or symbols, without letters, digits and underscores.",
        lambda cut: cut.has_text & (cut.count(cut.word) == 0),
    ),
    "digits": Rule("The token is digits and nothing else.", lambda cut: cut.are_all(str.isdigit)),
    "capitalised": Rule("The token begins with a capital and has small letters.", _is_capitalised),
    "upper case": Rule("The token has capitals and no small letters.", _is_upper_case),
    "beyond ASCII": Rule(
        "The token has a character beyond ASCII.",
        lambda cut: cut.count(cut.where(lambda char: char > "\x7f")) > 0,
    ),
    "rest of a character": Rule(
        "The token is a later part of a character that several tokens make up.", lambda cut: cut.ends == cut.starts
    ),
    "starts a word": Rule("A word begins with the token.", _starts_word),
    "inside a word": Rule("The token goes on with a word that another began.", _goes_on),
    "ends a word": Rule("A word ends with the token.", _ends_word),
    "first on its line": Rule("The token is the first of its line, whitespace left aside.", _is_first_on_line),
    "last on its line": Rule("The token is the last of its line, whitespace left aside.", _is_last_on_line),
}
POSITIONS = {
    "first in its document": Rule("The token is its document's first.", lambda cut: cut.numbers == 0),
    "first 4 in its document": Rule("The token is one of its document's first four.", lambda cut: cut.numbers < 4),
    "last in its document": Rule("The token is its document's last.", lambda cut: cut.numbers == cut.n_tokens - 1),
    "first of its row": Rule("The token is the first that the model reads.", lambda cut: cut.places == 1),
    "first 4 of its row": Rule("The token is one of the first four that the model reads.", lambda cut: cut.places <= 4),
    "first 16 of its row": Rule("The token is one of the first 16 that the model reads.", lambda cut: cut.places <= 16),
}
CLASS_SENTENCES = {
    "template": "The token is of the chat template: a control token, or text that is in no message.",
    "system": "The token is in a system message.",
    "user": "The token is in a message of the user.",
    "assistant": "The token is in a message of the assistant.",
}
CONCEPTS = {
    "assignment": "The token is a name that is assigned to or declared, or the =, in Python or in Lua.",
    "assignment target": "The token is a name that is assigned to or declared, in Python or in Lua.",
    "assignment =": "The token is the = (or += and the like) of an assignment, in Python or in Lua.",
    "exception": (
        "The token raises or handles an error: raise, try, except, finally and names of exceptions in Python; "
        "error, pcall, xpcall and assert where they are called in Lua."
    ),
}
RULES = {("position", name): rule for name, rule in POSITIONS.items()} | {
    ("shape", name): rule for name, rule in SHAPES.items()
}


def annotate(
    documents: Mapping[str, Iterable[str] | Iterable[Conversation]],
    rows: Mapping[str, TokenRows],
    tokenizer: Tokenizer,
    syntax: Mapping[str, str],
) -> Annotations:
    """Annotate every token of the rows. Memory is bounded by the rows and a block of documents.

    Properties, by kind:

    - `corpus`: its name;
    - `position` and `shape`: `RULES` has a sentence for each;
    - `token`: the token's text without whitespace around it, if it is frequent;
    - `after`: the same of the token before, in the same document and row, because the model sees no other;
    - `syntax` and `concept`: see `syntax`;
    - `class`: of conversations, what the token is a part of (`CLASS_SENTENCES`).

    A conversation's text is its rendering by the chat template, without the first token, which is not read.

    Args:
        documents: the documents that each corpus's rows were made from, in their order; of conversations as
            `chat.encode_conversations` gives them.
        rows: token rows of each corpus, in the config's order.
        tokenizer: the one that made the rows; from here on it reads special tokens in documents as it did then.
        syntax: the grammar (`python`, `lua`) of each corpus that has one.

    Raises:
        InputError: if the documents and the tokenizer do not give the rows, or `syntax` names an unknown corpus.
    """
    _require_corpora(syntax, rows)
    reader = _Reader(rows, syntax)
    for corpus, corpus_rows in rows.items():
        if corpus_rows.classes is None:
            tokenizer.encode_special_tokens = corpus_rows.info.get("special", TEXT) == TEXT
            reader.read(corpus, _encoded(cast(Iterable[str], documents[corpus]), tokenizer), corpus_rows)
        else:
            reader.read_conversations(corpus, cast(Iterable[Conversation], documents[corpus]), corpus_rows)
    return reader.annotations()


def save_annotations(path: Path | str, annotations: Annotations, header: Mapping[str, object]) -> None:
    """Write annotations as one safetensors file (docs/artifacts.md lists its tensors).

    Args:
        path: the file.
        annotations: of the probe.
        header: further entries of the file's header, such as its inputs.
    """
    texts = [string.encode("utf-8", "surrogatepass") for string in annotations.strings]
    fields = {key: getattr(annotations, key) for key in ("starts", "n_ctx", "properties")}
    tensors = {
        "pieces": annotations.pieces,
        "documents": annotations.documents,
        "string_bytes": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "string_ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
        "indptr": annotations.matrix.indptr.astype(np.int64),
        "indices": annotations.matrix.indices.astype(np.int32),
    }
    write_tensors(path, {**header, **fields}, tensors)


def load_annotations(path: Path | str) -> Annotations:
    """Read what `save_annotations` wrote.

    Raises:
        InputError: if the file is damaged.
    """
    try:
        header, tensors = read_tensors(path)
        pieces, indptr, indices = (tensors[name] for name in ("pieces", "indptr", "indices"))
        shape = (len(pieces), len(header["properties"]))
        matrix = scipy.sparse.csr_array((np.ones(len(indices), dtype=bool), indices, indptr), shape=shape)
        matrix.check_format(full_check=True)
        strings = _strings(tensors["string_bytes"], tensors["string_ends"])
        if len(tensors["documents"]) != len(pieces) or pieces.max(initial=-1) >= len(strings):
            raise ValueError("its tensors do not match each other")
        return Annotations(
            starts=dict(sorted(header["starts"].items(), key=lambda item: item[1])),
            n_ctx=header["n_ctx"],
            pieces=pieces,
            strings=strings,
            documents=tensors["documents"],
            properties=[(kind, name) for kind, name in header["properties"]],
            matrix=matrix,
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"'{path}' must be a complete file of annotations ({error}); delete it and rerun") from error


def numbers_of(
    annotations: Annotations, corpus: str, positions: Integer[np.ndarray, " token"]
) -> Int[np.ndarray, " token"]:
    """Number a feature shard's tokens as the annotations do.

    Args:
        annotations: of the probe that the features come from.
        corpus: the shard's corpus.
        positions: row x n_ctx + place in the row.

    Raises:
        InputError: if the corpus is not annotated, or has no such position.
    """
    if corpus not in annotations.starts:
        raise InputError(
            f"features must be of an annotated corpus ({', '.join(annotations.starts)}), got '{corpus}'; "
            "delete labels/probe.safetensors and rerun"
        )
    start = annotations.starts[corpus]
    end = min((later for later in annotations.starts.values() if later > start), default=len(annotations.pieces))
    if positions.max(initial=-1) >= end - start:
        raise InputError(
            f"features must be of the {end - start} annotated tokens of corpus '{corpus}', got position "
            f"{positions.max()}; delete labels/probe.safetensors and rerun"
        )
    return start + positions.astype(np.int64)


def window(annotations: Annotations, token: int, before: int, after: int) -> range:
    """Token numbers from `before` tokens before a token to `after` tokens after it, within its row and its document.

    BOS and EOS belong to no document, so their window is the token alone.
    """
    document = annotations.documents[token]
    if document < 0:
        return range(token, token + 1)
    row = token - token % annotations.n_ctx  # corpora hold whole rows
    near = np.arange(max(row, token - before), min(row + annotations.n_ctx, token + after + 1))
    inside = near[annotations.documents[near] == document]
    return range(int(inside[0]), int(inside[-1]) + 1)


def text_of(annotations: Annotations, tokens: Sequence[int] | Integer[np.ndarray, " token"]) -> list[str]:
    """The text of each token; empty for BOS and EOS."""
    pieces = annotations.pieces[np.asarray(tokens, dtype=np.int64)].tolist()
    return [annotations.strings[piece] if piece >= 0 else "" for piece in pieces]


class _Reader:
    """Annotations of the tokens read so far."""

    def __init__(self, rows: Mapping[str, TokenRows], syntax: Mapping[str, str]):
        """Start before the first token."""
        sizes = [corpus_rows.ids.size for corpus_rows in rows.values()]
        ends = np.cumsum([0, *sizes]).tolist()
        self.starts = dict(zip(rows, ends[:-1], strict=True))
        self.n_ctx = next(iter(rows.values())).info["n_ctx"]
        self.pieces, self.documents = (np.full(ends[-1], -1, dtype=np.int32) for _ in range(2))
        self.n_documents = 0
        self.strings: dict[str, int] = {}
        self.names: dict[Name, int] = {}
        self.entries: list[tuple[np.ndarray, np.ndarray]] = []
        self.syntax = _Syntax(syntax, self.number_of)
        for corpus in rows:
            self.number_of(("corpus", corpus))
        for name in [*RULES, *(("concept", name) for name in CONCEPTS if syntax)]:
            self.number_of(name)
        if any(corpus_rows.classes is not None for corpus_rows in rows.values()):
            for of_token in CLASSES:
                self.number_of(("class", of_token))

    def number_of(self, name: Name) -> int:
        """The number of a property, a new one where it has none yet."""
        return self.names.setdefault(name, len(self.names))

    def read(self, corpus: str, encoded: Iterable, rows: TokenRows) -> None:
        """Read the documents of one corpus until its rows are full."""
        stored = np.asarray(rows.ids)[:, 1:].reshape(-1)
        done = 0
        for text, all_ids, ends in encoded:
            part = excerpt(text, len(all_ids), rows.info.get("most_of_document"))
            ids = all_ids[part.start : part.stop]
            expected = stored[done : done + len(ids) + 1]
            given = np.append(ids, rows.info["eos_id"])[: len(expected)]
            if not np.array_equal(given, expected):
                raise InputError(_other_tokens(rows, f"document {self.n_documents} of '{corpus}' gives other ids"))
            places = np.arange(done, done + min(len(ids), len(expected)))
            done += len(expected)
            row, place = np.divmod(places, self.n_ctx - 1)
            self._add(
                corpus, Cut(text, ends, place + 1, part.start), self.starts[corpus] + row * self.n_ctx + place + 1
            )
            if done == len(stored):
                return
        raise InputError(_other_tokens(rows, f"the documents end after {done} of {len(stored)} ids"))

    def read_conversations(self, corpus: str, conversations: Iterable[Conversation], rows: TokenRows) -> None:
        """Read the conversations of one corpus, of which each row holds one."""
        n_read = 0
        for row, (conversation, stored) in enumerate(zip(conversations, np.asarray(rows.ids), strict=False)):
            n_ids = min(len(conversation.ids), self.n_ctx)
            if not np.array_equal(conversation.ids[:n_ids], stored[:n_ids]):
                raise InputError(_other_tokens(rows, f"conversation {row + 1} of '{corpus}' gives other ids"))
            n_read += 1
            ends = ends_of(conversation.offsets, len(conversation.text))
            if n_ids < 2:
                continue
            first = int(ends[0])
            tokens = self.starts[corpus] + row * self.n_ctx + np.arange(1, n_ids)
            self._add(corpus, Cut(conversation.text[first:], ends[1:] - first, np.arange(1, n_ids)), tokens)
            for number, name in enumerate(CLASSES, start=1):
                self._note(tokens[conversation.classes[1:n_ids] == number], self.number_of(("class", name)))
        if n_read < len(rows.ids):
            raise InputError(_other_tokens(rows, f"there are {n_read} conversations for {len(rows.ids)} rows"))

    def _add(self, corpus: str, cut: Cut, tokens: Int[np.ndarray, " token"]) -> None:
        """Note text, document and properties of a document's tokens."""
        cuts = zip(cut.starts.tolist(), cut.ends.tolist(), strict=True)
        self.pieces[tokens] = [self.strings.setdefault(cut.text[i:j], len(self.strings)) for i, j in cuts]
        self.documents[tokens] = self.n_documents
        self.n_documents += 1
        self._note(tokens, self.number_of(("corpus", corpus)))
        for name, rule in RULES.items():
            self._note(tokens[rule.holds(cut)], self.names[name])
        for places, numbers in self.syntax.of(corpus, cut):
            self.entries.append((tokens[places].astype(np.int32), numbers.astype(np.int32)))

    def _note(self, tokens: Int[np.ndarray, " token"], number: int) -> None:
        """Note that some tokens have a property."""
        self.entries.append((tokens.astype(np.int32), np.full(len(tokens), number, dtype=np.int32)))

    def annotations(self) -> Annotations:
        """The annotations of all tokens read, without rare properties."""
        self._note_pieces()
        tokens, numbers = (np.concatenate(parts) for parts in zip(*self.entries, strict=True))
        names = list(self.names)
        frequent = np.bincount(numbers, minlength=len(names)) >= MIN_TOKENS
        kept = [number for number, (kind, _) in enumerate(names) if frequent[number] or kind != "syntax"]
        kept.sort(key=lambda number: KINDS.index(names[number][0]))  # stable: within a kind as they came
        columns = np.full(len(names), -1)
        columns[kept] = np.arange(len(kept))
        inside = columns[numbers] >= 0
        entries = (np.ones(inside.sum(), dtype=bool), (tokens[inside], columns[numbers[inside]]))
        matrix = scipy.sparse.csr_array(entries, shape=(len(self.pieces), len(kept)))
        matrix.sum_duplicates()
        return Annotations(
            starts=self.starts,
            n_ctx=self.n_ctx,
            pieces=self.pieces,
            strings=list(self.strings),
            documents=self.documents,
            properties=[names[number] for number in kept],
            matrix=matrix,
        )

    def _note_pieces(self) -> None:
        """Note the frequent text of each token and of the token before it."""
        stripped: dict[str, int] = {"": 0}
        types = np.array([stripped.setdefault(text.strip(), len(stripped)) for text in self.strings] + [0])
        token_types = types[self.pieces]  # a piece of -1 takes the last type, which is that of the empty text
        follows = np.append(0, token_types[:-1]) * (self.documents >= 0)  # EOS and BOS separate documents and rows
        texts = list(stripped)
        for kind, of_token, most in (("token", token_types, MOST_TOKENS), ("after", follows, MOST_AFTER)):
            for number in _most_frequent(of_token, texts, most):
                self._note(np.flatnonzero(of_token == number), self.number_of((kind, texts[number])))


KINDS = ("corpus", "class", "position", "shape", "token", "after", "syntax", "concept")
"""Kinds of properties, in their order in tables; of equally good properties the first wins."""


class _Syntax:
    """The grammars of the corpora that have one."""

    def __init__(self, languages: Mapping[str, str], number_of: Callable[[Name], int]):
        """Make the grammars."""
        self.languages, self._number_of = languages, number_of
        self._grammars = {}
        self._numbers: dict[str, np.ndarray] = {}
        if languages:
            from saelineage.labels.syntax import Grammar  # here, because reading annotations needs no parser

            self._grammars = {language: Grammar(language) for language in sorted(set(languages.values()))}

    def of(self, corpus: str, cut: Cut) -> Iterator[tuple[Int[np.ndarray, " entry"], Int[np.ndarray, " entry"]]]:
        """Yield tokens of a document, by their order in it, each with the number of one of its properties."""
        if corpus not in self.languages:
            return
        language = self.languages[corpus]
        grammar = self._grammars[language]
        states = np.where(cut.has_text, grammar.states_at(cut.text, cut.firsts), -1)
        (placed,) = np.nonzero(states >= 0)
        numbers = self._table(language)[states[placed]]
        token, column = np.nonzero(numbers >= 0)
        yield placed[token], numbers[token, column]

    def _table(self, language: str) -> Int[np.ndarray, "state property"]:
        """Numbers of the properties of each state of a grammar, padded with -1."""
        states = self._grammars[language].states
        table = self._numbers.get(language, np.zeros((0, 0), dtype=np.int64))
        if len(table) < len(states):
            numbers = [[self._number_of(name) for name in names] for names in states]
            table = np.full((len(states), max(map(len, numbers))), -1)
            for row, of_state in zip(table, numbers, strict=True):
                row[: len(of_state)] = of_state
            self._numbers[language] = table
        return table


def _encoded(
    documents: Iterable[str], tokenizer: Tokenizer
) -> Iterator[tuple[str, Int[np.ndarray, " token"], Int[np.ndarray, " token"]]]:
    """Yield each document with its ids and the end of each of its tokens."""
    remaining = iter(documents)
    while texts := list(islice(remaining, ENCODE_DOCUMENTS)):
        for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            yield text, np.array(encoding.ids, dtype=np.int64), ends_of(encoding.offsets, len(text))


def ends_of(offsets: Sequence[tuple[int, int]], n_characters: int) -> Int[np.ndarray, " token"]:
    """The character after each token of a document, such that tokens cover the document without gaps.

    Spaces that a tokenizer leaves out of the offsets go to the next token, at the end to the last. A token without
    text, whose offsets may be (0, 0), gets none.
    """
    ends = np.maximum.accumulate(np.array([end for _, end in offsets], dtype=np.int64))
    ends[-1:] = n_characters
    return ends


def _most_frequent(of_token: Int[np.ndarray, " token"], texts: Sequence[str], most: int) -> list[int]:
    """The most frequent texts except the empty one, the most frequent first, on a tie in alphabetical order."""
    counts = np.bincount(of_token, minlength=len(texts))
    frequent = [number for number in np.flatnonzero(counts >= MIN_TOKENS).tolist() if texts[number]]
    return sorted(frequent, key=lambda number: (-counts[number], texts[number]))[:most]


def _strings(joined: Integer[np.ndarray, " byte"], ends: Integer[np.ndarray, " string"]) -> list[str]:
    """Decode texts from their joined bytes."""
    data, starts = joined.tobytes(), [0, *ends[:-1].tolist()]
    return [data[i:j].decode("utf-8", "surrogatepass") for i, j in zip(starts, ends.tolist(), strict=True)]


def _require_corpora(syntax: Mapping[str, str], rows: Mapping[str, TokenRows]) -> None:
    """Refuse a grammar for an unknown corpus."""
    unknown = [corpus for corpus in syntax if corpus not in rows]
    if unknown:
        raise InputError(
            f"labels.syntax: '{unknown[0]}' must be one of the corpora {', '.join(rows)}; correct the name"
        )


def _other_tokens(rows: TokenRows, why: str) -> str:
    return (
        f"the tokens in '{rows.path}' must come from the documents and the tokenizer given, but {why}; "
        "delete that file and rerun"
    )
