"""The loss recovered is 0 with no feature, 1 with all of the child's stream, and its null are features not new."""

from copy import copy, deepcopy

import numpy as np
import pandas as pd
import pytest
import torch

from saelineage.behaviour.edges import Reader
from saelineage.behaviour.patching import EVERYTHING, PatchedGroup, patched_groups, recovered
from saelineage.models.losses import next_token_loss
from saelineage.models.predictions import predict
from saelineage.saes.sae import Sae
from saelineage.tokens import TokenRows

D_MODEL = 32
LAST = "model.layers.1.output"


def perfect_sae() -> Sae:
    """Two latents for each dimension, its positive and its negative part: no error."""
    sae = Sae("relu", D_MODEL, 2 * D_MODEL)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
    return sae


@pytest.fixture(scope="module")
def pair(tiny, model) -> dict[str, Reader]:
    """A child, and a parent that is the same behind its first layer and predicts worse."""
    parent = deepcopy(model)
    with torch.no_grad():
        parent.model.layers[0].mlp.down_proj.weight.mul_(6)
    rows = {corpus: TokenRows(tiny.tokens[corpus]["probe"]) for corpus in ("words", "sums")}
    loss = {
        name: next_token_loss(predict(of, ids), ids).loss
        for name, of in (("p", parent), ("c", model))
        for ids in [torch.from_numpy(rows["words"].read(range(8)))]
    }
    models = {"parent": parent, "child": model} if loss["p"] > loss["c"] else {"parent": model, "child": parent}
    return {side: Reader(of, rows) for side, of in models.items()}


def figures(pair, groups, sae=None, hookpoint=LAST, n_replicates=50) -> pd.DataFrame:
    return recovered(pair, sae or perfect_sae(), hookpoint, groups, 4, 10, n_replicates, 0)


def a_group(*latents: int, name: str = "new", draws=()) -> PatchedGroup:
    return PatchedGroup(name, np.array(latents, dtype=np.int64), tuple(map(np.array, draws)))


def test_everything_at_the_last_stream_recovers_all_and_no_feature_nothing(pair):
    silent = Sae("relu", D_MODEL, 4)  # no latent fires
    groups = [a_group(0, 1), a_group(*range(4), name=EVERYTHING), a_group()]
    found = figures(pair, groups, silent).set_index(["corpus", "group"], append=True).reset_index()
    assert (found["gain_low"] > 0).any()
    clear = found[found["gain_low"] > 0]
    for name, share in (("new", 0.0), (EVERYTHING, 1.0)):
        of_group = clear[(clear["group"] == name) & (clear["n_latents"] > 0)]
        assert of_group["recovered"].to_numpy() == pytest.approx(share, abs=1e-5)
        assert of_group[["recovered_low", "recovered_high"]].to_numpy() == pytest.approx(share, abs=1e-5)
    assert clear.loc[clear["n_latents"] == 0, "recovered"].isna().all()


def test_all_features_of_an_sae_without_error_recover_what_everything_does(pair):
    rows = {corpus: copy(of) for corpus, of in pair["child"].rows.items()}
    for of in rows.values():
        of.compared = lambda numbers: np.ones((len(numbers), 16), dtype=bool)  # BOS and EOS too
    every = {side: Reader(reader.model, rows) for side, reader in pair.items()}
    groups = [a_group(*range(2 * D_MODEL)), a_group(*range(2 * D_MODEL), name=EVERYTHING)]
    found = figures(every, groups)
    features, everything = (found[found["group"] == group.name]["loss_patched"].to_numpy() for group in groups)
    assert features == pytest.approx(everything, abs=1e-5)
    assert np.abs(features - found["loss_parent"].to_numpy()[::2]).min() > 1e-3


def test_losses_are_those_of_the_models_and_intervals_are_over_documents(pair):
    found = figures(pair, [a_group(0)])
    for row in found.itertuples():
        rows = pair["child"].rows[row.corpus]
        ids = torch.from_numpy(rows.read(rows.spread(10)))
        for side in ("parent", "child"):
            loss = next_token_loss(predict(pair[side].model, ids), ids)
            assert getattr(row, f"loss_{side}") == pytest.approx(loss.loss / loss.n_predictions, rel=1e-6)
        assert row.n_tokens == loss.n_predictions
        assert row.gain_low <= row.gain <= row.gain_high
        assert row.n_documents > 2


def test_without_a_clear_gain_no_share_is_given(pair):
    same = {side: pair["child"] for side in ("parent", "child")}
    found = figures(same, [a_group(0, draws=[[1]]), a_group(0, name=EVERYTHING)])
    assert (found["gain"] == 0).all()
    assert found[["recovered", "recovered_low", "recovered_high", "recovered_random"]].isna().all(axis=None)
    assert found["loss_patched"].to_numpy() == pytest.approx(found["loss_parent"].to_numpy())


def test_random_groups_are_measured_like_the_group(pair):
    found = figures(pair, [a_group(3, 40, draws=[[5], [9, 11]]), a_group(5), a_group(9, 11)])
    for _, rows in found.groupby("corpus"):
        first, *others = rows.to_dict("records")
        if first["gain_low"] > 0:
            shares = [row["recovered"] for row in others]
            assert first["recovered_random"] == pytest.approx(np.mean(shares))
            assert first["recovered_random_least"] == pytest.approx(min(shares))
            assert first["recovered_random_largest"] == pytest.approx(max(shares))
        assert (first["n_draws"], first["n_latents_random"]) == (2, 1.5)


def test_new_features_are_patched_beside_random_ones_that_are_not_new():
    verdicts = ["new"] * 3 + ["inherited"] * 5 + ["untestable"] * 2
    child = pd.DataFrame({"side": "child", "latent": range(10), "verdict": verdicts, "density": 0.1})
    child = child.assign(headline=[True] + [False] * 9)
    edge = pd.concat([child.assign(side="parent", verdict="gone"), child], ignore_index=True)
    new, sure, everything = patched_groups(edge, 0)
    assert (new.latents.tolist(), sure.latents.tolist()) == ([0, 1, 2], [0])
    assert [len(draw) for draw in new.draws] == [3]  # five are not new, so there is one group of three
    assert [len(draw) for draw in sure.draws] == [1, 1, 1]
    assert {latent for group in (new, sure) for draw in group.draws for latent in draw} <= set(range(3, 8))
    assert (everything.name, len(everything.latents), everything.draws) == (EVERYTHING, 10, ())


def test_an_edge_whose_parent_cannot_be_patched_has_no_rows(pair):
    found = figures(pair, [])
    assert len(found) == 0
    assert {"corpus", "group", "recovered"} <= set(found.columns)
