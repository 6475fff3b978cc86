"""Tokens: a byte-level BPE tokenizer, and rows of n_ctx token ids in memory-mapped arrays.

A row is BOS followed by n_ctx - 1 ids of the stream `document EOS document EOS ...`. The last ids, which do not fill a
row, are dropped. Of a document that is longer than a split allows, the stream has a part (`excerpt`). A conversation
has a row to itself (see `chat`).
"""

import hashlib
import json
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import islice, pairwise, zip_longest
from math import ceil
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from saelineage.corpora.counts import document_counts
from saelineage.corpora.messages import messages_of
from saelineage.errors import InputError
from saelineage.files.atomic import atomic_files, atomic_path, disk_fault, read_json, sha256_file, write_json
from saelineage.files.foreign import read_foreign_json, require_inside, require_regular
from saelineage.foreign.tokenizers import (
    ADDED_FILE,
    CONFIG_FILE,
    FAST_FILE,
    MOST_TOKENIZER_BYTES,
    NEXT_STEP,
    SENTENCEPIECE_FILES,
    TOKENIZER_SMALL_FILES,
    VOCABULARY_FILES,
    cannot_be_compared,
    compare_tokenizers,
    comparison_warnings,
    require_same_ids,
    require_same_tokenizer,
    same_files,
    shared_added_tokens,
)

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
TRAINED_BYTES = 512
"""Longer stretches without a boundary are cut for training, because its time grows with the square of their length.

They would also become tokens: one letter repeated 100,000 times gives a token of 65,536 letters.
"""
ENCODE_DOCUMENTS = 256
SPECIAL_FILE = "special_tokens_map.json"
TOKENIZER_FILES = tuple(
    sorted((*TOKENIZER_SMALL_FILES, *SENTENCEPIECE_FILES, "chat_template.jinja", "config.json", SPECIAL_FILE))
)
"""Files that AutoTokenizer may need from a repository on the hub."""
RULES = ("normalizer", "pre_tokenizer", "model")
"""Parts of a tokenizer.json that decide the ids of a text without added tokens."""
PLAIN_CLASS = "PreTrainedTokenizerFast"
"""The class that transformers does not make anew."""
TOKENIZER_ENDINGS = (".json", ".txt", ".model", ".jinja", ".spm", ".codes", ".vocab", ".bpe", ".tiktoken")
"""Endings of the files that a tokenizer may read."""
CHAT_TEMPLATES = "additional_chat_templates"
"""Sub-folder of a tokenizer's folder."""
TRIAL = "The cat sat\non 1 + 1 = 2 mats: \u00e9t\u00e9, \u732b."
COMPARED_TEXTS = (
    "The quick brown fox doesn't jump over 13 lazy dogs; it's 'I'LL', they'd say, we've won!",
    "HTTPServer getElementById snake_case __init__ x_1 ALLCAPS iPhone McDonald's e.g. U.S.A. 3rd",
    "0 12 345 6789 12345678901 3.14159 -1e-10 0xff 1,000,000 50% $9.99 2024-02-29T23:59:60Z",
    "def f(x):\n    return {x: [i ** 2 for i in range(10)]}  # comment\n\n\n\tif (a != b && c >= d) {\r\n\t\t}\n",
    "local t = {} -- Lua\nfor i=1,#t do print(t[i]..'\\n') end\n          ten spaces   three  two ",
    "  leading and trailing  ",
    "\n\n \n\t\t \u00a0\u2003\u200b\ufeff",
    "\u00c9t\u00e9 Stra\u00dfe \u0130stanbul \u01c5 \u00e9 e\u0301 \ufb01 \u00bd \u2460 \uff21\uff22 \uff11\uff12",
    "猫は可愛い。 고양이 แมว क्षत्रिय חתול قطّة Кошка γάτα",
    "\u2018quotes\u2019 \u201cmore\u201d \u2014 \u2026 \u2192 \u221a2 \U0001f63a\u200d\U0001f680 \u2764\ufe0f \x00\x1b",
    "https://example.org/a?b=c&d=%20#e user@example.org /usr/bin/env C:\\dir <b>tag</b> [link](url) `code` ~~~ === ###",
)
"""Texts that normalizers and pre-tokenizers treat differently: case, digits, spaces, accents, scripts, signs."""
MOST_COMPARED_TOKENS, MOST_COMPARED_ADDED = 8192, 1024
"""Tokens of the vocabulary, and added tokens, that are texts to compare too."""
TEXT, IDS = "text", "ids"
"""What strings of control tokens in a text become: spelled out, or the ids of these tokens."""
MOST_IDS_PER_BYTE = 16
MOST_IDS = 1 << 24
"""Limit for token ids, because later stages keep a count for every id up to the largest.

The largest vocabularies in use have a quarter of a million ids.
"""
COPY_ROWS = 65_536


