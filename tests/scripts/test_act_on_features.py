"""Acting on the new features of an edge, as the rule does."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from tokenizers import Tokenizer

from act_on_features import Edge, Written, act_on_features
from saelineage.activations import read_activations
from saelineage.features.shards import save_shard
from saelineage.labels.annotations import annotate, save_annotations
from saelineage.models.loading import load_model
from saelineage.saes.sae import load_sae
from saelineage.tokens import TokenRows
from tests.conftest import _documents
from tests.scripts.test_ablate_groups import D_SAE, HOOKPOINT, edge_table, write_sae

CORPORA = ("words", "sums")


def write_features(folder: Path, tiny, sae_folder: Path, rows: dict[str, TokenRows]) -> list[str]:
    """The child's features on the probe."""
    model, sae, paths = load_model(tiny.models["b"]), load_sae(sae_folder), []
    for corpus, of_corpus in rows.items():
        within = range(len(of_corpus.ids))
        mask = of_corpus.compared(within)
        with torch.inference_mode():
            acts = read_activations(model, HOOKPOINT, torch.from_numpy(of_corpus.read(within)))
            latents = scipy.sparse.csr_array(sae.encode(acts[torch.from_numpy(mask)]).numpy())
        header = {"model": "b", "sae": "seed0", "corpus": corpus, "ids_sha256": of_corpus.digest, "d_sae": D_SAE}
        header |= {"n_ctx": tiny.n_ctx, "first_row": 0, "stop_row": len(of_corpus.ids)}
        paths.append(str(folder / f"{corpus}.safetensors"))
        folder.mkdir(parents=True, exist_ok=True)
        places = np.flatnonzero(mask)
        tensors = (latents.indptr, latents.indices, latents.data, places, np.ones(len(places), dtype=bool))
        save_shard(paths[-1], *tensors, header)
    return paths


@pytest.fixture
def run(tiny, tmp_path):
    """Act on features of the edge from `a` to `b`; gives the paths of the tables."""
    rows = {corpus: TokenRows(tiny.tokens[corpus]["probe"]) for corpus in CORPORA}
    sae = write_sae(tmp_path / "saes/b/seed0", 1)
    verdicts = edge_table().assign(headline=False)
    verdicts.to_parquet(tmp_path / "edge.parquet")
    verdicts.assign(importance=verdicts["latent"].astype(float)).to_parquet(tmp_path / "importance.parquet")
    tokenizer = Tokenizer.from_file(str(tiny.tokenizer / "tokenizer.json"))
    annotations = annotate({corpus: _documents(corpus, 60) for corpus in CORPORA}, rows, tokenizer, {})
    save_annotations(tmp_path / "probe.safetensors", annotations, {})

    def act(folder: str, n_features: int = 2, parent: Path | None = None) -> list[Path]:
        names = ("acts.parquet", "summary.parquet", "patches.parquet")
        paths = [tmp_path / folder / name for name in names]
        act_on_features(
            edge=Edge(
                models={"parent": "a", "child": "b"},
                model_folders={"parent": parent or tiny.models["a"], "child": tiny.models["b"]},
                sae_folder=sae,
                features=write_features(tmp_path / "features", tiny, sae, rows),
                path_to_verdicts=str(tmp_path / "edge.parquet"),
                path_to_importance=str(tmp_path / "importance.parquet"),
            ),
            paths_to_rows={corpus: str(tiny.tokens[corpus]["probe"]) for corpus in CORPORA},
            path_to_annotations=str(tmp_path / "probe.safetensors"),
            tokenizer_folder=tiny.tokenizer,
            hookpoint=HOOKPOINT,
            n_features=n_features,
            max_rows=4,
            batch_rows=3,
            n_replicates=20,
            seed=0,
            written=Written(*map(str, paths)),
            device=torch.device("cpu"),
        )
        return paths

    return act


def test_the_most_important_new_features_are_acted_on_in_both_models(run):
    acts, summary, patches = map(pd.read_parquet, run("out"))
    assert list(dict.fromkeys(acts["latent"])) == [11, 10]
    assert acts.groupby(["latent", "passage"]).size().unique().tolist() == [7]
    assert set(acts["random"]) <= {-1, *range(5)}  # the first five are not new
    assert summary["setting"].tolist() == ["as it is", "removed", "mean", "twice", "as it is", "added", "random"]
    assert summary["model"].tolist() == ["child"] * 4 + ["parent"] * 3
    assert summary.loc[0, "kl"] == 0
    assert (summary.loc[1:, "kl"] > 0).all()
    assert patches["corpus"].tolist() == ["sums"] * 3 + ["words"] * 3
    assert patches["group"].tolist() == ["new", "new for sure", "everything"] * 2
    assert patches["n_latents"].tolist() == [7, 0, 12] * 2


def test_equal_inputs_give_equal_bytes(run):
    assert [path.read_bytes() for path in run("first")] == [path.read_bytes() for path in run("second")]


def test_a_parent_of_another_width_is_left_out(run, monkeypatch):
    monkeypatch.setattr("act_on_features.has_width", lambda *_: False)
    acts, summary, patches = map(pd.read_parquet, run("out"))
    assert set(acts["model"]) == set(summary["model"]) == {"child"}
    assert len(patches) == 0


def test_a_child_without_new_features_has_tables_without_rows(run):
    acts, summary, patches = map(pd.read_parquet, run("out", n_features=0))
    assert (len(acts), len(summary)) == (0, 0)
    assert len(patches) == 6
