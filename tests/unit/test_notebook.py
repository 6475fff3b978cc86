"""Finished runs open from their folder; a missing file, model, SAE, edge or pair is named with the next step."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from saelineage.correlations import pearson
from saelineage.correlations.matches import Combined, Correlation, Matches, correlation_group
from saelineage.errors import InputError
from saelineage.features.shards import save_shard
from saelineage.files.atomic import write_json
from saelineage.files.tensors import writing_groups
from saelineage.models.training import new_mistral, save_model
from saelineage.notebook import Run, correlate, open_run
from saelineage.report.tables import COUNTS, GROUP_SHARES, SEED_SHARES
from saelineage.saes.sae import Sae, save_sae
from saelineage.tokens import save_tokenizer, special_ids, train_tokenizer, write_sidecar

SHARDS = ("00000-of-00002", "00001-of-00002")
MISTRAL = {"n_layers": 1, "d_model": 4, "d_mlp": 4, "n_heads": 1, "n_kv_heads": 1, "seed": 0}
MISTRAL |= {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_embeddings": False}
A, DASH, E = 67, 15, 71
"""Ids of the bytes a, - and e: 3 special tokens come first, then the printable bytes from ! (33) on."""


def write_summary(folder: Path, hookpoint: str = "mlp") -> None:
    of_group, edge = (
        {f"{name}{end}": None for name in names for end in ("", "_n", "_interval")}
        for names in (GROUP_SHARES, SEED_SHARES)
    )
    of_group |= {"relative_persistence": None, "relative_persistence_interval": None, "control_shares": {}}
    of_group |= {side: dict.fromkeys(names, 3) for side, names in COUNTS.items()}
    groups = {"identified": of_group | {"persist_share": 0.75}, "all": of_group | {"persist_share": 0.5}}
    edge |= {"parent": "base", "child": "lua", "groups": groups}
    saes = {"base": "seed0", "lua": "from_base"}
    summary = {"run": "mine", "models": ["base", "lua"], "saes": saes, "edges": [edge]}
    write_json(folder / "lineage" / hookpoint / "summary.json", summary)


def write_tables(folder: Path, hookpoint: str = "mlp") -> None:
    of_lineage = [f"lineage/{hookpoint}/{name}" for name in ("features", "edges/base__lua")]
    for name in (*of_lineage, f"labels/{hookpoint}/base/seed0"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"name": [name], "latent": [0]}).to_parquet(folder / f"{name}.parquet")


def write_tokens(folder: Path) -> None:
    """Write two rows of each corpus, `<s>a-e` and `<s>ea-`, under different digests."""
    save_tokenizer(train_tokenizer(["a"], 259), folder / "tokenizer", 4)
    for corpus in ("lua", "english"):
        path = folder / "tokens" / corpus / "probe.npy"
        path.parent.mkdir(parents=True)
        np.save(path, np.array([[0, A, DASH, E], [0, E, A, DASH]], dtype=np.uint16))
        write_sidecar(path, {"n_rows": 2, "n_ctx": 4, "bos_id": 0, "eos_id": 1, "ids_sha256": f"ids of {corpus}"})


def write_features(folder: Path, model: str, sae: str) -> None:
    """Write two shards of a row each; latent 2 never fires."""
    rows = {
        "english": ([[0.0, 1.0, 0.0], [0.5, 0.0, 0.0], [0.0, 2.0, 0.0]], [[0.0, 0.0, 0.0]] * 3),
        "lua": ([[3.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3], [[0.0] * 3, [0.0, 4.0, 0.0], [0.0] * 3]),
    }
    for corpus, shards in rows.items():
        for row, (shard, dense) in enumerate(zip(SHARDS, shards, strict=True)):
            sparse = scipy.sparse.csr_array(np.array(dense, dtype=np.float32))
            header = {"model": model, "sae": sae, "corpus": corpus, "d_sae": 3, "ids_sha256": f"ids of {corpus}"}
            header |= {"first_row": row, "stop_row": row + 1, "n_ctx": 4}
            path = folder / "features" / "mlp" / model / sae / corpus / f"shard-{shard}.safetensors"
            positions = 4 * row + np.array([1, 2, 3])  # place 0 is BOS, which has no features
            save_shard(path, sparse.indptr, sparse.indices, sparse.data, positions, np.ones(3, dtype=bool), header)


def write_correlation(folder: Path, a: str, b: str) -> None:
    """Write the correlation of two SAEs of one latent each."""
    r, zero = np.array([[0.9]]), np.array([[0]])
    matches = Matches((r, r), (zero, zero), scipy.sparse.csr_array(r), np.array([0, 1]), 0)
    correlation = Correlation(
        names=(a, b),
        n_tokens={"lua": 3},
        firings=(zero, zero),
        testable=(np.array([True]), np.array([True])),
        pearson=matches,
        by_corpus={},
        one_to_one=np.array([0]),
        combined=Combined((r[0], r[0]), (zero[0], zero[0])),
    )
    path = folder / "correlations" / "mlp" / a / "correlations.safetensors"
    path.parent.mkdir(parents=True)
    with writing_groups(path, 1, 64) as groups:
        groups.add(b, *correlation_group(correlation))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only run of two models, the edge between them, and a random control called `random`."""
    folder = tmp_path_factory.mktemp("results") / "mine"
    write_summary(folder)
    write_tables(folder)
    write_tokens(folder)
    sae = Sae("relu", 4, 3)
    for model, name in (("base", "seed0"), ("base", "seed1"), ("lua", "from_base"), ("random", "seed0")):
        (folder / "saes" / "mlp" / model / name).mkdir(parents=True)
        save_sae(sae, folder / "saes" / "mlp" / model / name, {"of": f"{model}.{name}"})
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


