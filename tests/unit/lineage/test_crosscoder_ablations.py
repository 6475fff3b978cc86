"""A model's loss with a crosscoder's reconstructions, with and without groups of latents, against dense code."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from saelineage.activations import hooked, read_activations
from saelineage.crosscoders.crosscoder import Crosscoder
from saelineage.errors import InputError
from saelineage.features.shards import save_shard
from saelineage.lineage.ablations import random_groups
from saelineage.lineage.crosscoder_ablations import (
    LatentGroup,
    crosscoder_effects,
    latent_groups,
)
from saelineage.lineage.document_losses import predicted_documents
from saelineage.models.loading import load_model
from saelineage.saes.batches import Scaling
from saelineage.tokens import TokenRows
from tests.unit.crosscoders.made import crosscoder_of

HOOKPOINT = "model.layers.0.mlp.down_proj.input"
D_IN, D_SAE = 48, 30
IDLE = 0
"""A latent that never fires."""
NONE = np.array([], dtype=np.int64)


@pytest.fixture(scope="module")
def rows(tiny) -> dict[str, TokenRows]:
    return {corpus: TokenRows(tiny.tokens[corpus]["probe"]) for corpus in ("words", "sums")}


def random_crosscoder() -> Crosscoder:
    """Latents of random directions, larger than the models' activations, which it centres and scales."""
    random = torch.Generator().manual_seed(1)
    W_dec = torch.randn(2, D_SAE, D_IN, generator=random)
    scalings = {name: Scaling(torch.randn(D_IN, generator=random), scale) for name, scale in (("a", 2.0), ("b", 0.5))}
    return crosscoder_of(W_dec, "topk", k=4, **scalings)


@pytest.fixture(scope="module")
def crosscoder() -> Crosscoder:
    return random_crosscoder()


class Probe:
    """The latents of a crosscoder on the probe, dense and in shards."""

    def __init__(self, folder: Path, tiny, rows: dict[str, TokenRows], crosscoder: Crosscoder):
        self.folder, self.rows = folder, rows
        self.dense, self.compared = {}, {}
        models = {name: load_model(path) for name, path in tiny.models.items()}
        for corpus, of_corpus in rows.items():
            ids = torch.from_numpy(of_corpus.ids.astype(np.int64))
            acts = {name: read_activations(model, HOOKPOINT, ids).flatten(0, 1) for name, model in models.items()}
            norms = acts["a"].norm(dim=1)
            text = torch.from_numpy(of_corpus.text_mask(range(len(ids)))).flatten()
            self.compared[corpus] = text & (norms <= norms.quantile(0.8))
            latents = crosscoder.encode(acts).matrix(D_SAE).to_dense()
            latents[:, IDLE] = 0
            self.dense[corpus] = latents * self.compared[corpus].unsqueeze(1)

    def shards(self, n_shards: int = 2, **header: str) -> dict[str, list[Path]]:
        """Write the shards: those of text tokens, with empty rows for those that are not compared."""
        paths: dict[str, list[Path]] = {}
        for corpus, of_corpus in self.rows.items():
            n_ctx, digest = of_corpus.info["n_ctx"], of_corpus.digest
            text = of_corpus.text_mask(range(len(of_corpus.ids))).ravel()
            for number in range(n_shards):
                within = of_corpus.shard(number, n_shards)
                positions = np.flatnonzero(text[: within.stop * n_ctx])
                positions = positions[positions >= within.start * n_ctx]
                latents = scipy.sparse.csr_array(self.dense[corpus][positions].numpy())
                named = {"model": "lineage", "sae": "seed0", "corpus": corpus, "d_sae": D_SAE, "ids_sha256": digest}
                covered = {"first_row": within.start, "stop_row": within.stop, "n_ctx": n_ctx}
                path = self.folder / f"{n_shards}/{corpus}/{number}{''.join(header)}.safetensors"
                compared = self.compared[corpus][positions].numpy()
                entries = (latents.indptr, latents.indices, latents.data)
                save_shard(path, *entries, positions, compared, named | covered | header)
                paths.setdefault(corpus, []).append(path)
        return paths


@pytest.fixture(scope="module")
def probe(tiny, rows, crosscoder, tmp_path_factory) -> Probe:
    return Probe(tmp_path_factory.mktemp("latents"), tiny, rows, crosscoder)


def group_of(latents: Sequence[int], *draws: Sequence[int]) -> LatentGroup:
    """A group of latents that emerge on the edge from a to b, ablated in a."""
    return LatentGroup("a__b", "a", "b", "parent", "emerges", np.array(latents, int), tuple(map(np.array, draws)))


