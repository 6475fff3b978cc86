"""From text to token rows through the scripts' functions, without Snakemake."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from make_tokenizer import make_tokenizer
from prepare_corpus import prepare_corpus
from saelineage.corpora.documents import read_split
from saelineage.corpora.samples.kinds import sample_documents
from saelineage.errors import InputError
from saelineage.files.atomic import read_json, sha256_file
from saelineage.tokens import BOS, EOS, TokenRows, load_tokenizer, special_ids
from tests.hostile import LONG_LINE, SURROGATES, TEXTS, json_lines
from tests.hub_server import running_hub
from tokenize_split import tokenize_split

SPLITS = ("train", "validation", "probe")
FRACTIONS = {"validation": 0.08, "probe": 0.12}
SAMPLE = {"source": "sample", "kind": "lua", "max_bytes": 200_000, "seed": 0}


def prepared(folder: Path, settings: dict, files: list[str] | None = None) -> dict[str, Path]:
    """A corpus dealt to splits in `folder`."""
    paths = {split: folder / f"{split}.parquet" for split in SPLITS}
    found = prepare_corpus(
        corpus="lua",
        settings=settings,
        fractions=FRACTIONS,
        files=files or [],
        paths=paths,
        path_to_counts=str(folder / "counts.json"),
    )
    assert found == {}
    return paths


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prepared(tmp_path_factory.mktemp("corpus"), SAMPLE)


@pytest.fixture(scope="module")
def tokenizer(corpus: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    settings = {"source": "train", "vocab_size": 400, "corpora": ["lua"], "max_bytes_per_corpus": 20_000}
    assert make_tokenizer(settings, 32, [str(corpus["train"])], folder) == {}
    return folder


def test_a_corpus_is_dealt_to_three_splits_and_counted(corpus: dict[str, Path]):
    found = {split: list(read_split(path)) for split, path in corpus.items()}
    texts = list(sample_documents("lua", 200_000, 0))
    assert sorted(text for texts_of_split in found.values() for text in texts_of_split) == sorted(texts)
    assert read_json(corpus["train"].with_name("counts.json")) == {
        "duplicates": 0,
        "empty": 0,
        "nulls": 0,
        "surrogates": 0,
        "splits": {
            split: {"documents": len(found[split]), "bytes": sum(len(text.encode()) for text in found[split])}
            for split in SPLITS
        },
    }
    assert sorted(path.name for path in corpus["train"].parent.iterdir()) == [
        "counts.json",
        "probe.parquet",
        "train.parquet",
        "validation.parquet",
    ]


def test_documents_of_all_files_of_the_user_are_mixed(tmp_path: Path):
    names = []
    for name in "ba":
        (tmp_path / f"{name}.txt").write_text("|".join(f"{name} {number}" for number in range(100)))
        names.append(str(tmp_path / f"{name}.txt"))
    settings = {"source": "files", "path": ".", "text_column": "text", "separator": "|", "max_bytes": None}
    paths = prepared(tmp_path / "out", settings, names)
    train = list(read_split(paths["train"]))
    assert train == sorted(train, key=lambda text: hashlib.sha256(text.encode()).digest())
    assert {text[0] for text in train[:10]} == {"a", "b"}
    assert sum(len(list(read_split(path))) for path in paths.values()) == 200


def test_a_corpus_that_fails_leaves_neither_splits_nor_counts(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"content": "a"}\n')
    settings = {"source": "files", "path": ".", "text_column": "text", "separator": None, "max_bytes": None}
    with pytest.raises(InputError, match=r"has no 'text', only \['content'\]"):
        prepared(tmp_path / "out", settings, [str(tmp_path / "a.jsonl")])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_trained_tokenizer_has_its_size_and_knows_its_special_tokens(tokenizer: Path):
    assert load_tokenizer(tokenizer).get_vocab_size() == 400
    assert special_ids(tokenizer) == {"bos": 0, "eos": 1}
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in tokenizer.iterdir()}


def test_a_tokenizer_is_trained_on_so_many_bytes_of_each_corpus(tmp_path: Path):
    for name, texts in {"a": ["ab ab", "ef ef"], "b": ["cd cd", "gh gh"]}.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / f"{name}.parquet")
    settings = {"source": "train", "vocab_size": 400, "corpora": ["a", "b"], "max_bytes_per_corpus": 5}
    # 259 ids stand for 256 bytes and 3 special tokens; the first document of each adds `ab`, ` ab`, `cd` and ` cd`.
    with pytest.raises(InputError, match=r"^tokenizer\.vocab_size: the corpora yield 263 ids, not 400; lower it or"):
        make_tokenizer(settings, 32, [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")], tmp_path / "tokenizer")


def test_a_tokenizer_is_taken_from_a_folder(tokenizer: Path, tmp_path: Path):
    assert make_tokenizer({"source": "path", "path": str(tokenizer)}, 32, [], tmp_path) == {}
    text = "local x = 1 -- ✓"
    assert load_tokenizer(tmp_path).encode(text).ids == load_tokenizer(tokenizer).encode(text).ids
    assert special_ids(tmp_path) == special_ids(tokenizer)


def test_a_folder_that_holds_no_tokenizer_is_named(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as raised:
        make_tokenizer({"source": "path", "path": str(tmp_path / "empty")}, 32, [], tmp_path / "out")
    assert str(raised.value).startswith(f"tokenizer: '{tmp_path / 'empty'}' cannot be opened as a tokenizer: ")


def test_a_split_becomes_rows_that_decode_to_its_documents(corpus: dict[str, Path], tokenizer: Path, tmp_path: Path):
    path = tmp_path / "lua" / "probe.npy"
    tokenize_split(str(corpus["probe"]), tokenizer, 32, None, str(path))
    rows = TokenRows(path)
    stream = np.asarray(rows.ids)[:, 1:].ravel().tolist()
    text = load_tokenizer(tokenizer).decode(stream, skip_special_tokens=False)
    whole = "".join(document + EOS for document in read_split(corpus["probe"]))
    # The tail that fills no row is missing: fewer than 31 ids.
    assert whole.startswith(text)
    assert len(load_tokenizer(tokenizer).encode(whole[len(text) :], add_special_tokens=False).ids) < 31
    assert (rows.ids[:, 0] == load_tokenizer(tokenizer).token_to_id(BOS)).all()
    assert rows.info["tokenizer_sha256"] == sha256_file(tokenizer / "tokenizer.json")
    assert sorted(found.name for found in path.parent.iterdir()) == ["probe.json", "probe.npy"]


def test_no_document_holds_more_than_its_share_of_a_split(tokenizer: Path, tmp_path: Path):
    # 60 documents, one of them as long as all others together.
    texts = [f"local x{number} = {number} -- document number {number} of some" for number in range(60)]
    texts[7] = " ".join(f"word{number}" for number in range(400))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "probe.parquet")
    counts = {
        share: tokenize_split(
            str(tmp_path / "probe.parquet"), tokenizer, 32, None, str(tmp_path / "lua" / "probe.npy"), "text", share
        )
        for share in (None, 1.0, 0.02)
    }
    assert counts[None] == counts[1.0]
    assert counts[1.0]["largest_document_share"] > 0.4
    # 2 % of all ids; of those that are left, which are fewer, that is a larger share.
    assert counts[0.02]["largest_document_share"] < 0.05
    assert counts[0.02]["n_documents"] >= 58
    assert read_json(tmp_path / "lua" / "probe.json").items() >= counts[0.02].items()


def test_a_probe_of_few_documents_is_warned_of(
    corpus: dict[str, Path], tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    text = "a few words that say nothing in particular, for a row or two " * 4
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"{n} {text}" for n in range(9)]}), tmp_path / "few.parquet")
    for split, documents in (("probe", tmp_path / "few.parquet"), ("validation", tmp_path / "few.parquet")):
        tokenize_split(str(documents), tokenizer, 32, None, str(tmp_path / "lua" / f"{split}.npy"))
    assert [record.getMessage()[:80] for record in caplog.records if record.levelname == "WARNING"] == [
        "Intervals over documents rest on 9 documents of 'lua', the largest with 11 % of "
    ]
    caplog.clear()
    tokenize_split(str(corpus["train"]), tokenizer, 32, None, str(tmp_path / "lua" / "probe.npy"))
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_hostile_documents_become_tokens_that_decode_to_them(tokenizer: Path, tmp_path: Path):
    texts = [*TEXTS.values(), *SURROGATES.values(), LONG_LINE]
    fillers = [f"document {number} of some words that fill a row whatever the split" for number in range(100)]
    (tmp_path / "a.jsonl").write_text(json_lines([*texts, *fillers]), encoding="ascii")
    settings = {"source": "files", "path": ".", "text_column": "text", "separator": None, "max_bytes": None}
    paths = prepared(tmp_path / "out", settings, [str(tmp_path / "a.jsonl")])
    assert read_json(tmp_path / "out" / "counts.json")["surrogates"] == 1
    found = ""
    for split, path in paths.items():
        tokenize_split(str(path), tokenizer, 32, None, str(tmp_path / f"{split}.npy"))
        stream = np.asarray(TokenRows(tmp_path / f"{split}.npy").ids)[:, 1:].ravel().tolist()
        found += load_tokenizer(tokenizer).decode(stream, skip_special_tokens=False)
    assert "cut off \ufffd, \ufffd" in found
    assert [text for text in texts if text != SURROGATES["half a pair"] and text not in found] == []


def test_max_tokens_of_a_split_are_whole_rows(corpus: dict[str, Path], tokenizer: Path, tmp_path: Path):
    tokenize_split(str(corpus["train"]), tokenizer, 32, 100, str(tmp_path / "train.npy"))
    assert TokenRows(tmp_path / "train.npy").ids.shape == (3, 32)


# A hub is named when its libraries are imported, so another process reads from it.
FROM_THE_HUB = """
import json, sys
from pathlib import Path
from make_tokenizer import make_tokenizer
from prepare_corpus import prepare_corpus

