"""Writing the page's data of every feature, as the rule does, and reading it for a page in a single file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from saelineage.correlations.matches import Correlation, Matches
from saelineage.errors import InputError
from saelineage.features.shards import shards_by_sae
from saelineage.models.loading import load_model
from saelineage.report.dashboards import Shown
from saelineage.saes.sae import Sae, save_sae
from saelineage.tokens import load_tokenizer
from tests.annotated import annotated, unpacked, write_shards
from write_dashboards import write_dashboards
from write_report import named, read_chunks

HOOKPOINT = "model.layers.0.mlp.down_proj.input"
D_MLP, D_SAE = 48, 130
PROBE = annotated({"words": [[None, "The", " cat", None, "A", " dog"]], "sums": [[None, "1", " +", " 2", None, "3"]]})
"""Tokens 0 to 5 and 6 to 11."""
LATENTS = [{2: float(latent + 1), 8: 1.0} for latent in range(D_SAE - 1)] + [{}]
"""Feature n fires with n + 1 on " cat", and with 1 on " +"; the last never fires."""
OTHERS = [{2: 0.5, 4: 0.25}, {7: 2.0}]


def features() -> pd.DataFrame:
    """Feature 0 of a is found in b as its feature 1."""
    latents, matches = np.arange(D_SAE), np.where(np.arange(D_SAE) == 0, 1, -1)
    r = np.where(matches >= 0, 0.9, np.nan)
    of_a = pd.DataFrame({"model": "a", "latent": latents, "in_a": latents, "r_a": 1.0, "in_b": matches, "r_b": r})
    of_b = pd.DataFrame({"model": "b", "latent": [0, 1], "in_a": [-1, 0], "r_a": [np.nan, 0.9], "in_b": [0, 1]})
    tables = [of_a, of_b.assign(r_b=1.0)]
    return pd.concat(tables, ignore_index=True).assign(sae="seed0", firings=2, density=0.25)


def edge() -> pd.DataFrame:
    """Feature 0 of b is the closest to every feature of a but the first."""
    first = np.arange(D_SAE) == 0
    parent = {"latent": range(D_SAE), "verdict": np.where(first, "persists", "gone"), "match": first.astype(int)}
    child = {"latent": range(2), "verdict": ["new", "inherited"], "match": [5, 0]}
    tables = [
        pd.DataFrame(parent).assign(side="parent", r=np.where(first, 0.9, 0.25)),
        pd.DataFrame(child).assign(side="child", r=[0.25, 0.9]),
    ]
    unknown = {"kind": "", "change": "", "identified": False, "headline": False, "robust": False, "all_agree": False}
    return pd.concat(tables, ignore_index=True).assign(**unknown, r_low=np.nan, r_high=np.nan, importance=0.5)


def labels(*latents: int) -> pd.DataFrame:
    columns = {"latent": np.int64, "kind": str, "label": str, "score": float, "precision": float, "recall": float}
    rows = [(latent, "token", "cat", 0.5, 1.0, 0.25) for latent in latents]
    return pd.DataFrame(rows, columns=list(columns)).astype(columns).assign(n_documents=9)


def write_sae(folder: Path) -> Path:
    """An SAE of random weights."""
    random = torch.Generator().manual_seed(0)
    sae = Sae("topk", D_MLP, D_SAE, 4)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=random))
    save_sae(sae, folder, {})
    return folder


def no_change(names: tuple[str, str], *best: float) -> Correlation:
    """A correlation of two SAEs, with one best r for all features of each side."""
    sides = tuple(np.full((D_SAE, 1), r) for r in best)
    partners = (np.zeros((D_SAE, 1), dtype=np.int64),) * 2
    pearson = Matches(sides, partners, scipy.sparse.csr_array((1, 1)), np.zeros(1, dtype=np.int64), 0)
    return Correlation(names, {}, ((), ()), ((), ()), pearson, {}, ())


@pytest.fixture(scope="module")
def given(tiny, tmp_path_factory) -> dict:
    """The script's arguments for model a."""
    root = tmp_path_factory.mktemp("dashboards")
    paths = [
        *write_shards(root / "features/a/seed0", PROBE, LATENTS),
        *write_shards(root / "features/b/seed0", PROBE, OTHERS),
    ]
    return {
        "model": "a",
        "sae": "seed0",
        "features": features(),
        "edges": {("a", "b"): edge()},
        "shards": shards_by_sae(paths, [("a", "seed0"), ("b", "seed0")]),
        "annotations": PROBE,
        "labels": labels(3),
        "explanations": None,
        "no_change_correlations": [
            no_change(("a.seed0", "a.seed1"), 0.25, 0.5),
            no_change(("a.seed2", "a.seed0"), 0.5, 0.75),
        ],
        "model_folder": tiny.models["a"],
        "sae_folder": write_sae(root / "saes/a/seed0"),
        "hookpoint": "mlp",
        "place": HOOKPOINT,
        "shown": Shown(1, ()),
    }