class CopiedTokenizer(NamedTuple):
    """A tokenizer as transformers opened and saved it."""

    kind: str
    """Its class."""
    templates: list[str]
    """Names of its chat templates, if it has several."""
    replaced: list[str]
    """Rules that were put back (`restore_rules`)."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer like GPT-2's, with the special tokens <s>, </s> and <pad>.

    Raises:
        InputError: if the texts yield fewer than `vocab_size` ids.
    """
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut = pre_tokenizers.Split(Regex(f".{{{TRAINED_BYTES}}}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([byte_level, cut])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = byte_level
    if tokenizer.get_vocab_size() < vocab_size:
        raise InputError(
            f"tokenizer.vocab_size: the corpora yield {tokenizer.get_vocab_size()} ids, not {vocab_size}; "
            "lower it or add text"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path | str, n_ctx: int) -> None:
    """Save a tokenizer as a folder that `AutoTokenizer.from_pretrained` loads."""
    from transformers import PreTrainedTokenizerFast  # imported here because reading rows needs no transformers

    with atomic_files(folder) as temporary:
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=BOS,
            eos_token=EOS,
            pad_token=PAD,
            model_max_length=n_ctx,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(temporary)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Load the fast tokenizer of a Hugging Face folder, with truncation and padding switched off.

    A tokenizer.json may ask for both. They are meant for batches and would cut documents or pad them to any length.

    Raises:
        InputError: if the folder has no tokenizer.json, or it is not a tokenizer.
    """
    path = Path(folder, "tokenizer.json")
    if not path.exists():
        raise InputError(
            f"'{folder}' must hold a fast tokenizer (tokenizer.json); convert it with AutoTokenizer and save_pretrained"
        )
    require_regular(path, MOST_TOKENIZER_BYTES)
    with tokenizer_errors(path):
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def restore_rules(source: Path | str, folder: Path | str) -> list[str]:
    """Put the rules of a tokenizer.json back into the one that transformers saved of it.

    The rules are the normalizer, the pre-tokenizer, and the model with its vocabulary and merges. Added tokens and
    special tokens are left as transformers saved them, but for those that only the class that it chose has: their ids
    would lie beyond the models' embeddings. Where nothing differs, nothing is written.

    Args:
        source: the folder that transformers read.
        folder: the folder that it wrote.

    Returns:
        The names of the rules that differed; none where the source has no tokenizer.json.
    """
    if not Path(source, FAST_FILE).exists():
        return []
    rules, saved = (json.loads(load_tokenizer(each).to_str()) for each in (source, folder))
    replaced = [rule for rule in RULES if rules[rule] != saved[rule]]
    known = _strings([rules["added_tokens"], *map(read_foreign_json, _files_of_added_tokens(source))])
    known |= load_tokenizer(source).get_vocab().keys()
    invented = {token["content"] for token in saved["added_tokens"]} - known
    if replaced or invented:
        kept = [token for token in saved["added_tokens"] if token["content"] not in invented]
        restored = {rule: rules[rule] for rule in replaced} | {"added_tokens": kept}
        write_json(Path(folder, FAST_FILE), saved | restored)
        path = Path(folder, CONFIG_FILE)
        config = {key: value for key, value in read_foreign_json(path).items() if not _strings(value) & invented}
        write_json(path, config | {"tokenizer_class": PLAIN_CLASS})
    return replaced


def _files_of_added_tokens(folder: Path | str) -> list[Path]:
    """Files beside tokenizer.json that may add tokens."""
    paths = (Path(folder, name) for name in (CONFIG_FILE, ADDED_FILE, SPECIAL_FILE))
    return [path for path in paths if path.exists()]


def _strings(value: object) -> set[str]:
    """Every string in nested lists and mappings, keys included."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return set().union(*map(_strings, value))
    return {value} if isinstance(value, str) else set()


@contextmanager
def tokenizer_errors(source: Path | str) -> Iterator[None]:
    """Turn any error of a third-party tokenizer into one InputError.

    `tokenizers` and `transformers` raise almost any exception on damaged files. A panic in Rust is not an `Exception`,
    and its class cannot be imported. Errors of the disk pass through unchanged.

    Raises:
        InputError: in place of the original error.
    """
    try:
        yield
    except BaseException as error:
        is_from_library = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not is_from_library or isinstance(error, InputError) or disk_fault(error) is not None:
            raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"tokenizer: '{source}' cannot be opened as a tokenizer: {reason}; save it again with save_pretrained"
        ) from error


def check_tokenizer(folder: Path | str) -> None:
    """Try a tokenizer on a short text.

    Raises:
        InputError: if it cannot encode the text, gives no ids or far too many, or has neither BOS nor EOS.
    """
    special_ids(folder)
    tokenizer = load_tokenizer(folder)
    with tokenizer_errors(folder):
        n_ids = len(tokenizer.encode(TRIAL, add_special_tokens=False).ids)
    if not 0 < n_ids <= MOST_IDS_PER_BYTE * len(TRIAL.encode()):
        raise InputError(
            f"'{folder}': a tokenizer must make 1 to {MOST_IDS_PER_BYTE * len(TRIAL.encode())} ids of a text of "
            f"{len(TRIAL.encode())} bytes, but this one makes {n_ids}; use another tokenizer"
        )


def require_same_tokens(model_folder: Path | str, tokenizer_folder: Path | str, name: str) -> list[str]:
    """Compare a model's own tokenizer with the run's: as files, then by the ids that both give for some texts.

    A tokenizer without a tokenizer.json is converted as transformers does it, if that is possible.

    Args:
        model_folder: the model's files as they were fetched, which need not be trusted.
        tokenizer_folder: the run's tokenizer.
        name: the model's name in the config, for messages.

    Returns:
        Sentences to warn with: what cannot be compared, and what the run's tokenizer replaces.

    Raises:
        InputError: if ids mean different tokens, or both give different ids for a text, with the number that differ.
    """
    warnings = require_same_tokenizer(model_folder, tokenizer_folder, name)
    if same_files(model_folder, tokenizer_folder):
        return warnings
    run_tokenizer = load_tokenizer(tokenizer_folder)
    model_tokenizer, reason = _model_tokenizer(Path(model_folder))
    if model_tokenizer is None:
        return [*warnings, cannot_be_compared(Path(model_folder), name, reason)]
    model, run = (json.loads(each.to_str()) for each in (model_tokenizer, run_tokenizer))
    if not Path(model_folder, FAST_FILE).exists():
        comparison = compare_tokenizers(model, run)
        require_same_ids(comparison, name)
        warnings = list(dict.fromkeys(warnings + comparison_warnings(comparison, name)))
    added = list(islice(shared_added_tokens(model, run), MOST_COMPARED_ADDED))
    texts = [*COMPARED_TEXTS, *_texts_of_vocabulary(run_tokenizer), *(f"a{token}b a {token} b" for token in added)]
    n_ids, n_different = _differing_ids(model_tokenizer, run_tokenizer, texts)
    if n_different:
        raise InputError(
            f"models.{name}: the model's own tokenizer must give the same ids for a text as the run's, but "
            f"{n_different} of {n_ids} ids differ in {len(texts)} short texts (merges, normalizer, pre-tokenizer, "
            f"added tokens or options of the two are not the same); {NEXT_STEP}"
        )
    return warnings


def copy_tokenizer(source: Path | str, folder: Path | str, template: str | None) -> CopiedTokenizer:
    """Save a third-party tokenizer as tokenizer.json and tokenizer_config.json, with the same ids for every text.

    transformers 5 makes many tokenizers anew from the name of their class or of the model's type, and then splits text
    as that class does, whatever the tokenizer.json says: one called a GPT2Tokenizer no longer splits numbers into
    digits. So the file's own rules are put back (`restore_rules`).

    Args:
        source: a folder that was checked (`check_tokenizer_folder`).
        folder: the folder to write.
        template: the chat template to save in tokenizer_config.json; None saves none.

    Raises:
        InputError: if the tokenizer cannot be opened.
    """
    from transformers import AutoTokenizer

    with tokenizer_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
        templates = tokenizer.chat_template
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder, save_jinja_files=False)
        replaced = restore_rules(source, folder)
    return CopiedTokenizer(type(tokenizer).__name__, sorted(templates) if isinstance(templates, dict) else [], replaced)