hub = {"source": "hub", "config": None, "split": "train", "text_column": "text", "max_rows": None, "max_bytes": None}
corpus = prepare_corpus(
    corpus="chat",
    settings=hub | {"retries": 0, "repo": "own/texts", "revision": "main"},
    fractions={"validation": 0.08, "probe": 0.12},
    files=[],
    paths={split: Path("out", split + ".parquet") for split in ("train", "validation", "probe")},
    path_to_counts="out/counts.json",
)
taken = make_tokenizer({"source": "hub", "repo": "own/tokenizer", "revision": "main"}, 32, [], Path("taken"))
try:
    make_tokenizer({"source": "hub", "repo": "own/bare", "revision": "main"}, 32, [], Path("bare"))
except ValueError as error:
    print(json.dumps([corpus, taken, str(error)]))
"""


def test_a_corpus_and_a_tokenizer_come_from_the_hub_with_their_commits(tokenizer: Path, tmp_path: Path):
    texts = [f"document {number}" for number in range(100)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    files = {path.name: path.read_bytes() for path in tokenizer.iterdir()}
    with running_hub() as hub:
        of_texts = hub.push("own/texts", {"train.jsonl": lines})
        of_tokenizer = hub.push("own/tokenizer", files, kind="models")
        hub.push("own/bare", {"README.md": b"no tokenizer"}, kind="models")
        ended = subprocess.run(
            [sys.executable, "-c", FROM_THE_HUB],
            cwd=tmp_path,
            env=hub.environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    corpus, taken, error = json.loads(ended.stdout)
    assert corpus == {"commit": of_texts}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name.endswith(".json")}
    assert taken == {"commit": of_tokenizer, "files": sums}
    assert error.startswith("tokenizer: 'own/bare' cannot be opened as a tokenizer: ")
    found = [text for split in SPLITS for text in read_split(tmp_path / "out" / f"{split}.parquet")]
    assert sorted(found) == sorted(texts)
    assert special_ids(tmp_path / "taken") == special_ids(tokenizer)
    assert load_tokenizer(tmp_path / "taken").get_vocab() == load_tokenizer(tokenizer).get_vocab()