@pytest.fixture(scope="module")
def folder(given, tmp_path_factory) -> Path:
    """The folder that the script writes for model a; read only."""
    folder = tmp_path_factory.mktemp("written") / "data" / "a"
    write_dashboards(**given, folder=folder)
    return folder


def read(path: Path) -> dict:
    """The value in a file that the page loads; its name must be the file's."""
    name, value = unpacked(path.read_text(encoding="utf-8"))
    assert name == f"mlp/{path.parent.name}/{path.stem}"
    return value


def test_features_are_in_chunks_named_by_their_first(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["000000.js", "000128.js", "table.js"]
    first, second = (read(folder / name)["features"] for name in ("000000.js", "000128.js"))
    assert (len(first), len(second)) == (128, 2)
    # Feature 128 fires with 129 on " cat", the second token of its passage; 129 never fires.
    assert second[0]["activations"] == [[[1], [129.0]], [[1], [1.0]]]
    assert second[1]["activations"] == []


def test_the_table_has_labels_and_the_mean_best_r_of_the_unchanged_model(folder):
    table = read(folder / "table.js")
    assert (table["model"], table["sae"], table["n"]) == ("a", "seed0", D_SAE)
    assert [latent for latent, label in enumerate(table["label"]) if label is not None] == [3]
    # The SAE is side a of the first correlation and side b of the second: (0.25 + 0.75) / 2.
    assert table["no_change"] == [0.5] * D_SAE


def test_the_child_s_features_are_shown_on_the_same_text(folder):
    chunk = read(folder / "000000.js")
    first, second = chunk["features"][:2]
    assert [[chunk["strings"][token] for token in passage["tokens"]] for passage in first["passages"]] == [
        *(["The", " cat"], ["1", " +", " 2"])
    ]
    (found,), (closest,) = first["others"], second["others"]
    assert (found["latent"], found["found"], found["largest"]) == (1, True, 2.0)
    assert found["activations"] == [[[], []], [[0], [2.0]]]
    # 0.25 at token 4 is in a document that is not shown.
    assert (closest["latent"], closest["found"], closest["r"]) == (0, False, 0.25)
    assert closest["activations"] == [[[1], [0.5]], [[], []]]


def test_effects_are_those_of_the_model_s_own_weights(folder, tiny):
    model, tokenizer = load_model(tiny.models["a"]), load_tokenizer(tiny.models["a"])
    decoder = torch.randn(D_SAE, D_MLP, generator=torch.Generator().manual_seed(0))
    for latent in (0, D_SAE - 1):
        with torch.no_grad():
            residual = model.model.layers[0].mlp.down_proj.weight.float() @ decoder[latent]
            logits = model.lm_head.weight.float() @ (residual * model.model.norm.weight.float())
        chunk, place = divmod(latent, 128)
        effects = read(folder / f"{128 * chunk:06d}.js")["features"][place]
        expected = (logits - logits.mean()).sort(descending=True)
        assert [effect for _, effect in effects["raised"]] == pytest.approx(expected.values[:8].tolist(), rel=6e-3)
        lowest = expected.values.flip(0)[:8].tolist()
        assert [effect for _, effect in effects["lowered"]] == pytest.approx(lowest, rel=6e-3)
        ids = expected.indices[:8].tolist()
        texts = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
        assert [text for text, _ in effects["raised"]] == [
            tokenizer.id_to_token(token) if "\ufffd" in text else text for token, text in zip(ids, texts, strict=True)
        ]


def test_without_a_linear_path_to_the_logits_no_effects_are_shown(given, tmp_path):
    write_dashboards(**given | {"place": "model.layers.0.self_attn.o_proj.input"}, folder=tmp_path / "a")
    features = read(tmp_path / "a/000000.js")["features"]
    assert len(features) == 128
    assert not any("raised" in feature for feature in features)


def test_a_model_without_labels_controls_relations_and_firings_has_all_its_files(given, tmp_path):
    of_b = given["shards"]["b", "seed0"]
    alone = features()[lambda table: table["model"] == "a"].assign(in_b=-1, r_b=np.nan)
    shards = {("a", "seed0"): write_shards(tmp_path / "features/a/seed0", PROBE, [{}] * D_SAE), ("b", "seed0"): of_b}
    nothing = {"features": alone, "edges": {}, "shards": shards, "labels": labels(), "no_change_correlations": []}
    explanations = pd.DataFrame({"latent": [7], "explanation": ["names of </script>"], "score": [0.5]})
    write_dashboards(**given | nothing | {"explanations": explanations}, folder=tmp_path / "a")
    table = read(tmp_path / "a/table.js")
    assert (table["edges"], table["labels"], table["no_change"]) == ([], [], [None] * D_SAE)
    assert table["largest"] == [0.0] * D_SAE
    assert table["explained"] == [[7, "names of </script>", 0.5]]
    assert all(feature["others"] == feature["passages"] == [] for feature in read(tmp_path / "a/000128.js")["features"])


def test_a_model_read_on_other_tokens_is_refused(given, tmp_path):
    shards = given["shards"] | {("b", "seed0"): given["shards"]["b", "seed0"][:1]}
    with pytest.raises(InputError, match=r"a\.seed0 and b\.seed0"):
        write_dashboards(**given | {"shards": shards}, folder=tmp_path / "a")


def test_equal_inputs_give_equal_bytes(given, folder, tmp_path):
    write_dashboards(**given, folder=tmp_path / "a")
    for path in folder.iterdir():
        assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes()


def test_a_page_in_a_single_file_holds_the_same_data(folder):
    chunks = read_chunks([folder])
    assert sorted(chunks) == ["mlp/a/000000", "mlp/a/000128", "mlp/a/table"]
    for name, data in chunks.items():
        assert f'saelineage.receive("{name}","{data}")\n' == (folder / f"{name.removeprefix('mlp/a/')}.js").read_text(
            encoding="utf-8"
        )
    assert read_chunks([]) == {}


def test_files_are_named_and_a_run_that_was_not_asked_for_them_has_none():
    saes = [["a", "seed0"], ["a", "from_base@0"]]
    assert named(saes, ["x.parquet", "y.parquet"]) == {("a", "seed0"): "x.parquet", ("a", "from_base@0"): "y.parquet"}
    assert named(["base__lua"], []) == {}
    with pytest.raises(ValueError, match="shorter"):
        named(["base__lua", "base__stories"], ["x.parquet"])


@pytest.mark.parametrize(
    ("sae_id", "address"),
    [
        ("gpt2-small/8-res-jb", "https://www.neuronpedia.org/gpt2-small/8-res-jb"),
        ('x/"><script>alert(1)</script>', None),
        ("javascript:alert(1)//x/y", None),
        (["gpt2-small/8-res-jb"], None),
        (None, None),
    ],
)
def test_a_published_sae_s_table_holds_its_address_and_no_hostile_text(
    given, tmp_path, sae_id: object, address: object
):
    sae = Sae("topk", D_MLP, D_SAE, 4)
    save_sae(sae, tmp_path / "sae", {"neuronpedia_id": sae_id})
    write_dashboards(**given | {"sae_folder": tmp_path / "sae"}, folder=tmp_path / "a")
    assert read(tmp_path / "a" / "table.js")["published"] == address