def test_a_run_lists_its_models_and_leading_saes(run: Run):
    assert (run.name, run.models) == ("mine", ["base", "lua"])
    assert run.saes == {"base": "seed0", "lua": "from_base"}
    assert run.summary["edges"][0]["groups"]["all"]["parent"]["persists"] == 3


def test_a_run_is_named_after_its_folder_however_the_path_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    assert open_run(".").name == "mine"
    monkeypatch.chdir(folder.parent)
    assert open_run("mine/").name == "mine"


def test_the_edges_are_the_table_of_the_report(run: Run):
    identified, everything = run.edges.to_dict("records")
    names = ("parent", "child", "group", "child_new", "persist_share", "reading")
    assert [identified[name] for name in names] == ["base", "lua", "identified", 3, 0.75, "no control"]
    assert [everything[name] for name in names] == ["base", "lua", "all", 3, 0.5, "no control"]


def test_the_answer_has_one_row_of_six_columns_for_each_edge(run: Run):
    (row,) = run.answer.to_dict("index").items()
    assert row[0] == "base -> lua"
    assert [row[1][name] for name in ("persist", "drifted", "gone", "new")] == [3, 3, 3, 3]
    assert row[1]["found"].replace("\N{NO-BREAK SPACE}", " ").startswith("75.0 % of ")
    assert row[1]["found"].endswith("identified")  # not of all, of which 50 % are found
    assert len(row[1]) == 6


def test_a_run_says_what_is_in_it(run: Run):
    said = repr(run)
    inside = ("'mine'", "'mlp'", "base (seed0)", "lua (from_base)", "base -> lua")
    assert [part for part in inside if part not in said] == []
    listed = said.partition("tables: ")[2].replace("\nalso: ", ", ")
    assert [name for name in listed.split(", ") if name.isidentifier() and not hasattr(Run, name)] == []


def test_tables_are_read_from_their_files(run: Run):
    assert run.features["name"].tolist() == ["lineage/mlp/features"]
    assert run.edge("base", "lua")["name"].tolist() == ["lineage/mlp/edges/base__lua"]
    assert run.labels("base")["name"].tolist() == run.labels("base.seed0")["name"].tolist() == ["labels/mlp/base/seed0"]


def test_activations_come_with_place_and_text(run: Run):
    activations = run.activations("base", [1, 0])
    # Rows are <s>a-e and <s>ea-; the second token of lua's second row is a.
    assert activations.to_numpy().tolist() == [
        [1, "english", 0, 1, "a", 1.0],
        [1, "english", 0, 3, "e", 2.0],
        [1, "lua", 1, 2, "a", 4.0],
        [0, "english", 0, 2, "-", 0.5],
        [0, "lua", 0, 1, "a", 3.0],
    ]
    assert list(activations) == ["latent", "corpus", "row", "place", "token", "activation"]


def test_a_latent_that_never_fires_has_no_activations(run: Run):
    for latents in ([2], []):
        activations = run.activations("base", latents)
        assert list(activations) == ["latent", "corpus", "row", "place", "token", "activation"]
        assert len(activations) == 0


def test_latents_may_come_from_a_table(run: Run):
    assert run.activations("base", pd.Series([0]))["latent"].tolist() == [0, 0]
    assert run.activations("base", np.array([0]))["activation"].tolist() == [0.5, 3.0]


def test_models_and_saes_load(run: Run):
    model = run.model("random")
    assert (model.config.hidden_size, model.dtype, model.training) == (4, torch.float32, False)
    assert run.sae("lua").d_sae == run.sae("base.seed1").d_sae == 3


def test_a_correlation_is_that_of_the_leading_saes_or_of_those_named(run: Run):
    assert run.correlation("base", "lua").names == ("base.seed0", "lua.from_base")
    assert run.correlation("base.seed1", "base").names == ("base.seed1", "base.seed0")


def test_correlate_is_that_of_the_correlations_package():
    assert correlate is pearson.correlate


