"""A finished run, opened: files found by their names, and clear words for what is not there."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from saelineage.correlations.matches import Combined, Correlation, Matches, save_correlation
from saelineage.errors import InputError
from saelineage.features.shards import save_shard
from saelineage.files.atomic import write_json
from saelineage.models.training import new_mistral, save_model
from saelineage.notebook import Run, open_run
from saelineage.report.tables import EDGE_SHARES, VERDICT_COUNTS
from saelineage.saes.sae import Sae, save_sae
from saelineage.tokens import save_tokenizer, special_ids, train_tokenizer, write_sidecar

SHARDS = ("00000-of-00002", "00001-of-00002")
MISTRAL = {"n_layers": 1, "d_model": 4, "d_mlp": 4, "n_heads": 1, "n_kv_heads": 1, "seed": 0}
MISTRAL |= {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_embeddings": False}
A, DASH, E = 67, 15, 71
"""Ids of the bytes a, - and e: 3 special tokens come first, then the printable bytes from ! (33) on."""


def write_summary(folder: Path) -> None:
    shares = {f"{name}{end}": None for name in EDGE_SHARES for end in ("", "_n", "_interval")}
    edge = dict.fromkeys(VERDICT_COUNTS, 3) | shares | {"parent": "base", "child": "lua"}
    edge |= {"persist_share": 0.5, "relative_persistence": None, "relative_persistence_interval": None}
    found = {"run": "mine", "models": ["base", "lua"], "saes": {"base": "seed0", "lua": "from_base"}, "edges": [edge]}
    write_json(folder / "lineage/summary.json", found)


def write_tables(folder: Path) -> None:
    for name in ("lineage/features", "lineage/edges/base__lua", "labels/base/seed0"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"name": [name], "latent": [0]}).to_parquet(folder / f"{name}.parquet")


def write_tokens(folder: Path) -> None:
    """Two rows of each corpus, `<s>a-e` and `<s>ea-`, under different digests."""
    save_tokenizer(train_tokenizer(["a"], 259), folder / "tokenizer", 4)
    for corpus in ("lua", "english"):
        path = folder / "tokens" / corpus / "probe.npy"
        path.parent.mkdir(parents=True)
        np.save(path, np.array([[0, A, DASH, E], [0, E, A, DASH]], dtype=np.uint16))
        write_sidecar(path, {"n_rows": 2, "n_ctx": 4, "bos_id": 0, "eos_id": 1, "ids_sha256": f"ids of {corpus}"})


def write_features(folder: Path, model: str, sae: str) -> None:
    """Two shards of a row each; latent 2 fires nowhere."""
    rows = {
        "english": ([[0.0, 1.0, 0.0], [0.5, 0.0, 0.0], [0.0, 2.0, 0.0]], [[0.0, 0.0, 0.0]] * 3),
        "lua": ([[3.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3], [[0.0] * 3, [0.0, 4.0, 0.0], [0.0] * 3]),
    }
    for corpus, shards in rows.items():
        for row, (shard, dense) in enumerate(zip(SHARDS, shards, strict=True)):
            sparse = scipy.sparse.csr_array(np.array(dense, dtype=np.float32))
            header = {"model": model, "sae": sae, "corpus": corpus, "d_sae": 3, "ids_sha256": f"ids of {corpus}"}
            header |= {"first_row": row, "stop_row": row + 1, "n_ctx": 4}
            path = folder / "features" / model / sae / corpus / f"shard-{shard}.safetensors"
            where = 4 * row + np.array([1, 2, 3])  # place 0 is BOS, which has no features
            save_shard(path, sparse.indptr, sparse.indices, sparse.data, where, np.ones(3, dtype=bool), header)


def write_correlation(folder: Path, a: str, b: str) -> None:
    """Two SAEs of one latent each."""
    one, none = np.array([[0.9]]), np.array([[0]])
    pearson = Matches((one, one), (none, none), scipy.sparse.csr_array(one), np.array([0, 1]), 0)
    found = Correlation(
        names=(a, b),
        n_tokens={"lua": 3},
        firings=(none, none),
        testable=(np.array([True]), np.array([True])),
        pearson=pearson,
        by_corpus={"lua": pearson},
        one_to_one=np.array([0]),
        jaccard=pearson,
        combined=Combined((one[0], one[0]), (none[0], none[0])),
    )
    save_correlation(found, folder / "correlations" / f"{a}__{b}" / "correlation.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two models and an edge, of which `random` is no part; to be read only."""
    folder = tmp_path_factory.mktemp("results") / "mine"
    write_summary(folder)
    write_tables(folder)
    write_tokens(folder)
    sae = Sae("relu", 4, 3)
    for model, name in (("base", "seed0"), ("base", "seed1"), ("lua", "from_base"), ("random", "seed0")):
        (folder / "saes" / model / name).mkdir(parents=True)
        save_sae(sae, folder / "saes" / model / name, {"of": f"{model}.{name}"})
    for model in ("base", "lua", "random"):
        (folder / "models" / model).mkdir(parents=True)
    special = special_ids(folder / "tokenizer")
    save_model(new_mistral(MISTRAL, 259, 4, special), folder / "tokenizer", folder / "models" / "random")
    write_features(folder, "base", "seed0")
    write_correlation(folder, "base.seed0", "lua.from_base")
    write_correlation(folder, "base.seed1", "base.seed0")
    return folder