@contextmanager
def tokenizer_of_model(model_folder: Path | str, run_folder: Path) -> Iterator[Path]:
    """Yield the folder of the tokenizer that belongs to an imported model: the run's, or a copy of the model's own.

    Its own is one that has other tokens than the run's (`require_same_tokens` compares what both have).

    Args:
        model_folder: the model's files as they were fetched.
        run_folder: the run's tokenizer.
    """
    own, _ = _model_tokenizer(Path(model_folder))
    if own is None or own.get_vocab() == load_tokenizer(run_folder).get_vocab():
        yield run_folder
        return
    check_tokenizer_folder(model_folder)
    with tempfile.TemporaryDirectory() as folder:
        copy_tokenizer(model_folder, folder, None)
        yield Path(folder)


def check_tokenizer_folder(folder: Path | str) -> None:
    """Check a third-party tokenizer folder before transformers opens it and follows the file names it contains.

    Raises:
        InputError: if a file is not regular, not JSON or too large, is a link that leads out of the folder (outside
            the Hugging Face cache), or names files that are not in the folder.
    """
    folder = Path(folder)
    require_inside(folder, (*TOKENIZER_ENDINGS, CHAT_TEMPLATES))
    for path in sorted([*folder.iterdir(), *(folder / CHAT_TEMPLATES).glob("*")]):
        if not path.is_dir():
            require_regular(path, MOST_TOKENIZER_BYTES if path.name.endswith(TOKENIZER_ENDINGS) else None)
    path = folder / "tokenizer_config.json"
    config = read_foreign_json(path) if path.exists() else {}
    names = config.get("fast_tokenizer_files") or []
    names = names if isinstance(names, list) else [names]
    wrong = next((name for name in names if not isinstance(name, str) or "/" in name or "\\" in name), None)
    if wrong is not None:
        raise InputError(f"'{path}': fast_tokenizer_files must be names in this folder, not {wrong!r:.80}; remove it")


