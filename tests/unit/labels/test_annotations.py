"""Annotations of tokens, on a few documents and a small tokenizer."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from saelineage.errors import InputError
from saelineage.labels import annotations as module
from saelineage.labels.annotations import (
    KINDS,
    RULES,
    Annotations,
    Cut,
    annotate,
    ends_of,
    load_annotations,
    numbers_of,
    save_annotations,
    text_of,
    window,
)
from saelineage.tokens import TokenRows, load_tokenizer, write_rows, write_sidecar

N_CTX = 16
HOSTILE = [
    "<script>alert('1')</script></s><s> {{ 7*7 }}",
    "a\0b\r\n\u202eabc\u2028 \ufeff\ufffd",
    "é😀 naïve 日本語 \U0001f468\u200d\U0001f469",
    "x" * 3000,
    " \n\t\n   \n",
]


@pytest.fixture
def read(tiny: SimpleNamespace, tmp_path: Path) -> Callable:
    """Write the documents of some corpora as token rows and annotate them."""

    def run(
        corpora: dict[str, list[str]],
        syntax: dict[str, str] | None = None,
        n_rows: int | None = None,
        most_of_document: int | None = None,
    ):
        rows = {}
        for corpus, documents in corpora.items():
            path = tmp_path / corpus / "probe.npy"
            path.parent.mkdir(exist_ok=True)
            most = None if n_rows is None else n_rows * N_CTX
            write_sidecar(path, write_rows(documents, tiny.tokenizer, N_CTX, most, path, "text", most_of_document))
            rows[corpus] = TokenRows(path)
        return annotate(corpora, rows, load_tokenizer(tiny.tokenizer), syntax or {}), rows

    return run


def have(annotations: Annotations, kind: str, name: str) -> list[int]:
    """Numbers of the tokens that have a property."""
    column = annotations.properties.index((kind, name))
    return np.flatnonzero(annotations.matrix[:, [column]].toarray()[:, 0]).tolist()


def cut(pieces: list[str]) -> Cut:
    """A document of these tokens, all in one row."""
    return Cut("".join(pieces), np.cumsum([len(piece) for piece in pieces]), np.arange(1, len(pieces) + 1))


def test_pieces_joined_are_the_documents_and_rows_begin_with_bos(read):
    documents = ["The cat sat.\n", "A dog and a hen sat on the wall.\n" * 8]
    probe, rows = read({"words": documents})
    in_stream = [number for number in range(len(probe.pieces)) if number % N_CTX]
    text = "".join(text_of(probe, in_stream))
    assert text == "".join(documents)[: len(text)]
    assert len(text) > len(documents[0])
    ids = np.asarray(rows["words"].ids).ravel()
    special = np.isin(ids, [rows["words"].info["bos_id"], rows["words"].info["eos_id"]])
    assert (probe.pieces[special] == -1).all()
    assert (probe.documents[special] == -1).all()
    assert (probe.documents[~special] >= 0).all()
    assert np.diff(probe.matrix.indptr)[special].sum() == 0


def test_a_part_of_a_long_document_has_the_properties_that_it_has_in_the_document(read):
    long = "local x = 1\n" + "y = x + 2\n" * 30
    short = "local z = 3\n"
    documents = [long, *[f"{short}-- {number}\n" for number in range(20)]]
    whole, _ = read({"lua": documents}, {"lua": "lua"})
    part, _ = read({"lua": documents}, {"lua": "lua"}, most_of_document=40)
    of_whole, of_part = (np.flatnonzero(probe.documents == 0) for probe in (whole, part))
    assert len(of_part) == 40 < len(of_whole)
    text, taken = "".join(text_of(whole, of_whole)), "".join(text_of(part, of_part))
    assert text == long
    assert taken in long
    assert not long.startswith(taken)
    pieces = text_of(whole, of_whole)
    (start,) = [n for n in range(len(of_whole) - 39) if pieces[n : n + 40] == text_of(part, of_part)][-1:]
    assert have(part, "position", "first in its document")[0] not in of_part
    for kind, name in (("shape", "ends a word"), ("shape", "first on its line"), ("shape", "newline")):
        expected = [number in have(whole, kind, name) for number in of_whole[start : start + 40]]
        assert [number in have(part, kind, name) for number in of_part] == expected


def test_hostile_text_passes_through_unchanged(read):
    documents = [*HOSTILE, "The end of it all. " * 10]
    probe, _ = read({"words": documents})
    for number, document in enumerate(documents[:-1]):
        assert "".join(text_of(probe, np.flatnonzero(probe.documents == number))) == document


def test_of_tokens_that_share_a_character_the_first_has_it(read):
    # The tokenizer knows no 😀, whose UTF-8 has four bytes.
    probe, _ = read({"words": ["😀" * 20]})
    tokens = np.flatnonzero(probe.documents == 0)
    assert text_of(probe, tokens[:8]) == ["😀", "", "", "", "😀", "", "", ""]
    assert have(probe, "shape", "rest of a character")[:3] == tokens[1:4].tolist()


def test_pieces_of_a_tokenizer_that_trims_spaces_are_the_text_too(tmp_path):
    # This tokenizer's offsets leave spaces out, and it adds a space before the text.
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "▁ab", "▁cd", "▁"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "▁"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace()
    ids = [[0, 2, 3, 3, 1, 2]]
    np.save(tmp_path / "probe.npy", np.array(ids, dtype=np.uint16))
    write_sidecar(
        tmp_path / "probe.npy", {"n_rows": 1, "n_ctx": 6, "bos_id": 0, "eos_id": 1, "ids_sha256": "0", "n_tokens": 6}
    )
    probe = annotate({"a": [" AB   cd cd  ", "ab "]}, {"a": TokenRows(tmp_path / "probe.npy")}, tokenizer, {})
    assert text_of(probe, range(6)) == ["", " AB", "   cd", " cd  ", "", "ab "]


def test_pieces_of_a_tokenizer_that_falls_back_to_bytes_are_the_text_too(tmp_path):
    # As Llama's and Mistral's: a space added before the text, spaces as ▁, unknown characters as their bytes.
    names = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    text = "aé  a"
    ids = [0, *(vocabulary[name] for name in ("▁a", "<0xC3>", "<0xA9>", "▁", "▁a", "</s>", "▁a"))]
    np.save(tmp_path / "probe.npy", np.array([ids], dtype=np.uint16))
    write_sidecar(
        tmp_path / "probe.npy", {"n_rows": 1, "n_ctx": 8, "bos_id": 0, "eos_id": 1, "ids_sha256": "0", "n_tokens": 8}
    )
    probe = annotate({"a": [text, "a"]}, {"a": TokenRows(tmp_path / "probe.npy")}, tokenizer, {})
    assert text_of(probe, range(8)) == ["", "a", "é", "", " ", " a", "", "a"]


def test_offsets_that_leave_text_out_or_go_back_are_made_to_cover_the_text():
    assert ends_of([(1, 2), (0, 0), (3, 5)], 7).tolist() == [2, 2, 7]
    assert ends_of([], 3).tolist() == []


def test_tokens_and_documents_are_numbered_through_all_corpora(read):
    probe, rows = read({"sums": ["local a = 1\n"] * 9, "words": ["The cat sat on the mat.\n"] * 8})
    n_sums = rows["sums"].ids.size
    assert probe.starts == {"sums": 0, "words": n_sums}
    assert probe.documents[:n_sums].max() + 1 == probe.documents[n_sums + 1]
    assert numbers_of(probe, "words", np.array([1, 5])).tolist() == [n_sums + 1, n_sums + 5]
    # Corpora hold whole rows, so division gives the row and place of a token number.
    assert n_sums % N_CTX == 0
    with pytest.raises(InputError, match=r"sums, words.*'stories'.*delete labels/probe\.safetensors"):
        numbers_of(probe, "stories", np.array([1]))
    with pytest.raises(InputError, match=rf"'sums'.* position {n_sums}; delete labels/probe\.safetensors"):
        numbers_of(probe, "sums", np.array([n_sums]))


def test_a_window_ends_with_its_row_and_with_its_document():
    # Two rows of 6: BOS a a EOS b b, BOS b b b EOS c.
    documents = np.array([-1, 0, 0, -1, 1, 1, -1, 1, 1, 1, -1, 2], dtype=np.int32)
    probe = Annotations({"x": 0}, 6, documents, ["a", "b", "c"], documents, [], None)
    assert window(probe, 2, 5, 5) == range(1, 3)
    assert window(probe, 5, 5, 5) == range(4, 6)
    assert window(probe, 8, 5, 5) == range(7, 10)
    assert window(probe, 8, 0, 1) == range(8, 10)
    assert window(probe, 6, 2, 2) == range(6, 7)
    assert text_of(probe, range(3, 6)) == ["", "b", "b"]


HOLDS = [
    (["a", " ", " b"], "whitespace", [1]),
    (["a\n", "b", "", "\n"], "newline", [0, 3]),
    (["  ", "a", "  ", "b", "\n  ", "c", "\n", "  ", " d"], "indentation", [0, 4, 7]),
    (["a", " +", "==", "_", "a-"], "punctuation", [1, 2]),
    (["12", " 3", "4a", " "], "digits", [0, 1]),
    (["The", " the", " THE", " A", " eX", "É", "éa"], "capitalised", [0]),
    (["The", " THE", " A", "1", "É"], "upper case", [1, 2, 4]),
    (["a", "é", " 😀"], "beyond ASCII", [1, 2]),
    (["a", "", "b"], "rest of a character", [1]),
    (["de", "f", " g", "(", "x", "_1", ")"], "starts a word", [0, 2, 4]),
    (["de", "f", " g", "(", "x", "_1", ")"], "inside a word", [1, 5]),
    (["de", "f", " g", "(", "x", "_1", ")"], "ends a word", [1, 2, 5]),
    (["a", " b", "\n", " ", "c", " d", "\n\n e"], "first on its line", [0, 4, 6]),
    (["a", " b", " \n", "c\n", "d", " "], "last on its line", [1, 3, 4]),
    (["a", "b", "c", "d", "e"], "first 4 in its document", [0, 1, 2, 3]),
    (["a", "b"], "first in its document", [0]),
    (["a", "b"], "last in its document", [1]),
]


def test_rules_hold_of_these_tokens():
    for pieces, name, expected in HOLDS:
        kind = "position" if "document" in name else "shape"
        assert np.flatnonzero(RULES[kind, name].holds(cut(pieces))).tolist() == expected, (name, pieces)


def test_every_rule_accepts_a_document_without_tokens():
    empty = Cut("abc", np.array([3]), np.zeros(0, dtype=np.int64))
    for name, rule in RULES.items():
        assert len(rule.holds(empty)) == 0, name


def test_places_in_the_row_are_what_the_model_reads(read):
    probe, _ = read({"words": ["The cat and the dog sat on the mat and the wall.\n" * 12]})
    places = np.arange(len(probe.pieces)) % N_CTX
    text = probe.documents >= 0
    assert have(probe, "position", "first of its row") == np.flatnonzero(text & (places == 1)).tolist()
    assert have(probe, "position", "first 4 of its row") == np.flatnonzero(text & (places <= 4) & (places > 0)).tolist()


def test_a_document_that_the_rows_cut_off_has_no_last_token(read):
    probe, _ = read({"words": ["The cat.\n", "The cat and the dog sat on the mat.\n" * 9]}, n_rows=2)
    assert probe.documents.max() == 1
    last = have(probe, "position", "last in its document")
    assert probe.documents[last].tolist() == [0]


def test_frequent_tokens_and_the_tokens_after_them_are_properties(read):
    documents = ["The cat and the dog sat on the mat.\n"] * 40
    probe, _ = read({"words": documents})
    tokens = have(probe, "token", "cat")
    assert {text.strip() for text in text_of(probe, tokens)} == {"cat"}
    assert len(tokens) >= module.MIN_TOKENS
    after = have(probe, "after", "cat")
    same = [number + 1 for number in tokens if probe.documents[number + 1] == probe.documents[number]]
    assert after == same  # a BOS after it, where the row ends, belongs to no document
    assert all(probe.documents[number - 1] == probe.documents[number] for number in after)


def test_of_frequent_tokens_only_the_first_few_are_properties(read, monkeypatch):
    monkeypatch.setattr(module, "MOST_TOKENS", 2)
    monkeypatch.setattr(module, "MOST_AFTER", 1)
    probe, _ = read({"words": ["a a a b b c " * 20] * 20})
    assert [name for kind, name in probe.properties if kind == "token"] == ["a", "b"]
    assert [name for kind, name in probe.properties if kind == "after"] == ["a"]


def test_a_corpus_without_a_grammar_has_no_syntax(read):
    program = ["local total = 1\nlocal sum = total\n" * 30]
    probe, rows = read({"words": program, "sums": program}, {"sums": "lua"})
    start = rows["words"].ids.size
    targets = have(probe, "concept", "assignment target")
    assert {text.strip() for text in text_of(probe, targets)} <= {"total", "sum", *"totalsum", "t", "ot", "al", "su"}
    assert min(targets) > start
    assert ("syntax", "lua: identifier in variable_list") in probe.properties
    assert have(probe, "concept", "exception") == []
    only_text, _ = read({"words": program})
    assert {kind for kind, _ in only_text.properties} == {"corpus", "position", "shape", "token", "after"}


def test_rare_places_in_the_syntax_are_left_out(read):
    probe, _ = read({"sums": ["local total = 1\n" * 40 + "goto done\n" + "local sum = 2\n" * 40]}, {"sums": "lua"})
    names = [name for kind, name in probe.properties if kind == "syntax"]
    assert "lua: local in variable_declaration" in names
    assert not any("goto" in name for name in names)
    counts = np.asarray(probe.matrix.sum(axis=0)).ravel()
    of_syntax = [index for index, (kind, _) in enumerate(probe.properties) if kind == "syntax"]
    assert counts[of_syntax].min() >= module.MIN_TOKENS


def test_properties_are_in_the_order_of_their_kinds_and_unique(read):
    probe, _ = read({"sums": ["local total = 1\n" * 40], "words": ["The cat sat.\n" * 20]}, {"sums": "lua"})
    order = [KINDS.index(kind) for kind, _ in probe.properties]
    assert order == sorted(order)
    assert len(set(probe.properties)) == len(probe.properties)
    assert have(probe, "corpus", "words") == np.flatnonzero(probe.documents == 1).tolist()


def test_other_documents_than_the_rows_were_made_from_are_refused(read, tiny):
    documents = ["The cat sat on the mat.\n"] * 9
    _, rows = read({"words": documents})
    tokenizer = load_tokenizer(tiny.tokenizer)
    with pytest.raises(InputError, match=r"probe\.npy' .* document 1 of 'words' gives other ids; delete"):
        annotate({"words": [documents[0], "The dog sat on the mat.\n", *documents[2:]]}, rows, tokenizer, {})
    with pytest.raises(InputError, match=r"documents end after \d+ of \d+ ids; delete"):
        annotate({"words": documents[:2]}, rows, tokenizer, {})


def test_a_grammar_for_an_unknown_corpus_is_refused(read):
    with pytest.raises(InputError, match=r"labels\.syntax: 'programs' must be one of the corpora words"):
        read({"words": ["The cat sat on the mat.\n"] * 9}, {"programs": "lua"})


def test_annotations_survive_a_round_trip_and_equal_text_gives_equal_bytes(read, tmp_path):
    corpora = {"words": [*HOSTILE, "The cat sat.\n" * 20], "sums": ["local a = 1\n" * 40]}
    probe, _ = read(corpora, {"sums": "lua"})
    paths = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    for path, annotations in zip(paths, (probe, read(corpora, {"sums": "lua"})[0]), strict=True):
        save_annotations(path, annotations, {"made": "here"})
    assert paths[0].read_bytes() == paths[1].read_bytes()
    again = load_annotations(paths[0])
    assert list(again.starts.items()) == list(probe.starts.items())
    assert (again.n_ctx, again.strings, again.properties) == (probe.n_ctx, probe.strings, probe.properties)
    assert np.array_equal(again.pieces, probe.pieces)
    assert np.array_equal(again.documents, probe.documents)
    assert again.matrix.dtype == bool
    assert (again.matrix != probe.matrix).nnz == 0


def test_a_damaged_file_is_refused(read, tmp_path):
    path = tmp_path / "probe.safetensors"
    save_annotations(path, read({"words": ["The cat sat on the mat.\n"] * 9})[0], {})
    data = bytearray(path.read_bytes())
    flipped = bytearray(data)
    flipped[-3] ^= 1
    for damaged in (flipped, data[: len(data) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"probe\.safetensors' .*; delete it and rerun"):
            load_annotations(path)