@pytest.fixture
def run(folder: Path) -> Run:
    return open_run(folder)


def message_of(folder: Path, call: object, *arguments: object) -> str:
    """The message that a call ends with, the run's folder left out of it."""
    with pytest.raises(InputError) as raised:
        call(*arguments)
    return str(raised.value).replace(f"{folder}", "FOLDER")


def test_a_run_knows_its_name_models_and_leading_saes(run: Run):
    assert (run.name, run.models) == ("mine", ["base", "lua"])
    assert run.saes == {"base": "seed0", "lua": "from_base"}
    assert run.summary["edges"][0]["persists"] == 3


def test_the_name_of_a_run_does_not_hang_on_how_its_folder_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    assert open_run(".").name == "mine"
    monkeypatch.chdir(folder.parent)
    assert open_run("mine/").name == "mine"


def test_the_edges_are_the_table_of_the_report(run: Run):
    (row,) = run.edges.to_dict("records")
    assert (row["parent"], row["child"], row["emerges"], row["persist_share"]) == ("base", "lua", 3, 0.5)
    assert row["reading"] == "no floor"


def test_tables_are_read_from_their_files(run: Run):
    assert run.features["name"].tolist() == ["lineage/features"]
    assert run.edge("base", "lua")["name"].tolist() == ["lineage/edges/base__lua"]
    assert run.labels("base")["name"].tolist() == run.labels("base.seed0")["name"].tolist() == ["labels/base/seed0"]


def test_the_activations_of_latents_have_place_and_text(run: Run):
    found = run.activations("base", [1, 0])
    # Rows are <s>a-e and <s>ea-; the second token of lua's second row is a.
    assert found.to_numpy().tolist() == [
        [1, "english", 0, 1, "a", 1.0],
        [1, "english", 0, 3, "e", 2.0],
        [1, "lua", 1, 2, "a", 4.0],
        [0, "english", 0, 2, "-", 0.5],
        [0, "lua", 0, 1, "a", 3.0],
    ]
    assert list(found) == ["latent", "corpus", "row", "place", "token", "activation"]


@pytest.mark.parametrize("latents", [[2], []])
def test_a_latent_that_fires_nowhere_has_no_activations(run: Run, latents: list[int]):
    found = run.activations("base", latents)
    assert list(found) == ["latent", "corpus", "row", "place", "token", "activation"]
    assert len(found) == 0


def test_latents_may_come_from_a_table(run: Run):
    assert run.activations("base", pd.Series([0]))["latent"].tolist() == [0, 0]
    assert run.activations("base", np.array([0]))["activation"].tolist() == [0.5, 3.0]


def test_an_sae_is_the_leading_one_or_the_one_named(run: Run):
    assert run.sae("lua").d_sae == run.sae("base.seed1").d_sae == 3
    for name, folder in (("lua", "lua/from_base"), ("base", "base/seed0"), ("base.seed1", "base/seed1")):
        assert "/".join(run._sae(name)) == folder


def test_a_model_opens_whether_it_is_of_the_lineage_or_not(run: Run):
    model = run.model("random")
    assert (model.config.hidden_size, model.dtype, model.training) == (4, torch.float32, False)


def test_a_correlation_is_that_of_the_leading_saes_or_of_those_named(run: Run):
    assert run.correlation("base", "lua").names == ("base.seed0", "lua.from_base")
    assert run.correlation("base.seed1", "base").names == ("base.seed1", "base.seed0")


def test_tables_need_neither_torch_nor_transformers(folder: Path):
    code = (
        "import sys; from saelineage.notebook import open_run; run = open_run(sys.argv[1]); "
        "run.edges, run.edge('base', 'lua'), run.labels('base'), run.activations('base', [0]); "
        "print({'torch', 'transformers', 'plotly'} & set(sys.modules))"
    )
    scripts = Path(__file__).parents[2] / "workflow" / "scripts"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=scripts, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "set()", done.stderr


# --- what is not there ---


