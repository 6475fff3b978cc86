"""Contrasting the models of an edge, as the rule does."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from contrast_models import contrast_models
from saelineage.behaviour.contrasts import SETS
from saelineage.tokens import special_ids
from tests.scripts.test_ablate_groups import HOOKPOINT, edge_table, write_sae


@pytest.fixture
def contrast(tiny, tmp_path):
    """Contrast the two tiny models; gives the paths of the tables."""
    sae = write_sae(tmp_path / "sae", 1)
    edge_table().assign(headline=False).to_parquet(tmp_path / "edge.parquet")

    def run(folder: str, parent: str = "a") -> list[Path]:
        paths = [tmp_path / folder / name for name in ("samples.parquet", "enriched.parquet")]
        contrast_models(
            models={"parent": parent, "child": "b"},
            model_folders={"parent": tiny.models[parent], "child": tiny.models["b"]},
            sae_folder=sae,
            path_to_verdicts=str(tmp_path / "edge.parquet"),
            paths_to_rows={corpus: str(tiny.tokens[corpus]["probe"]) for corpus in ("words", "sums")},
            tokenizer_folder=tiny.tokenizer,
            hookpoint=HOOKPOINT,
            n_samples=6,
            n_tokens=4,
            batch_rows=4,
            seed=0,
            path_to_samples=str(paths[0]),
            path_to_enriched=str(paths[1]),
            device=torch.device("cpu"),
        )
        return paths

    return run


def test_every_set_has_as_many_samples_and_every_testable_feature_a_row(contrast, tiny):
    samples, enriched = map(pd.read_parquet, contrast("out"))
    assert samples.groupby("way").size().to_dict() == dict.fromkeys(SETS, 6)
    assert sorted(enriched["latent"]) == list(range(12))
    assert (enriched["n_samples"] == 6).all()
    assert set(special_ids(tiny.tokenizer)) == {"bos", "eos"}
    assert not samples["text"].str.contains("</s>|<s>").any()  # no sample ends


def test_nothing_is_enriched_in_a_child_that_is_its_parent(contrast):
    assert not pd.read_parquet(contrast("out", parent="b")[1])["enriched"].any()


def test_equal_inputs_give_equal_bytes(contrast):
    assert [path.read_bytes() for path in contrast("first")] == [path.read_bytes() for path in contrast("second")]