def special_ids(folder: Path | str) -> dict[str, int]:
    """Ids of BOS and EOS in a tokenizer folder; if one is missing, the other serves for both.

    Raises:
        InputError: if the tokenizer has neither.
    """
    config = read_foreign_json(Path(folder, "tokenizer_config.json"))
    tokenizer = load_tokenizer(folder)
    candidates = [_token_id(tokenizer, config.get(key)) for key in ("bos_token", "eos_token")]
    ids = [token_id for token_id in candidates if token_id is not None]
    if not ids:
        raise InputError(
            f"the tokenizer in '{folder}' must have a BOS or an EOS token, which separates documents, but has neither; "
            "use another tokenizer"
        )
    return {"bos": ids[0], "eos": ids[-1]}


def write_rows(
    documents: Iterable[str],
    tokenizer_folder: Path | str,
    n_ctx: int,
    max_tokens: int | None,
    path: Path | str,
    special: str = TEXT,
    most_of_document: int | None = None,
) -> dict:
    """Tokenize documents into rows and write them as a .npy array [n_rows, n_ctx].

    Memory holds a block of documents, and 8 bytes of every document.

    Args:
        documents: the texts of one split.
        tokenizer_folder: a folder with tokenizer.json and tokenizer_config.json.
        n_ctx: ids per row.
        max_tokens: upper limit of the ids written, in whole rows; None writes all.
        path: the .npy file to write.
        special: `TEXT` spells strings of control tokens out; `IDS` makes them ids.
        most_of_document: upper limit of the ids of one document, of which `excerpt` takes a part; None takes it whole.

    Returns:
        What `rows_info` returns, `special`, `most_of_document`, what `document_counts` returns, and
        `n_control_strings`, the number of strings of control tokens in the documents that were read.

    Raises:
        InputError: if the text or `max_tokens` does not fill one row.
    """
    tokenizer, ends = _reading(tokenizer_folder, special), special_ids(tokenizer_folder)
    dtype, max_rows = id_type(tokenizer, tokenizer_folder), most_rows(max_tokens, n_ctx, path)
    counter, lengths = ControlStrings(tokenizer), array("q")
    digest = hashlib.sha256()
    n_rows = 0
    with atomic_path(path) as temporary, tempfile.TemporaryFile(dir=Path(path).parent) as raw:
        encoded = _encoded(counter.counted(documents), tokenizer, most_of_document)
        for rows in _row_blocks(_id_stream(encoded, ends["eos"], lengths), n_ctx, ends["bos"], dtype):
            rows = rows if max_rows is None else rows[: max_rows - n_rows]
            raw.write(rows.tobytes())
            digest.update(rows.tobytes())
            n_rows += len(rows)
            if n_rows == max_rows:
                break
        raw.flush()
        if n_rows == 0:
            raise InputError(
                f"'{path}': the documents do not fill one row of n_ctx = {n_ctx} tokens; add text or lower tokens.n_ctx"
            )
        copy_to_npy(raw, temporary, dtype, (n_rows, n_ctx))
    info = rows_info(path, n_rows, n_ctx, tokenizer_folder, digest.hexdigest())
    counts = document_counts(np.array(lengths, dtype=np.int64), n_rows * (n_ctx - 1))
    settings = {"special": special, "most_of_document": most_of_document}
    return info | settings | counts | {"n_control_strings": counter.n_found}