def test_a_folder_that_is_no_run_is_named(tmp_path: Path):
    assert message_of(tmp_path, open_run, tmp_path / "demo").startswith(
        "'FOLDER/demo' must be the folder of a run, results/NAME, but holds none of corpora, tokenizer, tokens, models,"
    )


@pytest.mark.parametrize(
    "missing", ["lineage/summary.json", "lineage/features.parquet", "lineage/edges/base__lua.parquet"]
)
def test_an_unfinished_run_is_named_with_what_to_run(tmp_path: Path, missing: str):
    folder = tmp_path / "mine"
    write_summary(folder)
    write_tables(folder)
    (folder / missing).unlink()
    assert message_of(folder, open_run, folder) == (
        f"run 'mine' is unfinished: 'FOLDER/{missing}' is missing; "
        f"with the run's config, run: snakemake --cores 2 results/mine/{missing}"
    )


def test_a_run_without_labels_says_how_to_make_them(run: Run, folder: Path):
    path = "labels/lua/from_base.parquet"
    assert message_of(folder, run.labels, "lua") == (
        f"run 'mine' is unfinished: 'FOLDER/{path}' is missing; "
        f"with the run's config, run: snakemake --cores 2 results/mine/{path}"
    )


@pytest.mark.parametrize("call", ["model", "sae", "labels"])
def test_an_unknown_model_is_named_with_those_there_are(run: Run, folder: Path, call: str):
    message = message_of(folder, getattr(run, call), "moon")
    assert message == "run 'mine' has no model 'moon', only base, lua, random; take one of these"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base.seed7", "run 'mine' has no SAE 'base.seed7'; its SAEs are base.seed0, base.seed1"),
        ("random", "run 'mine' has no verdicts on 'random', so its SAE must be named; its SAEs are random.seed0"),
    ],
)
def test_an_unknown_sae_is_named_with_those_there_are(run: Run, folder: Path, name: str, message: str):
    assert message_of(folder, run.sae, name) == message


def test_an_unknown_edge_is_named_with_those_there_are(run: Run, folder: Path):
    message = message_of(folder, run.edge, "lua", "base")
    assert message == "run 'mine' has no edge lua -> base, only base -> lua; take one of these"


@pytest.mark.parametrize(
    ("pair", "asked", "known"),
    [
        # Of these two models there is one, the other way round; of lua and random there is none, so all are named.
        (("lua", "base"), "lua.from_base__base.seed0", "base.seed0__lua.from_base"),
        (("lua", "random.seed0"), "lua.from_base__random.seed0", "base.seed0__lua.from_base, base.seed1__base.seed0"),
    ],
)
def test_a_pair_that_was_not_compared_is_named_with_those_that_were(
    run: Run, folder: Path, pair: tuple[str, str], asked: str, known: str
):
    assert message_of(folder, run.correlation, *pair) == (
        f"run 'mine' has no correlation {asked}, only {known}; take one of these, or with the run's config, run: "
        f"snakemake --cores 2 results/mine/correlations/{asked}/correlation.safetensors"
    )


@pytest.mark.parametrize("latent", [3, -1])
def test_a_latent_that_the_sae_does_not_have_is_refused(run: Run, folder: Path, latent: int):
    message = message_of(folder, run.activations, "base", [0, latent])
    assert message == f"latents of base.seed0 are 0 to 2, there is no {latent}; correct it"


def with_features(tmp_path: Path) -> Path:
    """A run of one SAE whose features may be changed."""
    folder = tmp_path / "mine"
    write_summary(folder)
    write_tokens(folder)
    for name in ("models/base", "saes/base/seed0"):
        (folder / name).mkdir(parents=True)
    write_features(folder, "base", "seed0")
    return folder


def test_a_missing_shard_is_named_and_not_passed_over(tmp_path: Path):
    folder = with_features(tmp_path)
    path = f"features/base/seed0/lua/shard-{SHARDS[1]}.safetensors"
    (folder / path).unlink()
    message = message_of(folder, Run(folder).activations, "base", [0])
    assert message.startswith(f"run 'mine' is unfinished: 'FOLDER/{path}' is missing; ")


def test_features_of_other_tokens_are_refused(tmp_path: Path):
    folder = with_features(tmp_path)
    info = {"n_rows": 2, "n_ctx": 4, "bos_id": 0, "eos_id": 1, "ids_sha256": "others"}
    write_sidecar(folder / "tokens/english/probe.npy", info)
    assert message_of(folder, Run(folder).activations, "base", [0]) == (
        f"'FOLDER/features/base/seed0/english/shard-{SHARDS[0]}.safetensors' must be of the tokens in "
        "'FOLDER/tokens/english/probe.npy', but is not; delete it and run again"
    )
