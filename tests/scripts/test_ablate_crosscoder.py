"""Measuring what a crosscoder's latents do to the loss of an edge's models, as the rule does."""

import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ablate_crosscoder import ablate_crosscoder
from saelineage.crosscoders.crosscoder import save_crosscoder
from saelineage.lineage.crosscoder_ablations import crosscoder_effects, latent_groups
from saelineage.models.loading import load_model, open_model
from saelineage.tokens import TokenRows
from tests.unit.lineage.test_crosscoder_ablations import D_SAE, HOOKPOINT, Probe, random_crosscoder


def verdicts() -> pd.DataFrame:
    """Of an edge from a to b and of a control in b's place. All latents but three persist."""
    of_edge = np.array(["persists"] * D_SAE, dtype=object)
    of_edge[[3, 7]], of_edge[20] = "emerges", "disappears"
    named = {"edge": "a__b", "parent": "a", "child": "b", "role": "edge"}
    columns = {"latent": np.arange(D_SAE), "n_firings": np.arange(20, 20 + D_SAE)}
    edge = pd.DataFrame({**named, **columns, "verdict": of_edge})
    return pd.concat([edge, edge.assign(child="x", role="control", verdict="emerges")], ignore_index=True)


@pytest.fixture
def ablate(tiny, tmp_path):
    """Ablate a crosscoder of the two tiny models; gives the path of the table."""
    rows = {corpus: TokenRows(tiny.tokens[corpus]["probe"]) for corpus in ("words", "sums")}
    crosscoder = random_crosscoder()
    save_crosscoder(crosscoder, tmp_path / "crosscoder")
    verdicts().to_parquet(tmp_path / "verdicts.parquet")
    latents = Probe(tmp_path / "latents", tiny, rows, crosscoder).shards()

    def run(name: str) -> Path:
        ablate_crosscoder(
            folder=tmp_path / "crosscoder",
            path_to_verdicts=str(tmp_path / "verdicts.parquet"),
            paths_to_latents={corpus: list(map(str, paths)) for corpus, paths in latents.items()},
            model_folders=tiny.models,
            paths_to_rows={corpus: str(tiny.tokens[corpus]["probe"]) for corpus in ("words", "sums")},
            hookpoint=HOOKPOINT,
            max_rows=6,
            batch_rows=4,
            n_replicates=20,
            seed=0,
            path_to_effects=str(tmp_path / name),
            device=torch.device("cpu"),
        )
        return tmp_path / name

    run.read = (crosscoder, HOOKPOINT, rows, latents)
    return run


def test_each_model_is_measured_without_the_latents_of_its_edge(ablate, tiny):
    found = pd.read_parquet(ablate("effects.parquet"))
    assert found["side"].tolist() == ["parent"] * 4 + ["child"] * 4
    assert found["verdict"].tolist() == ["emerges", "emerges", "disappears", "disappears"] * 2
    assert found["corpus"].tolist() == ["sums", "words"] * 4
    assert found["n_latents"].tolist() == [2, 2, 1, 1] * 2
    assert (found["n_draws"] == 3).all()
    for side, name in (("parent", "a"), ("child", "b")):
        groups = latent_groups(verdicts(), name, 0)
        expected = crosscoder_effects(load_model(tiny.models[name]), name, *ablate.read, groups, 4, 6, 20, 0)
        of_side = found[found["side"] == side].reset_index(drop=True)
        pd.testing.assert_frame_equal(of_side, expected)
        assert expected["loss_change"].abs().max() > 1e-4


def test_equal_inputs_give_equal_bytes(ablate):
    assert ablate("first.parquet").read_bytes() == ablate("second.parquet").read_bytes()


def test_one_model_is_in_memory_at_a_time(ablate, monkeypatch):
    opened: list[weakref.ref] = []

    def opening(*args):
        assert [model for model in opened if model() is not None] == []
        model = open_model(*args)
        opened.append(weakref.ref(model))
        return model

    monkeypatch.setattr("ablate_crosscoder.open_model", opening)
    ablate("once.parquet")
    assert len(opened) == 2
