"""Finding the passages that a child learnt, as the rule does."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from compare_losses import Edge, compare_losses, read_losses
from measure_losses import measure_losses
from saelineage.errors import InputError
from saelineage.labels.annotations import Annotations, save_annotations
from saelineage.lineage.gains import losses_by_token
from saelineage.models.loading import load_model
from saelineage.models.training import new_mistral, save_model
from saelineage.tokens import TokenRows, load_tokenizer, special_ids
from tests.annotated import annotated, write_shards

CORPORA = ("words", "sums")
N = 5


def texts_of_rows(tiny, corpus: str) -> list[list[str | None]]:
    """The tokens of a corpus's probe as texts; None for BOS and EOS."""
    tokenizer, rows = load_tokenizer(tiny.tokenizer), TokenRows(tiny.tokens[corpus]["probe"])
    mask = rows.text_mask(range(len(rows.ids)))
    return [
        [tokenizer.decode([int(number)]) if is_text else None for number, is_text in zip(ids, of_row, strict=True)]
        for ids, of_row in zip(rows.ids, mask, strict=True)
    ]


@pytest.fixture
def probe(tiny) -> Annotations:
    return annotated({corpus: texts_of_rows(tiny, corpus) for corpus in CORPORA})


@pytest.fixture
def compare(tiny, probe, tmp_path):
    """Compare the edge a -> b with siblings of other random weights; gives the passages and the features."""
    folders = dict(tiny.models)
    for seed, name in ((5, "c"), (6, "d")):
        model = new_mistral(tiny.settings | {"seed": seed}, tiny.d_vocab, tiny.n_ctx, special_ids(tiny.tokenizer))
        save_model(model, tiny.tokenizer, tmp_path / name)
        folders[name] = tmp_path / name
    save_annotations(tmp_path / "probe.safetensors", probe, {})
    # Latent 0 fires on every second token, latent 1 never.
    latents = [{int(token): 1.0 + token % 3 for token in np.flatnonzero(probe.pieces >= 0) if token % 2}, {}]
    shards = {("b", "seed0"): write_shards(tmp_path / "b/seed0", probe, latents)}
    verdicts = {"side": "child", "latent": [0, 1], "verdict": ["new", "untestable"], "identified": True}
    pd.DataFrame(verdicts).assign(headline=False).to_parquet(tmp_path / "edge.parquet")

    def run(*siblings: str, folder: str = "out") -> tuple[pd.DataFrame, pd.DataFrame]:
        paths = [str(tmp_path / folder / name) for name in ("a__b.parquet", "a__b.features.parquet")]
        losses = {}
        for name in ("a", "b", *siblings) if siblings else ():
            losses[name] = str(tmp_path / folder / f"{name}.safetensors")
            rows = {corpus: str(tiny.tokens[corpus]["probe"]) for corpus in CORPORA}
            measure_losses(name, folders[name], rows, 7, losses[name], torch.device("cpu"))
        compare_losses(
            edges=[Edge("a", "b", list(siblings), str(tmp_path / "edge.parquet"), *paths)],
            paths_to_losses=losses,
            shards=shards,
            path_to_annotations=str(tmp_path / "probe.safetensors"),
            n_passages=N,
        )
        return tuple(map(pd.read_parquet, paths))

    run.folders, run.root = folders, tmp_path
    return run


def test_passages_are_where_the_child_is_better_than_its_parent_and_all_siblings(compare, tiny, probe):
    passages, features = compare("c", "d")
    rows = [TokenRows(tiny.tokens[corpus]["probe"]) for corpus in CORPORA]
    loss = {name: losses_by_token(load_model(folder), rows, 100) for name, folder in compare.folders.items()}
    gain = np.minimum.reduce([loss["a"], loss["c"], loss["d"]]) - loss["b"]
    gain[probe.documents < 0] = np.nan
    assert len(passages) == N
    assert passages["gain"].iloc[0] == pytest.approx(np.nanmax(gain), rel=1e-5)
    assert passages["gain"].is_monotonic_decreasing
    starts = passages["corpus"].map(probe.starts).to_numpy()
    tokens = starts + passages["row"].to_numpy() * tiny.n_ctx + passages["place"].to_numpy()
    np.testing.assert_allclose(passages["gain"], gain[tokens], rtol=1e-5)
    for row, token in zip(passages.itertuples(), tokens.tolist(), strict=True):
        assert (row.loss_parent, row.loss_child) == pytest.approx((loss["a"][token], loss["b"][token]), rel=1e-5)
        assert row.loss_sibling == pytest.approx(loss[row.sibling][token], rel=1e-5)
        assert row.loss_sibling <= min(loss["c"][token], loss["d"][token]) + 1e-5
        assert row.text == probe.strings[probe.pieces[token]]
        assert row.document == probe.documents[token]
        fires = bool((token - 1) % 2) and probe.pieces[token - 1] >= 0
        assert list(row.latents) == ([0] if fires else [])
        assert list(row.strengths) == pytest.approx([(1 + (token - 1) % 3) / 3] if fires else [])
    n_there = int(sum(len(latents) for latents in passages["latents"]))
    assert features["latent"].tolist() == [0] * (n_there > 0)
    assert features["n_there"].tolist() == [n_there] * (n_there > 0)


def test_an_edge_without_siblings_has_tables_without_rows(compare):
    passages, features = compare()
    assert (len(passages), len(features)) == (0, 0)
    assert {"gain", "sibling", "text", "latents"} <= set(passages.columns)
    assert {"latent", "verdict", "lift"} <= set(features.columns)


def test_a_child_that_is_its_sibling_learnt_nothing_beside_it(compare):
    compare.folders["d"] = compare.folders["b"]
    passages, features = compare("d")
    assert (len(passages), len(features)) == (0, 0)


def test_losses_of_other_tokens_than_are_annotated_are_refused(compare):
    fewer = annotated({"words": [[None, "one"]], "sums": [[None, "two"]]})
    save_annotations(compare.root / "probe.safetensors", fewer, {})
    with pytest.raises(InputError, match=r"a\.safetensors'.* 4 annotated tokens.*delete it and run again"):
        compare("c")


def test_damaged_losses_are_refused_by_name(compare, probe):
    compare("c")
    path = compare.root / "out" / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(InputError, match=r"a\.safetensors' .*damaged.*delete it and run again"):
        read_losses(str(path), "a", probe)


def test_equal_inputs_give_equal_bytes(compare):
    for folder in ("first", "second"):
        compare("c", folder=folder)
    names = ("a__b.parquet", "a__b.features.parquet", "b.safetensors")
    first, second = ([Path(compare.root, of, name).read_bytes() for name in names] for of in ("first", "second"))
    assert first == second