def limit_of_document(
    documents: Iterable[str],
    n_documents: int,
    share: float,
    tokenizer_folder: Path | str,
    max_tokens: int | None,
    special: str = TEXT,
) -> int:
    """Ids that one document may give, so that none holds more than a share of the rows.

    The share is of the ids that the documents give without this limit. Where they are fewer than 1 / share, each may
    give an equal part of these, because a smaller limit would cut rows away and make no document weigh less.

    Args:
        documents: the texts of one split, which are read until they reach `max_tokens`.
        n_documents: their number, at least 1.
        share: in (0, 1].
        tokenizer_folder, max_tokens, special: as in `write_rows`.
    """
    tokenizer, n_ids = _reading(tokenizer_folder, special), 0
    for ids in _encoded(documents, tokenizer):
        n_ids += len(ids)
        if max_tokens is not None and n_ids >= max_tokens:
            break
    return max(1, ceil(max(share, 1 / n_documents) * (n_ids if max_tokens is None else min(n_ids, max_tokens))))


def excerpt(text: str, n_ids: int, most: int | None) -> range:
    """The ids of a document that a split takes: all, or `most` in a row from a place that a hash of the text decides.

    Not the first ones, because beginnings of documents (licences, imports, titles) are a kind of text of their own.
    """
    if most is None or n_ids <= most:
        return range(n_ids)
    start = int.from_bytes(hashlib.sha256(text.encode()).digest()[-8:], "big") % (n_ids - most + 1)
    return range(start, start + most)


def rows_info(path: Path | str, n_rows: int, n_ctx: int, tokenizer_folder: Path | str, ids_sha256: str) -> dict:
    """The part of a sidecar that all rows of ids have.

    Args:
        path: the rows, already written.
        n_rows, n_ctx: their shape.
        tokenizer_folder: the tokenizer that made them.
        ids_sha256: digest of the ids.

    Returns:
        `n_rows`, `n_ctx`, `n_tokens`, `bos_id`, `eos_id`, `tokenizer_sha256`, `ids_sha256`; `n_ids`, one more than the
        tokenizer's largest id; and `added_tokens`, the `id` and the number `n` of each added token in the rows.
    """
    ends, tokenizer = special_ids(tokenizer_folder), load_tokenizer(tokenizer_folder)
    return {
        "n_rows": n_rows,
        "n_ctx": n_ctx,
        "n_tokens": n_rows * n_ctx,
        "bos_id": ends["bos"],
        "eos_id": ends["eos"],
        "tokenizer_sha256": sha256_file(Path(tokenizer_folder, "tokenizer.json")),
        "ids_sha256": ids_sha256,
        "n_ids": max(tokenizer.get_vocab().values()) + 1,
        "added_tokens": _added_in_rows(path, tokenizer),
    }