def effects(model, crosscoder, probe, groups, batch_rows=5, max_rows=10**6, paths=None, n_replicates=50):
    """The effects of groups in model a."""
    paths = probe.shards() if paths is None else paths
    limits = (batch_rows, max_rows, n_replicates, 0)
    return crosscoder_effects(model, "a", crosscoder, HOOKPOINT, probe.rows, paths, groups, *limits)


def dense_loss(model, crosscoder: Crosscoder, probe: Probe, corpus: str, without: Sequence[int] | None) -> float:
    """Loss per predicted token in plain torch; `without` None leaves the activations as they are."""
    ids = torch.from_numpy(probe.rows[corpus].ids.astype(np.int64))
    latents = probe.dense[corpus].clone()
    latents[:, list(without or [])] = 0
    scaling = crosscoder.scalings["a"]
    recons = (latents @ crosscoder.W_dec[0] + crosscoder.b_dec[0]) / scaling.scale + scaling.mean
    put = probe.compared[corpus].view(*ids.shape, 1)

    def change(acts):
        return acts if without is None else torch.where(put, recons.view_as(acts), acts)

    with torch.inference_mode(), hooked(model, HOOKPOINT, change):
        logits = model(input_ids=ids).logits.double()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return float(losses)


def test_losses_equal_those_of_dense_code(model, crosscoder, probe):
    group, first, second = [3, 7, 20], [1, 2, 9], [4, 5, 6]
    table = effects(model, crosscoder, probe, [group_of(group, first, second)])
    assert table["corpus"].tolist() == ["sums", "words"]
    for row in table.itertuples():
        corpus = str(row.corpus)
        ids, dense = probe.rows[corpus].ids, probe.dense[corpus]
        assert (row.n_latents, row.n_draws, row.n_tokens) == (3, 2, len(ids) * (ids.shape[1] - 1))
        assert row.n_firings == int((dense[:, group] > 0).sum()) > 0
        assert row.n_firings_random == int((dense[:, first + second] > 0).sum()) / 2
        losses = {
            name: dense_loss(model, crosscoder, probe, corpus, without)
            for name, without in (("own", None), ("whole", []), ("group", group), ("one", first), ("two", second))
        }
        assert row.loss == pytest.approx(losses["own"], rel=1e-6)
        assert row.loss_reconstructed == pytest.approx(losses["whole"], rel=1e-6)
        assert row.loss_without == pytest.approx(losses["group"], rel=1e-6)
        change = losses["group"] - losses["whole"]
        assert abs(change) > 1e-3
        assert row.loss_change == pytest.approx(change, abs=1e-6)
        assert row.loss_change_low < row.loss_change < row.loss_change_high
        assert row.loss_change_per_firing * row.n_firings == pytest.approx(change * row.n_tokens, rel=1e-3)
        random = sorted(losses[name] - losses["whole"] for name in ("one", "two"))
        found = (row.loss_change_random_least, row.loss_change_random_largest)
        assert found == pytest.approx(tuple(random), abs=1e-6)
        assert row.loss_change_random == pytest.approx(sum(random) / 2, abs=1e-6)
        firings = 2 * row.n_firings_random
        assert row.loss_change_random_per_firing * firings == pytest.approx(sum(random) * row.n_tokens, rel=1e-3)


def test_ablating_what_never_fires_changes_nothing_and_an_empty_group_has_no_figures(model, crosscoder, probe):
    table = effects(model, crosscoder, probe, [group_of([IDLE]), group_of([], [1]), group_of([3])])
    idle, empty, one = (table[place : place + 2] for place in (0, 2, 4))
    assert idle[["n_latents", "n_firings", "loss_change"]].to_numpy().tolist() == [[1, 0, 0.0]] * 2
    assert (idle["loss_without"] == idle["loss_reconstructed"]).all()
    assert idle["loss_change_per_firing"].isna().all()
    assert empty["n_latents"].tolist() == [0, 0]
    assert empty[["loss_without", "loss_change", "loss_change_low", "loss_change_per_firing"]].isna().all(axis=None)
    assert empty["loss_change_random"].notna().all()
    assert one["n_draws"].tolist() == [0, 0]
    assert one[["loss_change_random", "loss_change_random_least", "n_firings_random"]].isna().all(axis=None)


def test_tokens_that_are_left_out_keep_their_activations(model, crosscoder, probe, monkeypatch):
    monkeypatch.setitem(probe.compared, "words", torch.zeros_like(probe.compared["words"]))
    monkeypatch.setitem(probe.dense, "words", torch.zeros_like(probe.dense["words"]))
    monkeypatch.setattr(probe, "folder", probe.folder / "left_out")
    table = effects(model, crosscoder, probe, [group_of([3])]).set_index("corpus")
    assert table["loss_reconstructed"]["words"] == table["loss"]["words"]
    assert table["n_firings"]["words"] == 0
    assert table["loss_reconstructed"]["sums"] > table["loss"]["sums"]


