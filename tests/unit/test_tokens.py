"""Tokens: a tokenizer that transformers loads too, and rows that hold the stream of documents and nothing else."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

import saelineage
from saelineage.errors import InputError
from saelineage.files.atomic import read_json, sha256_file, write_json
from saelineage.tokens import (
    BOS,
    EOS,
    PAD,
    TokenRows,
    excerpt,
    limit_of_document,
    load_tokenizer,
    read_token_rows,
    save_tokenizer,
    special_ids,
    train_tokenizer,
    write_rows,
    write_sidecar,
)

TEXTS = ["the cat sat on the mat", "local function f(x) return x + 1 end", "naïve café ✓ 😀 日本語"] * 20
UNICODE = "naïve 😀\t日本語\n\n  e\u0301 \x00 ﷽ <s> end"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(TEXTS, 300), folder, n_ctx=16)
    return folder


def word_tokenizer(folder: Path, vocabulary: dict[str, int], special: dict[str, object]) -> Path:
    """Write a tokenizer folder with one id per word, so that rows can be worked out by hand."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", special)
    return folder


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Ids: <s> 0, </s> 1, ? 2, a 3, b 4 ... g 9."""
    vocabulary = {"<s>": 0, "</s>": 1, "?": 2} | {word: 3 + number for number, word in enumerate("abcdefg")}
    return word_tokenizer(tmp_path / "words", vocabulary, {"bos_token": "<s>", "eos_token": "</s>"})


def written(folder: Path, tokenizer: Path, documents: list[str], n_ctx: int = 4, max_tokens: int | None = None):
    """Write rows and their sidecar, as the workflow does."""
    path = folder / "tokens" / "lua" / "train.npy"
    info = write_rows(documents, tokenizer, n_ctx, max_tokens, path)
    write_sidecar(path, info)
    return path, info


# --- the tokenizer ---


def test_the_tokenizer_has_the_size_asked_for_with_every_byte_and_three_special_tokens():
    tokenizer = train_tokenizer(TEXTS, 300)
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(300))
    assert [vocabulary[token] for token in (BOS, EOS, PAD)] == [0, 1, 2]
    assert set(pre_tokenizers.ByteLevel.alphabet()) < set(vocabulary)


def test_any_text_survives_the_tokenizer(trained: Path):
    tokenizer = load_tokenizer(trained)
    for text in ("", " ", UNICODE, "".join(map(chr, range(1, 256)))):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_encoding_puts_bos_first(trained: Path):
    tokenizer = load_tokenizer(trained)
    plain = tokenizer.encode("the cat", add_special_tokens=False).ids
    assert tokenizer.encode("the cat").ids == [0, *plain]


def test_training_twice_gives_the_same_bytes_in_another_process_too(trained: Path, tmp_path: Path):
    train_tokenizer(iter(TEXTS), 300).save(str(tmp_path / "same.json"))
    command = (
        "import json, sys; from saelineage.tokens import train_tokenizer; "
        "train_tokenizer(json.load(sys.stdin), 300).save('other.json')"
    )
    environment = {"PYTHONPATH": str(Path(saelineage.__file__).parent.parent), "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", command], input=json.dumps(TEXTS), cwd=tmp_path, env=environment, text=True, check=True
    )
    here, elsewhere = (Tokenizer.from_file(str(tmp_path / name)).to_str() for name in ("same.json", "other.json"))
    assert here == elsewhere
    # save_pretrained adds only the flags of the special tokens.
    assert json.loads(here)["model"] == read_json(trained / "tokenizer.json")["model"]


def test_too_little_text_for_the_vocabulary_is_named():
    # 3 special tokens and 256 bytes come without any text, which adds `ab` and ` ab`.
    with pytest.raises(InputError, match=r"^tokenizer\.vocab_size: .* 261 ids, not 300; lower it or add text"):
        train_tokenizer(["ab ab"], 300)


def test_a_stretch_without_a_boundary_is_cut_for_training_and_encoded_whole():
    # Uncut, training takes half a minute, and each merge doubles a token: a, aa, aaaa ... up to 131,072 letters.
    tokenizer = train_tokenizer([*TEXTS, "a" * 200_000], 300)
    assert max(map(len, tokenizer.get_vocab())) == 512
    # 1,300 = 2 x 512 + 256 + 16 + 4
    lengths = [stop - start for start, stop in tokenizer.encode("a" * 1300, add_special_tokens=False).offsets]
    assert sorted(lengths) == [4, 16, 256, 512, 512]


def test_transformers_loads_the_folder_and_agrees(trained: Path):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(trained)
    ours = load_tokenizer(trained)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2)
    assert loaded.model_max_length == 16
    for text in ("the cat sat", UNICODE):
        assert loaded(text)["input_ids"] == ours.encode(text).ids
        assert loaded.decode(loaded(text, add_special_tokens=False)["input_ids"]) == text


def test_a_folder_without_a_fast_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=rf"^'{tmp_path}' must hold a fast tokenizer .*save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "GPTNeoXTokenizerFast"},
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"tokenizer_class": "CohereTokenizerFast"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {},
    ],
    ids=lambda config: config.get("tokenizer_class", "no class"),
)
def test_a_tokenizer_taken_from_a_folder_keeps_the_rules_of_its_file(trained: Path, tmp_path: Path, config: dict):
    """transformers 5 makes some classes anew, with other rules."""
    from transformers import AutoTokenizer

    from make_tokenizer import make_tokenizer

    tokenizer = load_tokenizer(trained)
    every_digit = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([every_digit, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.normalizer = normalizers.Replace("!", "?")
    source = tmp_path / "source"
    source.mkdir()
    tokenizer.save(str(source / "tokenizer.json"))
    write_json(source / "tokenizer_config.json", config | {"bos_token": BOS, "eos_token": EOS})
    make_tokenizer({"source": "path", "path": str(source)}, 16, [], tmp_path / "taken")
    text = "in 2024 the cat's 13 hats!\n\n x"
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    taken = load_tokenizer(tmp_path / "taken")
    assert taken.encode(text, add_special_tokens=False).ids == expected
    assert special_ids(tmp_path / "taken") == {"bos": 0, "eos": 1}
    assert taken.get_vocab() == tokenizer.get_vocab()  # classes have tokens of their own, such as <|endoftext|>
    # transformers itself agrees, as long as no class is named that it makes anew
    opened = AutoTokenizer.from_pretrained(tmp_path / "taken")
    assert opened(text, add_special_tokens=False)["input_ids"] == expected


def test_a_missing_bos_or_eos_is_replaced_by_the_other(tmp_path: Path):
    cases = [
        ({"bos_token": "<s>", "eos_token": "</s>"}, {"bos": 0, "eos": 1}),
        ({"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}}, {"bos": 0, "eos": 1}),
        ({"eos_token": "</s>"}, {"bos": 1, "eos": 1}),
        ({"bos_token": None, "eos_token": "</s>"}, {"bos": 1, "eos": 1}),
        ({"bos_token": "<s>"}, {"bos": 0, "eos": 0}),
        ({"bos_token": "<not-there>", "eos_token": "</s>"}, {"bos": 1, "eos": 1}),
    ]
    for special, ids in cases:
        assert special_ids(word_tokenizer(tmp_path, {"<s>": 0, "</s>": 1, "?": 2}, special)) == ids


def test_a_tokenizer_with_neither_bos_nor_eos_is_named(tmp_path: Path):
    word_tokenizer(tmp_path, {"?": 0}, {"pad_token": "?"})
    with pytest.raises(InputError, match=rf"'{tmp_path}' must have a BOS or an EOS token"):
        special_ids(tmp_path)


# --- rows ---


def test_rows_begin_with_bos_and_hold_the_stream_in_order_without_its_tail(tmp_path: Path, words: Path):
    path, info = written(tmp_path, words, ["a b c d", "e", "f g"])
    # The stream a b c d </s> e </s> f g </s> is 3 4 5 6 1 7 1 8 9 1: three rows of 3 ids; the last id is dropped.
    expected = np.array([[0, 3, 4, 5], [0, 6, 1, 7], [0, 1, 8, 9]], dtype=np.uint16)
    ids = np.load(path)
    assert ids.dtype == np.uint16
    np.testing.assert_array_equal(ids, expected)
    assert info == {
        "n_rows": 3,
        "n_ctx": 4,
        "n_tokens": 12,
        "bos_id": 0,
        "eos_id": 1,
        "tokenizer_sha256": sha256_file(words / "tokenizer.json"),
        "ids_sha256": hashlib.sha256(expected.tobytes()).hexdigest(),
        "n_ids": 10,
        "added_tokens": {},  # BOS and EOS are words of this vocabulary
        "special": "text",
        "n_control_strings": 0,
        "most_of_document": None,
        # Ids without EOS: a b c d, e, f g.
        "n_documents": 3,
        "largest_document_share": 4 / 7,
    }


def test_special_tokens_inside_a_document_are_text(tmp_path: Path, trained: Path):
    html = "a <s>b</s> c <pad>"
    path, _ = written(tmp_path, trained, [html] * 2, n_ctx=8)
    stream = np.load(path)[:, 1:].ravel().tolist()
    tokenizer = load_tokenizer(trained)
    # EOS appears only at the ends of documents.
    first = stream[: stream.index(1)]
    assert tokenizer.decode(first, skip_special_tokens=False) == html
    assert not {0, 2} & set(stream)


def test_max_tokens_cuts_after_whole_rows(tmp_path: Path, words: Path):
    all_rows = np.array([[0, 3, 4, 5], [0, 6, 1, 7], [0, 1, 8, 9]])
    for max_tokens, n_rows in ((4, 1), (7, 1), (8, 2), (12, 3), (1000, 3)):
        path, info = written(tmp_path, words, ["a b c d", "e", "f g"], max_tokens=max_tokens)
        np.testing.assert_array_equal(np.load(path), all_rows[:n_rows])
        assert (info["n_rows"], info["n_tokens"]) == (n_rows, 4 * n_rows)
        assert info["ids_sha256"] == hashlib.sha256(np.load(path).tobytes()).hexdigest()


def test_documents_are_counted_as_far_as_they_are_in_the_rows(tmp_path: Path, words: Path):
    # The stream is 3 4 5 6 1 7 1 8 9 1. One row has a b c; two have a b c d and e; EOS alone adds no document.
    for max_tokens, n_documents, largest in ((4, 1, 1.0), (8, 2, 4 / 5), (12, 3, 4 / 7)):
        info = written(tmp_path, words, ["a b c d", "e", "f g"], max_tokens=max_tokens)[1]
        assert (info["n_documents"], info["largest_document_share"]) == (n_documents, largest)
    # The third document has no id; the fourth begins after the rows end.
    info = written(tmp_path, words, ["a b", "c d e f", "", "g"])[1]
    assert (info["n_documents"], info["largest_document_share"]) == (2, 4 / 6)


def test_of_a_long_document_the_rows_have_a_part_from_a_place_that_its_hash_decides(tmp_path: Path, words: Path):
    long = "a b c d e f g a b c d"
    path = tmp_path / "probe.npy"
    info = write_rows([long, "g f", long + " e"], words, 9, None, path, most_of_document=4)
    ids = long.split()
    start = int.from_bytes(hashlib.sha256(long.encode()).digest()[-8:], "big") % 8  # 11 ids, of which 4 are taken
    stream = np.load(path)[0, 1:].tolist()
    assert stream[:5] == [3 + "abcdefg".index(word) for word in ids[start : start + 4]] + [1]
    assert stream[5:] == [9, 8, 1]
    assert (info["most_of_document"], info["n_documents"], info["largest_document_share"]) == (4, 2, 4 / 6)


def test_parts_of_long_documents_come_from_all_places():
    starts = [excerpt(f"document {number}", 13, 4).start for number in range(1000)]
    assert set(starts) == set(range(10))
    assert abs(np.mean(starts) - 4.5) < 0.4  # the standard error is 2.87 / sqrt(1000) = 0.09
    assert [excerpt("x", 4, 4), excerpt("x", 4, None), excerpt("x", 0, 4)] == [range(4), range(4), range(0)]


def test_a_document_gives_at_most_a_share_of_the_tokens_that_are_taken(words: Path):
    documents = ["a b c d e f"] * 10

    def limit(documents: list[str], share: float, max_tokens: int | None) -> int:
        return limit_of_document(documents, len(documents), share, words, max_tokens)

    # 60 ids in all; with 10 documents no limit is below a tenth.
    assert limit(documents, 0.02, None) == 6
    assert limit(documents, 0.2, None) == 12
    assert limit(documents, 0.2, 50) == 10
    assert limit(documents, 0.2, 1000) == 12
    assert limit(documents, 1.0, None) == 60
    # 100 documents of 1 id: 2 % of 100 is 2; of at most 40, 0.8, and a document gives at least one id.
    assert limit(["a"] * 100, 0.02, None) == 2
    assert limit(["a"] * 100, 0.02, 40) == 1


def test_no_more_documents_are_read_than_max_tokens_needs(tmp_path: Path, words: Path):
    def endless() -> Iterator[str]:
        while True:
            yield "a b c"

    assert written(tmp_path, words, endless(), max_tokens=40)[1]["n_rows"] == 10


def test_many_documents_are_cut_as_one_stream(tmp_path: Path, words: Path):
    # More documents than are encoded at once (256), of 1 to 7 words.
    documents = [" ".join("abcdefg"[: 1 + number % 7]) for number in range(1000)]
    path, info = written(tmp_path, words, documents, n_ctx=9)
    stream = list(chain.from_iterable([*range(3, 4 + number % 7), 1] for number in range(1000)))
    n_rows = len(stream) // 8
    ids = np.load(path)
    assert info["n_rows"] == n_rows
    assert (ids[:, 0] == 0).all()
    np.testing.assert_array_equal(ids[:, 1:].ravel(), stream[: 8 * n_rows])


def test_text_or_max_tokens_that_fill_no_row_are_named_and_leave_no_file(tmp_path: Path, words: Path):
    path = tmp_path / "tokens" / "train.npy"
    with pytest.raises(InputError, match=rf"^'{path}': .*n_ctx = 8 tokens; add text or lower tokens\.n_ctx"):
        write_rows(["a b"], words, 8, None, path)
    with pytest.raises(InputError, match=rf"^'{path}': max_tokens \(3\) .*n_ctx \(4\) tokens; raise it"):
        write_rows(["a b c d e f"], words, 4, 3, path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(("largest", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_the_largest_id_decides_the_number_format_even_if_the_vocabulary_has_holes(
    tmp_path: Path, largest: int, dtype: type
):
    vocabulary = {"<s>": 0, "</s>": 1, "?": 2, "a": largest}
    folder = word_tokenizer(tmp_path / "words", vocabulary, {"bos_token": "<s>", "eos_token": "</s>"})
    path, _ = written(tmp_path, folder, ["a a a"])
    assert np.load(path).dtype == dtype
    np.testing.assert_array_equal(np.load(path), [[0, largest, largest, largest]])


def test_an_added_token_counts_as_an_id(tmp_path: Path):
    folder = word_tokenizer(tmp_path / "words", {"<s>": 0, "?": 65_535}, {"bos_token": "<s>"})
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([AddedToken("<new>"), AddedToken("<newer>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    path, _ = written(tmp_path, folder, ["<newer> <newer> <newer>"])
    assert np.load(path)[0, 1] == tokenizer.token_to_id("<newer>")


def test_the_same_documents_are_the_same_bytes(tmp_path: Path, trained: Path):
    paths = [written(tmp_path / name, trained, TEXTS, n_ctx=16)[0] for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


# --- reading rows ---


def test_rows_are_memory_mapped_read_only_and_carry_their_digest(tmp_path: Path, words: Path):
    path, info = written(tmp_path, words, ["a b c d", "e", "f g"])
    rows = TokenRows(path)
    assert isinstance(rows.ids, np.memmap)
    assert not rows.ids.flags.writeable
    assert rows.digest == info["ids_sha256"]
    assert rows.info == info


def test_batches_cover_the_rows_in_order(tmp_path: Path, words: Path):
    rows = TokenRows(written(tmp_path, words, ["a b c d", "e", "f g"])[0])
    batches = list(rows.batches(2))
    assert [numbers for numbers, _ in batches] == [range(0, 2), range(2, 3)]
    assert [ids.dtype for _, ids in batches] == [np.int64, np.int64]
    np.testing.assert_array_equal(batches[0][1], [[0, 3, 4, 5], [0, 6, 1, 7]])
    np.testing.assert_array_equal(batches[1][1], [[0, 1, 8, 9]])
    assert [numbers for numbers, _ in rows.batches(1, range(1, 3))] == [range(1, 2), range(2, 3)]


def test_rows_are_spread_at_equal_distances_and_read_as_such(tmp_path: Path, words: Path):
    rows = TokenRows(written(tmp_path, words, [" ".join("abcdefgh") for _ in range(6)])[0])
    n = len(rows.ids)
    assert rows.spread(None) == rows.spread(10**6) == range(n)
    every_other = rows.spread(n // 2)
    assert list(every_other) == list(range(0, 2 * (n // 2), 2))
    assert rows.spread(n - 1) == every_other or n % 2  # the distance is whole, so there may be far fewer
    assert all(len(rows.spread(most)) <= most for most in range(1, n + 1))
    read = list(rows.batches(2, every_other))
    assert list(read[0][0]) == [0, 2]
    np.testing.assert_array_equal(np.concatenate([ids for _, ids in read]), rows.ids[::2][: n // 2])
    for mask in (rows.text_mask, rows.predicted, rows.shared, rows.compared):
        np.testing.assert_array_equal(mask(every_other), mask(range(n))[::2][: n // 2])


def test_the_text_mask_is_false_at_bos_and_eos(tmp_path: Path, words: Path):
    rows = TokenRows(written(tmp_path, words, ["a b c d", "e", "f g"])[0])
    # [0 6 1 7] and [0 1 8 9]
    np.testing.assert_array_equal(rows.text_mask(range(1, 3)), [[False, True, False, True], [False, False, True, True]])


def test_shards_divide_the_rows_in_nearly_equal_parts(tmp_path: Path, words: Path):
    rows = TokenRows(written(tmp_path, words, ["a b c d e f g a b c d e f g a"] * 2, max_tokens=40)[0])
    assert len(rows.ids) == 10
    cases = [
        (1, None, [range(0, 10)]),
        # 10 rows in 3 parts: bounds at 10/3 and 20/3, rounded down.
        (3, None, [range(0, 3), range(3, 6), range(6, 10)]),
        (10, None, [range(row, row + 1) for row in range(10)]),
        # 23 tokens hold 5 whole rows of 4.
        (2, 23, [range(0, 2), range(2, 5)]),
        (2, 4000, [range(0, 5), range(5, 10)]),
    ]
    for n_shards, max_tokens, shards in cases:
        assert [rows.shard(shard, n_shards, max_tokens) for shard in range(n_shards)] == shards


def test_more_shards_than_rows_are_refused(tmp_path: Path, words: Path):
    path, _ = written(tmp_path, words, ["a b c d", "e", "f g"])
    for n_shards, max_tokens, n_rows in ((4, None, 3), (3, 11, 2), (1, 3, 0)):
        remedy = r"lower activations\.n_shards or add text"
        with pytest.raises(InputError, match=rf"^'{path}' has {n_rows} rows .* {n_shards} shards; {remedy}"):
            TokenRows(path).shard(0, n_shards, max_tokens)


def test_rows_with_the_sidecar_of_other_rows_are_refused(tmp_path: Path, words: Path):
    path, info = written(tmp_path, words, ["a b c d", "e", "f g"])
    write_sidecar(path, info | {"n_rows": 2})
    with pytest.raises(InputError, match=rf"^'{path}' has shape \(3, 4\), .* 2 x 4; delete it and run again$"):
        TokenRows(path)


def test_a_truncated_file_is_refused(tmp_path: Path, words: Path):
    path, _ = written(tmp_path, words, ["a b c d", "e", "f g"])
    content = path.read_bytes()
    for n_left in (0, 5, 100, len(content) - 1):
        path.write_bytes(content[:n_left])
        with pytest.raises(InputError, match=rf"^'{path}' is not a whole \.npy file \(.*\); delete it and run again$"):
            TokenRows(path)


def test_token_rows_are_read_by_corpus(tmp_path: Path, words: Path):
    path, info = written(tmp_path, words, ["a b c d"])
    assert {corpus: rows.info for corpus, rows in read_token_rows({"lua": path}).items()} == {"lua": info}
