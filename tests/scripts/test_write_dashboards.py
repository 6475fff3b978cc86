"""Writing what a page shows of every feature, as the rule does, and reading it for a page of a single file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from saelineage.correlations.matches import save_correlation
from saelineage.correlations.pearson import correlate
from saelineage.errors import InputError
from saelineage.features.shards import shards_by_sae
from saelineage.models.loading import load_model
from saelineage.report.dashboards import Shown
from saelineage.saes.sae import Sae, save_sae
from saelineage.tokens import load_tokenizer
from tests.annotated import annotated, unpacked, write_shards
from write_dashboards import write_dashboards
from write_report import read_by_sae, read_chunks

HOOKPOINT = "model.layers.0.mlp.down_proj.input"
D_MLP, D_SAE = 48, 130
PROBE = annotated({"words": [[None, "The", " cat", None, "A", " dog"]], "sums": [[None, "1", " +", " 2", None, "3"]]})
"""Tokens 0 to 5 and 6 to 11."""
LATENTS = [{2: float(latent + 1), 8: 1.0} for latent in range(D_SAE - 1)] + [{}]
"""Feature n fires with n + 1 on " cat", and with 1 on " +"; the last one never."""
OTHERS = [{2: 0.5, 4: 0.25}, {7: 2.0}]


def features() -> pd.DataFrame:
    """Feature 0 of a is found in b as its feature 1."""
    here, there = np.arange(D_SAE), np.where(np.arange(D_SAE) == 0, 1, -1)
    own = {"latent": here, "in_a": here, "r_a": 1.0, "in_b": there, "r_b": np.where(there >= 0, 0.9, np.nan)}
    other = {"latent": [0, 1], "in_a": [-1, 0], "r_a": [np.nan, 0.9], "in_b": [0, 1], "r_b": 1.0}
    tables = [pd.DataFrame(one).assign(model=name) for name, one in (("a", own), ("b", other))]
    return pd.concat(tables, ignore_index=True).assign(sae="seed0", firings=2, density=0.25)


def edge() -> pd.DataFrame:
    """The closest of every other feature of a is feature 0 of b."""
    first = np.arange(D_SAE) == 0
    parent = {"latent": range(D_SAE), "verdict": np.where(first, "persists", "disappears"), "match": first.astype(int)}
    child = {"latent": range(2), "verdict": ["emerges", "inherited"], "match": [5, 0]}
    tables = [
        pd.DataFrame(parent).assign(side="parent", r=np.where(first, 0.9, 0.25)),
        pd.DataFrame(child).assign(side="child", r=[0.25, 0.9]),
    ]
    return pd.concat(tables, ignore_index=True).assign(kind="", r_low=np.nan, r_high=np.nan)


def labels(*latents: int) -> pd.DataFrame:
    columns = {"latent": np.int64, "kind": str, "label": str, "score": float, "precision": float, "recall": float}
    return pd.DataFrame([(latent, "token", "cat", 0.5, 1.0, 0.25) for latent in latents], columns=columns).astype(
        columns
    )


def write_sae(folder: Path) -> Path:
    """An SAE of random weights."""
    random = torch.Generator().manual_seed(0)
    sae = Sae("topk", D_MLP, D_SAE, 4)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=random))
    save_sae(sae, folder, {})
    return folder


def write_floor(path: Path, names: tuple[str, str], seed: int) -> str:
    """The correlation of random activations of two SAEs."""
    random = np.random.default_rng(seed)
    sides = [np.maximum(random.normal(size=(40, D_SAE)), 0) for _ in range(2)]
    found = correlate(*sides, min_firings=1, top_matches=2, n_bins=20, progress=False)
    save_correlation(found._replace(names=names), path)
    return str(path)


@pytest.fixture(scope="module")
def given(tiny, tmp_path_factory) -> dict:
    """What the script is given for model a."""
    root = tmp_path_factory.mktemp("dashboards")
    paths = [
        *write_shards(root / "features/a/seed0", PROBE, LATENTS),
        *write_shards(root / "features/b/seed0", PROBE, OTHERS),
    ]
    return {
        "model": "a",
        "features": features(),
        "edges": {("a", "b"): edge()},
        "shards": shards_by_sae(paths),
        "annotations": PROBE,
        "labels": labels(3),
        "explanations": None,
        "floor_correlations": [
            write_floor(root / "first.safetensors", ("a.seed0", "a.seed1"), 0),
            write_floor(root / "second.safetensors", ("a.seed2", "a.seed0"), 1),
        ],
        "model_folder": tiny.models["a"],
        "sae_folder": write_sae(root / "saes/a/seed0"),
        "hookpoint": HOOKPOINT,
        "shown": Shown(1, ()),
    }


@pytest.fixture(scope="module")
def folder(given, tmp_path_factory) -> Path:
    """What the script writes for model a; to be read only."""
    folder = tmp_path_factory.mktemp("written") / "data" / "a"
    write_dashboards(**given, folder=folder)
    return folder


def read(path: Path) -> dict:
    """A file that the page loads, under the name that it asks for."""
    name, value = unpacked(path.read_text(encoding="utf-8"))
    assert name == f"{path.parent.name}/{path.stem}"
    return value


def test_features_lie_in_chunks_named_by_their_first(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["000000.js", "000128.js", "table.js"]
    first, second = (read(folder / name)["features"] for name in ("000000.js", "000128.js"))
    assert (len(first), len(second)) == (128, 2)
    # Feature 128 fires with 129 on " cat", the second token of its passage; 129 never fires.
    assert second[0]["activations"] == [[[1], [129.0]], [[1], [1.0]]]
    assert second[1]["activations"] == []


def test_the_table_has_labels_and_the_mean_best_r_where_nothing_changed(given, folder):
    table = read(folder / "table.js")
    assert (table["model"], table["sae"], table["n"]) == ("a", "seed0", D_SAE)
    assert [latent for latent, label in enumerate(table["label"]) if label is not None] == [3]
    # The SAE is the first of one pair and the second of the other.
    pairs = [(0, 0), (1, 1)]
    best = []
    for seed, side in pairs:
        random = np.random.default_rng(seed)
        one, other = (np.maximum(random.normal(size=(40, D_SAE)), 0) for _ in range(2))
        r = np.corrcoef(one.T, other.T)[:D_SAE, D_SAE:]
        best.append(r.max(axis=1 - side))
    np.testing.assert_allclose(table["floor"], np.mean(best, axis=0), rtol=6e-3)


def test_the_child_s_features_read_the_same_text(folder):
    chunk = read(folder / "000000.js")
    first, second = chunk["features"][:2]
    assert [[chunk["strings"][token] for token in passage["tokens"]] for passage in first["passages"]] == [
        *(["The", " cat"], ["1", " +", " 2"])
    ]
    (found,), (closest,) = first["others"], second["others"]
    assert (found["latent"], found["found"], found["largest"]) == (1, True, 2.0)
    assert found["activations"] == [[[], []], [[0], [2.0]]]
    # 0.25 at token 4 lies in a document that is not shown.
    assert (closest["latent"], closest["found"], closest["r"]) == (0, False, 0.25)
    assert closest["activations"] == [[[1], [0.5]], [[], []]]


@pytest.mark.parametrize("latent", [0, 129])
def test_effects_are_those_of_the_model_s_own_weights(given, folder, tiny, latent):
    model, tokenizer = load_model(tiny.models["a"]), load_tokenizer(tiny.models["a"])
    direction = torch.randn(D_SAE, D_MLP, generator=torch.Generator().manual_seed(0))[latent]
    with torch.no_grad():
        residual = model.model.layers[0].mlp.down_proj.weight.float() @ direction
        logits = model.lm_head.weight.float() @ (residual * model.model.norm.weight.float())
    chunk, place = divmod(latent, 128)
    own = read(folder / f"{128 * chunk:06d}.js")["features"][place]
    expected = (logits - logits.mean()).sort(descending=True)
    assert [effect for _, effect in own["raised"]] == pytest.approx(expected.values[:8].tolist(), rel=6e-3)
    assert [effect for _, effect in own["lowered"]] == pytest.approx(expected.values.flip(0)[:8].tolist(), rel=6e-3)
    texts = [tokenizer.decode([token], skip_special_tokens=False) for token in expected.indices[:8].tolist()]
    names = [tokenizer.id_to_token(token) for token in expected.indices[:8].tolist()]
    assert [text for text, _ in own["raised"]] == [
        name if "\ufffd" in text else text for text, name in zip(texts, names, strict=True)
    ]


def test_without_a_linear_path_to_the_logits_no_effects_are_shown(given, tmp_path):
    write_dashboards(**given | {"hookpoint": "model.layers.0.self_attn.o_proj.input"}, folder=tmp_path / "a")
    features = read(tmp_path / "a/000000.js")["features"]
    assert len(features) == 128
    assert not any("raised" in feature for feature in features)


def test_a_model_without_labels_floors_relations_and_firings_has_all_its_files(given, tmp_path):
    probe = given["shards"]["b", "seed0"]
    alone = features()[lambda table: table["model"] == "a"].assign(in_b=-1, r_b=np.nan)
    shards = {("a", "seed0"): write_shards(tmp_path / "features/a/seed0", PROBE, [{}] * D_SAE), ("b", "seed0"): probe}
    nothing = {"features": alone, "edges": {}, "shards": shards, "labels": labels(), "floor_correlations": []}
    write_dashboards(**given | nothing, folder=tmp_path / "a")
    table = read(tmp_path / "a/table.js")
    assert (table["edges"], table["labels"], table["floor"]) == ([], [], [None] * D_SAE)
    assert table["largest"] == [0.0] * D_SAE
    assert all(feature["others"] == feature["passages"] == [] for feature in read(tmp_path / "a/000128.js")["features"])


def test_explanations_stand_in_the_table(given, tmp_path):
    told = pd.DataFrame({"latent": [7], "explanation": ["names of </script>"], "score": [0.5]})
    write_dashboards(**given | {"explanations": told}, folder=tmp_path / "a")
    assert read(tmp_path / "a/table.js")["explained"] == [[7, "names of </script>", 0.5]]


def test_a_model_read_on_other_tokens_is_refused(given, tmp_path):
    shards = given["shards"] | {("b", "seed0"): given["shards"]["b", "seed0"][:1]}
    with pytest.raises(InputError, match=r"features of a\.seed0 and b\.seed0 must be of the same tokens"):
        write_dashboards(**given | {"shards": shards}, folder=tmp_path / "a")


def test_equal_inputs_give_equal_bytes(given, folder, tmp_path):
    write_dashboards(**given, folder=tmp_path / "a")
    for path in folder.iterdir():
        assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes()


def test_a_page_of_a_single_file_holds_the_same_data(folder):
    chunks = read_chunks([folder])
    assert sorted(chunks) == ["a/000000", "a/000128", "a/table"]
    for name, data in chunks.items():
        assert f'saelineage.receive("{name}","{data}")\n' == (folder.parent / f"{name}.js").read_text(encoding="utf-8")
    assert read_chunks([]) == {}


def test_tables_of_labels_and_of_explanations_are_told_by_model_and_sae(tmp_path):
    folder = tmp_path / "labels" / "a"
    folder.mkdir(parents=True)
    for name, score in (("from_base@0.parquet", 0.5), ("seed0.explanations.parquet", 0.25)):
        pd.DataFrame({"score": [score]}).to_parquet(folder / name)
    found = read_by_sae([str(folder / "from_base@0.parquet"), str(folder / "seed0.explanations.parquet")])
    assert {key: table["score"].tolist() for key, table in found.items()} == {
        ("a", "from_base@0"): [0.5],
        ("a", "seed0"): [0.25],
    }