def test_tables_need_neither_torch_nor_transformers_nor_numba(folder: Path):
    code = (
        "import sys; from saelineage.notebook import open_run; run = open_run(sys.argv[1]); "
        "run, run.answer, run.edges, run.edge('base', 'lua'), run.labels('base'), run.activations('base', [0]); "
        "print({'torch', 'transformers', 'numba', 'plotly'} & set(sys.modules))"
    )
    scripts = Path(__file__).parents[2] / "workflow" / "scripts"
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=scripts, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "set()", result.stderr


# --- missing and invalid ---


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="demo' must be the folder of a run"):
        open_run(tmp_path / "demo")


def test_a_run_with_several_hookpoints_is_opened_at_the_one_that_is_named(tmp_path: Path):
    folder = tmp_path / "mine"
    for hookpoint in ("mlp", "residual"):
        write_summary(folder, hookpoint)
        write_tables(folder, hookpoint)
    residual = open_run(folder, "residual")
    assert residual.features["name"].tolist() == ["lineage/residual/features"]
    assert residual.edge("base", "lua")["name"].tolist() == ["lineage/residual/edges/base__lua"]
    with pytest.raises(
        InputError, match=r"several hookpoints, .* open_run\('.*mine', 'mlp'\); choose one of: mlp, residual$"
    ):
        open_run(folder)
    with pytest.raises(InputError, match=r"no hookpoint 'attention'; choose one of: mlp, residual$"):
        open_run(folder, "attention")


def test_a_run_without_any_lineage_is_unfinished(tmp_path: Path):
    (tmp_path / "models").mkdir()
    with pytest.raises(InputError, match=r"is unfinished: .*lineage' holds the lineage of no hookpoint; .*--cores 2$"):
        open_run(tmp_path)


def test_an_unfinished_run_is_refused_with_the_command_that_finishes_it(tmp_path: Path):
    for missing in ("summary.json", "features.parquet", "edges/base__lua.parquet"):
        folder = tmp_path / Path(missing).stem
        write_summary(folder)
        write_tables(folder)
        (folder / "lineage/mlp" / missing).unlink()
        with pytest.raises(InputError, match=f"run: snakemake --cores 2 results/{folder.name}/lineage/mlp/{missing}$"):
            open_run(folder)


def test_a_run_without_labels_says_how_to_make_them(run: Run):
    with pytest.raises(InputError, match=r"snakemake --cores 2 results/mine/labels/mlp/lua/from_base.parquet$"):
        run.labels("lua")


def test_an_unknown_name_is_refused_with_the_choices(run: Run):
    for call in (run.model, run.sae, run.labels):
        with pytest.raises(InputError, match=r"'moon'.* base, lua, random$"):
            call("moon")
    with pytest.raises(InputError, match=r"'base\.seed7'.* base\.seed0, base\.seed1$"):
        run.sae("base.seed7")
    with pytest.raises(InputError, match=r"no verdicts on 'random'.* random\.seed0$"):
        run.sae("random")
    with pytest.raises(InputError, match=r"lua -> base.* base -> lua$"):
        run.edge("lua", "base")


def test_a_pair_that_was_not_correlated_is_refused_with_the_choices(run: Run):
    # Of lua and base there is one pair, the other way round; of lua and random there is none, so all are listed.
    with pytest.raises(InputError, match=r"lua\.from_base__base\.seed0; choose one of: base\.seed0__lua\.from_base;"):
        run.correlation("lua", "base")
    choices = "base.seed0__lua.from_base, base.seed1__base.seed0"
    with pytest.raises(InputError, match=f"lua.from_base__random.seed0; choose one of: {choices};"):
        run.correlation("lua", "random.seed0")


def test_a_latent_outside_the_sae_is_refused(run: Run):
    for latent in (3, -1):
        with pytest.raises(InputError, match=f"base.seed0 .* 0 to 2, not {latent}"):
            run.activations("base", [0, latent])


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A run of one SAE whose features a test may damage."""
    folder = tmp_path / "mine"
    write_summary(folder)
    write_tokens(folder)
    for name in ("models/base", "saes/mlp/base/seed0"):
        (folder / name).mkdir(parents=True)
    write_features(folder, "base", "seed0")
    return folder


def test_a_missing_shard_is_refused_and_not_skipped(damaged: Path):
    path = f"features/mlp/base/seed0/lua/shard-{SHARDS[1]}.safetensors"
    (damaged / path).unlink()
    with pytest.raises(InputError, match=f"{path}' is missing"):
        Run(damaged, "mlp").activations("base", [0])


def test_features_of_other_tokens_are_refused(damaged: Path):
    tokens = "tokens/english/probe.npy"
    sidecar = {"n_rows": 2, "n_ctx": 4, "bos_id": 0, "eos_id": 1, "ids_sha256": "others"}
    write_sidecar(damaged / tokens, sidecar)
    shard = f"features/mlp/base/seed0/english/shard-{SHARDS[0]}.safetensors"
    with pytest.raises(InputError, match=f"{shard}' .*{tokens}'.* delete it"):
        Run(damaged, "mlp").activations("base", [0])