def _added_in_rows(path: Path | str, tokenizer: Tokenizer) -> dict[str, dict[str, int]]:
    """The id of each added token that rows hold, and how often they hold it, by the token."""
    ids, counts = np.load(path, mmap_mode="r", allow_pickle=False), np.zeros(0, dtype=np.int64)
    for start in range(0, len(ids), COPY_ROWS):
        more = np.bincount(ids[start : start + COPY_ROWS].reshape(-1), minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    added = tokenizer.get_added_tokens_decoder()
    held = sorted(number for number in added if number < len(counts) and counts[number])
    return {added[number].content: {"id": number, "n": int(counts[number])} for number in held}


def id_type(tokenizer: Tokenizer, folder: Path | str) -> type[np.unsignedinteger]:
    """The number format of a tokenizer's ids.

    Raises:
        InputError: if an id is too large.
    """
    largest_id = max(tokenizer.get_vocab().values())  # may exceed their number: a vocabulary may have holes
    if largest_id >= MOST_IDS:
        raise InputError(
            f"'{folder}': ids of a tokenizer must be below {MOST_IDS}, but one is {largest_id}; use another tokenizer"
        )
    return np.uint16 if largest_id < 2**16 else np.uint32


def most_rows(max_tokens: int | None, n_ctx: int, path: Path | str) -> int | None:
    """Whole rows in a limit on tokens; None is no limit.

    Raises:
        InputError: if the limit does not hold one row.
    """
    if max_tokens is not None and max_tokens < n_ctx:
        raise InputError(f"'{path}': max_tokens ({max_tokens}) must hold a row of n_ctx ({n_ctx}) tokens; raise it")
    return None if max_tokens is None else max_tokens // n_ctx


class ControlStrings:
    """Counts strings of control tokens in texts.

    Attributes:
        n_found: their number so far.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Learn a tokenizer's control tokens: its added tokens that are marked as special."""
        tokens = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        self._tokens = tokens - {""}
        self._lengths = sorted({len(token) for token in self._tokens}, reverse=True)
        first = "".join(map(re.escape, sorted({token[0] for token in self._tokens})))
        self._first = re.compile(f"[{first}]") if first else None
        self.n_found = 0

    def count(self, text: str) -> int:
        """Count the control tokens in a text; of two that overlap the first counts, of two at one place the longer."""
        if self._first is None:
            return 0
        n_found = 0
        place = self._first.search(text)
        while place is not None:
            start = place.start()
            length = next((n for n in self._lengths if text[start : start + n] in self._tokens), 0)
            n_found += length > 0
            place = self._first.search(text, start + max(length, 1))
        return n_found

    def counted(self, texts: Iterable[str]) -> Iterator[str]:
        """Pass texts on, and count in each."""
        for text in texts:
            self.n_found += self.count(text)
            yield text

    def in_messages(self, conversations: Iterable[str]) -> Iterator[str]:
        """Pass conversations on, and count in their messages."""
        for conversation in conversations:
            self.n_found += sum(self.count(message["content"]) for message in messages_of(conversation))
            yield conversation


class TokenRows:
    """Memory-mapped rows of token ids, with their sidecar.

    Attributes:
        path: the .npy file.
        ids: [n_rows, n_ctx] unsigned ids.
        classes: [n_rows, n_ctx] class of each token of conversations (`corpora.messages.CLASSES`), from 1; 0 where a
            row is filled up. None for rows of text.
        info: the sidecar: the mapping that `write_rows` returned.
    """

    def __init__(self, path: Path | str):
        """Open `{split}.npy` and its sidecar `{split}.json`.

        Raises:
            InputError: if one is damaged or the two disagree.
        """
        self.path = Path(path)
        self.info = read_json(self.path.with_suffix(".json"))
        self.ids = self._opened(self.path)
        self.classes = self._opened(classes_path(self.path)) if "classes_sha256" in self.info else None
        self._stand_ins: dict[int, int] = {}

    def read_with(self, stand_ins: Mapping[int, int]) -> "TokenRows":
        """The same rows as a model reads them that does not share some ids: with other ids in their place.

        These places are never `shared`, nor `predicted`.

        Args:
            stand_ins: the id that is read in place of each that is not shared.
        """
        rows = copy(self)
        rows._stand_ins = dict(stand_ins)
        return rows

    def read(self, rows: range) -> Int[np.ndarray, "row n_ctx"]:
        """The ids of some rows as the model reads them."""
        ids = self.ids[rows.start : rows.stop : rows.step].astype(np.int64)
        stored = ids.copy() if self._stand_ins else ids
        for number, stand_in in self._stand_ins.items():
            ids[stored == number] = stand_in
        return ids

    def shared(self, rows: range) -> Bool[np.ndarray, "row n_ctx"]:
        """Mask of the tokens that the model shares with the run's tokenizer (`read_with`)."""
        return ~np.isin(self.ids[rows.start : rows.stop : rows.step], list(self._stand_ins))

    def _opened(self, path: Path) -> np.ndarray:
        """Open an array as large as the sidecar says."""
        try:
            array = np.lib.format.open_memmap(path, mode="r")  # takes neither pickled objects nor archives
        except (ValueError, EOFError, OSError, OverflowError, MemoryError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"'{path}' is not a whole .npy file ({reason}); delete it and run again") from error
        if array.shape != (self.info["n_rows"], self.info["n_ctx"]):
            raise InputError(
                f"'{path}' has shape {array.shape}, its sidecar says {self.info['n_rows']} x {self.info['n_ctx']}; "
                "delete it and run again"
            )
        return array

    @property
    def digest(self) -> str:
        """sha256 of the ids; activations and features carry it to show which tokens they belong to."""
        return self.info["ids_sha256"]

    def shard(self, shard: int, n_shards: int, max_tokens: int | None = None) -> range:
        """Row numbers of one of `n_shards` nearly equal parts of all rows, or of the first rows up to `max_tokens`.

        Raises:
            InputError: if there are fewer rows than shards.
        """
        n_rows = len(self.ids) if max_tokens is None else min(len(self.ids), max_tokens // self.info["n_ctx"])
        if n_rows < n_shards:
            raise InputError(
                f"'{self.path}' has {n_rows} rows to read, too few for {n_shards} shards; "
                "lower activations.n_shards or add text"
            )
        return range(n_rows * shard // n_shards, n_rows * (shard + 1) // n_shards)

    def spread(self, max_rows: int | None) -> range:
        """At most so many rows at equal distances, because rows in succession may be of one long document; None is all.

        Other methods take such ranges too.
        """
        n_rows = len(self.ids)
        return range(n_rows) if max_rows is None else range(0, n_rows, -(-n_rows // max_rows) or 1)

    def batches(
        self, batch_rows: int, within: range | None = None
    ) -> Iterator[tuple[range, Int[np.ndarray, "row n_ctx"]]]:
        """Yield row numbers and ids, `batch_rows` at a time, of all rows or those `within` a range."""
        within = range(len(self.ids)) if within is None else within
        for start in range(0, len(within), batch_rows):
            numbers = within[start : start + batch_rows]
            yield numbers, self.read(numbers)

    def text_mask(self, rows: range) -> Bool[np.ndarray, "row n_ctx"]:
        """Mask of the tokens that are text: False at BOS and EOS.

        In conversations BOS and EOS may open and end a turn, so all tokens are text but the first of each row, on which
        models rest attention that they need nowhere else, and what fills the row up.
        """
        ids = self.ids[rows.start : rows.stop : rows.step]
        if self.classes is None:
            return (ids != self.info["bos_id"]) & (ids != self.info["eos_id"])
        mask = self.classes[rows.start : rows.stop : rows.step] > 0
        mask[:, 0] = False
        return mask

    @property
    def left_out_ids(self) -> list[int] | None:
        """The ids that are no text wherever they stand; None for conversations, where only places are."""
        if self.classes is not None:
            return None
        return sorted({self.info["bos_id"], self.info["eos_id"]})

    def predicted(self, rows: range) -> Bool[np.ndarray, "row n_ctx"]:
        """Mask of the tokens whose prediction counts: all that are `shared`, but for what fills rows up."""
        shared = self.shared(rows)
        return shared if self.classes is None else shared & (self.classes[rows.start : rows.stop : rows.step] > 0)

    def compared(self, rows: range) -> Bool[np.ndarray, "row n_ctx"]:
        """Mask of the tokens whose activations count: text that is `shared`."""
        return self.text_mask(rows) & self.shared(rows)


def classes_path(path: Path | str) -> Path:
    """The file of the classes beside an array of rows of conversations."""
    return Path(path).with_suffix(".classes.npy")


def write_sidecar(path: Path | str, info: dict) -> None:
    """Write the JSON sidecar of a token array."""
    write_json(Path(path).with_suffix(".json"), info)


def read_token_rows(paths: Mapping[str, Path | str]) -> dict[str, TokenRows]:
    """Open the token rows of some corpora, by corpus."""
    return {corpus: TokenRows(path) for corpus, path in paths.items()}


def _model_tokenizer(folder: Path) -> tuple[Tokenizer | None, str | None]:
    """A model's own tokenizer, or None and the reason why it cannot be opened; twice None if there is none."""
    if Path(folder, FAST_FILE).exists():
        return load_tokenizer(folder), None
    if not any(Path(folder, file).exists() for file in VOCABULARY_FILES):
        return None, None  # AutoTokenizer would make an empty one
    from transformers import AutoTokenizer

    check_tokenizer_folder(folder)
    try:
        with tokenizer_errors(folder):
            converted = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except InputError as error:  # a package that converts it may be missing
        return None, " ".join(str(error.__cause__ or error).split())[:200]
    backend = getattr(converted, "backend_tokenizer", None)
    return backend, None if backend else f"transformers has no fast tokenizer for {type(converted).__name__}"


def _texts_of_vocabulary(tokenizer: Tokenizer) -> list[str]:
    """Texts of tokens from the whole vocabulary, alone and with the next one, because merges of rare words show there.

    Each line holds 16 of them.
    """
    ids = sorted(tokenizer.get_vocab(with_added_tokens=False).values())
    step = -(-len(ids) // MOST_COMPARED_TOKENS) or 1
    with tokenizer_errors("tokenizer.json"):
        words = tokenizer.decode_batch([[number] for number in ids[::step]], skip_special_tokens=False)
    words += [first + second.strip() for first, second in pairwise(words)]
    return [" ".join(words[start : start + 16]) for start in range(0, len(words), 16)]


def _differing_ids(a: Tokenizer, b: Tokenizer, texts: Sequence[str]) -> tuple[int, int]:
    """The number of ids that two tokenizers give for texts, and of those that differ, place by place.

    As in rows, the names of special tokens are plain text.
    """
    with tokenizer_errors("tokenizer.json"):
        for tokenizer in (a, b):
            tokenizer.encode_special_tokens = True
            tokenizer.no_truncation()
            tokenizer.no_padding()
        encodings = [tokenizer.encode_batch(list(texts), add_special_tokens=False) for tokenizer in (a, b)]
    pairs = [(left.ids, right.ids) for left, right in zip(*encodings, strict=True)]
    n_different = sum(left != right for pair in pairs for left, right in zip_longest(*pair))
    return sum(max(map(len, pair)) for pair in pairs), n_different


def _token_id(tokenizer: Tokenizer, token: object) -> int | None:
    content = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(content) if isinstance(content, str) else None


def _reading(tokenizer_folder: Path | str, special: str) -> Tokenizer:
    """A tokenizer that reads strings of control tokens as `write_rows` is told to."""
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.encode_special_tokens = special == TEXT  # so a </s> in the text of a document does not end it
    return tokenizer


def _encoded(
    documents: Iterable[str], tokenizer: Tokenizer, most_of_document: int | None = None
) -> Iterator[list[int]]:
    """Yield the ids of each document that a split takes."""
    remaining = iter(documents)
    while texts := list(islice(remaining, ENCODE_DOCUMENTS)):
        with tokenizer_errors("tokenizer.json"):
            encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            part = excerpt(text, len(encoding.ids), most_of_document)
            yield encoding.ids[part.start : part.stop]


def _id_stream(encoded: Iterable[list[int]], eos_id: int, lengths: array) -> Iterator[list[int]]:
    """Yield one list of ids per document, ending in EOS, and note the length of each without EOS."""
    for ids in encoded:
        lengths.append(len(ids))
        yield [*ids, eos_id]


def _row_blocks(
    stream: Iterable[list[int]], n_ctx: int, bos_id: int, dtype: type[np.unsignedinteger]
) -> Iterator[Integer[np.ndarray, "row n_ctx"]]:
    """Cut a stream of ids into blocks of full rows that begin with BOS."""
    pending: list[int] = []
    for ids in stream:
        pending.extend(ids)
        n_rows = len(pending) // (n_ctx - 1)
        if n_rows:
            n_used = n_rows * (n_ctx - 1)
            rows = np.empty((n_rows, n_ctx), dtype=dtype)
            rows[:, 0] = bos_id
            rows[:, 1:] = np.asarray(pending[:n_used]).reshape(n_rows, n_ctx - 1)
            del pending[:n_used]
            yield rows


def copy_to_npy(raw: IO[bytes], path: Path, dtype: type[np.unsignedinteger], shape: tuple[int, int]) -> None:
    source = np.memmap(raw, dtype=dtype, mode="r", shape=shape)
    target = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    for start in range(0, shape[0], COPY_ROWS):
        target[start : start + COPY_ROWS] = source[start : start + COPY_ROWS]
    target.flush()