def test_batches_and_shards_change_nothing_and_a_limit_reads_rows_that_are_spread(model, crosscoder, probe):
    groups = [group_of([3, 7], [1, 2])]
    one, several = (
        effects(model, crosscoder, probe, groups, batch_rows, paths=probe.shards(n_shards))
        for batch_rows, n_shards in ((1000, 1), (3, 3))
    )
    pd.testing.assert_frame_equal(one, several, rtol=1e-6, atol=1e-7)
    limited = effects(model, crosscoder, probe, groups, 4, max_rows=6, paths=probe.shards(3)).set_index("corpus")
    for corpus, rows in probe.rows.items():
        n_ctx = rows.info["n_ctx"]
        assert limited["n_tokens"][corpus] == 6 * (n_ctx - 1)
        by_row = (probe.dense[corpus][:, [3, 7]] > 0).view(len(rows.ids), -1).sum(1)
        assert limited["n_firings"][corpus] == int(by_row[list(rows.spread(6))].sum())


def test_latents_of_other_tokens_or_another_crosscoder_are_refused(model, crosscoder, probe):
    paths = probe.shards(ids_sha256="0" * 8)
    with pytest.raises(InputError, match=r"crosscoder's 30 latents of the tokens in .* but holds 30 of 00000000"):
        effects(model, crosscoder, probe, [group_of([3])], paths=paths)
    smaller = crosscoder_of(crosscoder.W_dec[:, :29], "topk", k=4, **crosscoder.scalings)
    with pytest.raises(InputError, match="must hold the crosscoder's 29 latents of the tokens in"):
        effects(model, smaller, probe, [group_of([3])])


def test_the_end_of_a_document_belongs_to_it(write_tokens):
    # BOS 0, EOS 1. The first document ends in the second row; the third one is cut off.
    rows = write_tokens([[0, 5, 6, 7], [0, 8, 1, 9], [0, 9, 1, 5]])
    assert predicted_documents(rows).tolist() == [[0, 0, 0], [0, 0, 1], [1, 1, 2]]


def test_random_groups_are_of_equal_density_and_share_no_latent():
    # Latents 0 and 1 are the group. Nearest in log density are first 2 and 3, then 4 and 5; 6 alone is no pair.
    firings = np.array([100, 10, 101, 11, 110, 12, 50.0])
    draws = random_groups(np.array([0, 1]), np.arange(2, 7), firings, seed=0)
    assert [draw.tolist() for draw in draws] == [[2, 3], [4, 5]]
    assert [len(random_groups(np.array([0]), np.arange(1, 7), firings, 0, n)) for n in (1, 2)] == [1, 2]


def test_a_pool_that_is_too_small_gives_one_smaller_group_and_an_empty_one_none():
    firings = np.ones(4)
    assert [draw.tolist() for draw in random_groups(np.array([0, 1]), np.array([3]), firings, 0)] == [[3]]
    assert random_groups(np.array([0, 1]), NONE, firings, 0) == ()
    assert random_groups(NONE, np.array([3]), firings, 0) == ()


def test_both_models_of_an_edge_are_asked_about_what_emerges_and_what_disappears():
    def pair(edge: str, child: str, role: str, verdicts: Sequence[str]) -> pd.DataFrame:
        named = {"edge": edge, "parent": edge.split("__")[0], "child": child, "role": role}
        return pd.DataFrame({**named, "latent": range(5), "n_firings": 30, "verdict": verdicts})

    latents = pd.concat(
        [
            pair("a__b", "b", "edge", ["emerges", "persists", "persists", "disappears", "rotated"]),
            pair("a__b", "x", "control", ["emerges"] * 5),
            pair("b__c", "c", "edge", ["persists", "emerges", "untestable", "emerges", "persists"]),
        ]
    )
    found = [
        (group.edge, group.side, group.verdict, group.latents.tolist(), [draw.tolist() for draw in group.draws])
        for group in latent_groups(latents, "b", seed=0)
    ]
    assert found == [
        ("a__b", "child", "emerges", [0], [[1], [2]]),
        ("a__b", "child", "disappears", [3], [[1], [2]]),
        ("b__c", "parent", "emerges", [1, 3], [[0, 4]]),
        ("b__c", "parent", "disappears", [], []),
    ]
    assert [(group.parent, group.child) for group in latent_groups(latents, "a", seed=0)] == [("a", "b")] * 2
    assert latent_groups(latents, "x", seed=0) == []
