"""The script functions from models to lineage, called one after the other as the rules call them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from safetensors.torch import load_file

import count_followed
from collect_examples import collect_examples
from correlate_features import correlate_features
from dump_activations import dump_activations
from encode_features import encode_features
from finetune_model import finetune_model
from follow_features import Parent, follow_features
from import_model import import_model
from measure_model import measure_model
from merge_models import merge_models
from pretrain_model import pretrain_model
from reinitialise_model import reinitialise_model
from saelineage.activations import ActivationShard
from saelineage.correlations.bootstrap import load_replicates
from saelineage.correlations.few_documents import load_rests_on
from saelineage.correlations.matches import load_correlation
from saelineage.correlations.partners import Partner, partners_of
from saelineage.correlations.pearson import correlate
from saelineage.errors import InputError
from saelineage.features.encoding import CHUNK_TOKENS, encode
from saelineage.features.shards import FeatureShard, save_shard, shards_by_sae
from saelineage.files.tensors import group_names
from saelineage.foreign.saelens_names import LISTED
from saelineage.labels.annotations import numbers_of
from saelineage.lineage.verdicts import Rules
from saelineage.plan.paths import PAGE_SOURCES
from saelineage.plan.plan import Plan
from saelineage.saes.sae import WEIGHTS_FILE, load_sae
from saelineage.tokens import read_token_rows
from saelineage.transfers import CPU
from sweep_merge import sweep_merge
from tests.annotated import annotated
from tests.merges import settings
from tests.sae_settings import SAE_SETTINGS
from tests.unit.plan.lineages import MERGE
from tests.unit.report.test_page import TEMPLATES, results
from trace_lineage import loader, trace_lineage
from train_sae import train_and_save
from write_dense_correlation import write_dense_correlation
from write_report import read_sources, write_report

HOOKPOINT = "model.layers.0.mlp.down_proj.input"
D_MLP = 48
CORPORA = ("words", "sums")
MODELS = ("base", "lua", "stories", "merged")
PARENTS = ("lua", "stories")
SHARDS = ("00000-of-00002", "00001-of-00002")
EDGES = (("base", "lua"), ("base", "stories"), ("lua", "merged"), ("stories", "merged"))
TRAINING = SAE_SETTINGS | {
    "expansion_factor": 2.0,
    "k": 4,
    "max_norm_ratio": 10.0,
    "checkpoint_steps": 10,
    "corpora": list(CORPORA),
}


IN_SAELENS = {
    "model_name": "",
    "model_class_name": "HookedTransformer",
    "model_from_pretrained_kwargs": {},
    "hook_name": "blocks.0.mlp.hook_post",
    "hf_hook_name": HOOKPOINT,
    "hook_name_note": LISTED,
    "context_size": 16,
    "prepend_bos": True,
    "exclude_special_tokens": [0, 1],
}
"""The metadata of every SAE, by which SAELens finds its input."""


def make_models(tiny, root: Path) -> None:
    """A diamond: base, two fine-tunes, their merge; and a model from a folder."""
    training = {
        "n_tokens": 30 * 4 * tiny.n_ctx,
        "epochs": None,
        "batch_rows": 4,
        "accumulate": 1,
        "gradient_checkpointing": False,
        "precision": "float32",
        "learning_rate": 0.01,
        "warmup_steps": 0,
        "scheduler": "cosine",
        "weight_decay": 0.1,
        "adam_betas": [0.9, 0.999],
        "max_grad_norm": 1.0,
        "seed": 0,
        "save_steps": 500,
        "bf16": False,
    }
    tokens = {corpus: str(tiny.tokens[corpus]["train"]) for corpus in CORPORA}
    pretrain_model(
        settings=tiny.settings | training | {"corpora": {"words": 0.5, "sums": 0.5}},
        n_ctx=tiny.n_ctx,
        paths_to_tokens=tokens,
        tokenizer_folder=tiny.tokenizer,
        folder=root / "models/base",
        checkpoints=root / "checkpoints/base",
        gpus=0,
    )
    for model, corpus in (("lua", "sums"), ("stories", "words")):
        finetune_model(
            settings=training | {"parent": "base", "corpora": {corpus: 1.0}},
            paths_to_tokens={corpus: tokens[corpus]},
            parent_folder=root / "models/base",
            folder=root / "models" / model,
            checkpoints=root / "checkpoints" / model,
            gpus=0,
        )
    merge_models(settings(PARENTS, t=0.58), [root / "models" / name for name in PARENTS], None, root / "models/merged")
    import_model({"folder": str(tiny.models["a"])}, "imported", 16, tiny.tokenizer, root / "models/imported")


def measure_models(tiny, root: Path) -> None:
    """Metrics of all models and of their SAEs, and a sweep of the merge."""
    paths = {
        split: {corpus: str(tiny.tokens[corpus][split]) for corpus in CORPORA} for split in ("train", "validation")
    }
    for model in (*MODELS, "imported"):
        saes = ("seed0", "seed1") if model in MODELS else ()
        measure_model(
            name=model,
            folder=root / "models" / model,
            sae_folders={"mlp": {sae: root / "saes" / model / sae for sae in saes}},
            hookpoints={"mlp": HOOKPOINT},
            paths_to_train=paths["train"],
            paths_to_validation=paths["validation"],
            batch_rows=8,
            path_to_metrics=str(root / "models" / model / "metrics.json"),
            paths_to_sae_metrics={"mlp": str(root / "saes" / model / "metrics.json")},
            device=torch.device("cpu"),
        )
    sweep_merge(
        merges=[settings(PARENTS, t=t) for t in (0.0, 0.58, 1.0)],
        over=["t"],
        parent_folders=[root / "models" / name for name in PARENTS],
        base_folder=None,
        beside=[root / "models" / name for name in (*PARENTS, "base")],
        paths_to_validation=paths["validation"],
        batch_rows=8,
        path_to_sweep=str(root / "sweep.parquet"),
        gpus=0,
    )


def dump(tiny, root: Path, model: str, split: str) -> None:
    """Both shards of a split's activations."""
    for shard in SHARDS:
        dump_activations(
            name=model,
            folder=root / "models" / model,
            paths_to_tokens=[str(tiny.tokens[corpus][split]) for corpus in CORPORA],
            paths_to_shards=[shard_path(root / "activations" / model, corpus, split, shard) for corpus in CORPORA],
            shard=shard,
            hookpoints=[HOOKPOINT],
            dtype="float16",
            max_tokens=None,
            batch_rows=8,
            gpus=0,
        )


def shard_path(*parts: object) -> str:
    return str(Path(*map(str, parts[:-1]), f"shard-{parts[-1]}.safetensors"))


def make_saes(tiny, root: Path, sae_settings: dict) -> None:
    """Two SAEs of every model, and their features."""
    for number, model in enumerate(MODELS):
        for split in ("train", "probe"):
            dump(tiny, root, model, split)
        train_and_save(
            model=model,
            settings={
                f"seed{seed}": sae_settings | {"n_tokens": 8192, "seed": 10 * number + seed} for seed in range(2)
            },
            paths_to_shards=training_shards(root, model),
            folder=root / "saes" / model,
            checkpoint=root / "checkpoints" / model / "state.safetensors",
            events=None,
            gpus=0,
        )
        folders = {sae: root / "saes" / model / sae for sae in ("seed0", "seed1")}
        for sae, folder in folders.items():
            for shard in SHARDS:
                probes = [shard_path(root / "activations" / model, corpus, "probe", shard) for corpus in CORPORA]
                encode_features(model, sae, folder, shard_pairs(probes, feature_paths(root, f"{model}.{sae}", shard)))
                rotated = feature_paths(root, f"{model}.{sae}_rotated", shard)
                encode_features(model, sae, folder, shard_pairs(probes, rotated), rotation_seed=0)


def shard_pairs(activations: list[str], features: list[str]) -> dict[str, tuple[str, str]]:
    return dict(zip(CORPORA, zip(activations, features, strict=True), strict=True))


def training_shards(root: Path, model: str) -> list[str]:
    return [shard_path(root / "activations" / model, corpus, "train", shard) for corpus in CORPORA for shard in SHARDS]


def feature_paths(root: Path, sae: str, shard: str) -> list[str]:
    return [shard_path(root / "features", *sae.split("."), corpus, shard) for corpus in CORPORA]


CONFIG = {
    "run": "tiny",
    "corpora": {key: {} for key in CORPORA},
    "models": {
        "base": {"pretrain": {"corpora": {}}},
        "lua": {"finetune": {"parent": "base", "corpora": {}}},
        "stories": {"finetune": {"parent": "base", "corpora": {}}},
        "merged": {"merge": MERGE},
    },
    "activations": {"hookpoints": {"mlp": HOOKPOINT}},
    "saes": {
        **{"seeds": [0, 1], "anchored": {}, "one_pass": False, "models": {}, "shuffle_seed": None},
        "hookpoints": {},
    },
    "correlations": {"random_controls": ["shifted", "rotated"]},
    "lineage": {
        "instruments": ["independent"],
        "budgets": [],
        "controls": {},
        "reset_control": False,
        "second_anchor": False,
        "stages": False,
    },
}


COMPARISONS, TRACED = Plan(CONFIG).comparisons, Plan(CONFIG).traced_saes
RULES = Rules(threshold=0.8, drifted_from=0.5, readout_from=0.8, relocated_below=0.5, identified_from=1.0)
SETTINGS = {"min_firings": 5, "top_matches": 4, "keep_above": 0.3, "n_bins": 20, "block_features": 30}


def partners(root: Path, a: str, shards: tuple[str, ...]) -> list[Partner]:
    """The partners of an SAE, with some shards of the probe."""
    shifts = {str(b): b.sae.endswith("_shifted") for b in COMPARISONS.partners[a]}
    saes = [a, *(name.removesuffix("_shifted") for name in shifts)]
    paths = [[path for shard in shards for path in feature_paths(root, sae, shard)] for sae in saes]
    return partners_of(paths[0], [path for of_partner in paths[1:] for path in of_partner], shifts)


def compare(tiny, root: Path) -> None:
    """All correlations that the plan asks for, and the lineage."""
    for a in COMPARISONS.partners:
        correlate_features(
            partners=partners(root, a, SHARDS),
            paths_to_probe={corpus: str(tiny.tokens[corpus]["probe"]) for corpus in CORPORA},
            settings=SETTINGS,
            resampled=[str(b) for b in COMPARISONS.partners[a] if f"{a}__{b}" in COMPARISONS.resampled],
            draws={"n_replicates": 20, "seed": 0},
            threads=2,
            path_to_correlations=str(correlations_of(root, a)),
            path_to_replicates=str(correlations_of(root, a).with_name("replicates.safetensors")),
        )
    trace(root, COMPARISONS.as_data(), root / "lineage")


def trace(root: Path, plan: dict, folder: Path) -> None:
    """The lineage of a plan."""
    correlations = {a: correlations_of(root, a) for a in COMPARISONS.partners}
    replicates = {a: str(path.with_name("replicates.safetensors")) for a, path in correlations.items()}
    trace_lineage(
        run="tiny",
        plan=plan,
        load=loader({a: str(path) for a, path in correlations.items()}, replicates, {}),
        rules=RULES,
        models=list(MODELS),
        paths_to_readouts={},
        paths_to_weights={str(sae): str(root / "saes" / sae.model / sae.sae / WEIGHTS_FILE) for sae in TRACED},
        paths_to_crosscoders={},
        folder=folder,
    )


def correlations_of(root: Path, a: str) -> Path:
    return root / "correlations" / a / "correlations.safetensors"


@pytest.fixture(scope="module")
def root(tiny, tmp_path_factory) -> Path:
    """Everything made once."""
    root = tmp_path_factory.mktemp("run")
    make_models(tiny, root)
    make_saes(tiny, root, TRAINING)
    measure_models(tiny, root)
    compare(tiny, root)
    return root


def test_lost_features_are_looked_for_in_revived_models_and_in_their_controls(root, tmp_path):
    # Models that are there stand in for those of a revived edge. In the child itself nothing that it lost is found.
    pairs = {"revived": "stories.seed0", "continued": "lua.seed0", "unchanged": "lua.seed1"}
    searched = {kind: f"base.seed0__{sae}" for kind, sae in pairs.items()}
    plan = COMPARISONS.as_data() | {"revivals": {"base__lua": {"back": searched}}}
    trace(root, plan, tmp_path)
    rows = pd.DataFrame(json.loads((tmp_path / "summary.json").read_text())["revivals"])
    assert (rows[["parent", "child", "model"]] == ["base", "lua", "back"]).all(axis=None)
    assert rows.groupby("kind").size().to_dict() == dict.fromkeys(pairs, 3)
    gone = rows[rows["group"] == "gone"].set_index("kind")
    assert gone.loc["continued", ["returned", "kept"]].tolist() == [0.0, 1.0]
    assert gone.loc["revived", "returned"] * gone.loc["revived", "returned_n"] == gone.loc["revived", "beyond"]
    table = pd.read_parquet(tmp_path / "edges/base__lua.parquet")
    returning = table[table["returns_in"] == "back"]
    assert len(returning)
    assert set(returning["side"]) <= {"parent"}
    listed = rows.loc[rows["kind"] == "revived", "latents"]
    assert set(returning["latent"]) == {latent for latents in listed for latent in latents}
    assert "returns_in" not in pd.read_parquet(root / "lineage/edges/base__lua.parquet")


@pytest.mark.parametrize("model", ["base", "lua", "merged", "imported"])
def test_a_model_s_folder_loads_with_transformers(tiny, root, model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = root / "models" / model
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("local sum = 1 + 2", return_tensors="pt").input_ids
    assert ids[0, 0] == loaded.config.bos_token_id
    assert loaded(input_ids=ids).logits.shape == (*ids.shape, tiny.d_vocab)
    with torch.no_grad():
        text = tokenizer.decode(loaded.generate(input_ids=ids, max_new_tokens=2, do_sample=False, pad_token_id=2)[0])
    assert "local sum = 1 + 2" in text


def test_every_model_s_metrics_have_their_keys(root):
    for model in (*MODELS, "imported"):
        metrics = json.loads((root / "models" / model / "metrics.json").read_text())
        assert metrics.keys() == {"model", "n_parameters", "weights_sha256", "corpora", "vocabulary"}
        assert metrics["model"] == model
        assert metrics["corpora"].keys() == set(CORPORA)
        for of_corpus in metrics["corpora"].values():
            assert of_corpus.keys() == {"loss", "accuracy", "n_predictions", "unigram_loss"}


def test_training_helps_on_what_was_trained_on(root):
    losses = {}
    for model in (*MODELS, "imported"):
        metrics = json.loads((root / "models" / model / "metrics.json").read_text())
        losses[model] = {corpus: figures["loss"] for corpus, figures in metrics["corpora"].items()}
        unigram = {corpus: figures["unigram_loss"] for corpus, figures in metrics["corpora"].items()}
    assert all(losses["base"][corpus] < unigram[corpus] < losses["imported"][corpus] for corpus in CORPORA)
    assert losses["lua"]["sums"] < losses["base"]["sums"]
    assert losses["stories"]["words"] < losses["base"]["words"]


def test_an_imported_model_is_the_same_model(tiny, root):
    imported = load_file(root / "models/imported/model.safetensors")
    original = load_file(tiny.models["a"] / "model.safetensors")
    assert imported.keys() == original.keys()
    assert all(torch.equal(imported[name], original[name]) for name in original)


def test_a_reinitialised_model_has_the_other_s_shape_and_tokenizer_and_none_of_its_weights(root, tmp_path):
    base = root / "models/base"
    reinitialise_model(base, 3, tmp_path / "random")
    weights, others = (load_file(folder / "model.safetensors") for folder in (tmp_path / "random", base))
    assert {name: tensor.shape for name, tensor in weights.items()} == {name: t.shape for name, t in others.items()}
    assert not torch.equal(
        weights["model.layers.0.mlp.down_proj.weight"], others["model.layers.0.mlp.down_proj.weight"]
    )
    assert (tmp_path / "random/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_the_sweep_s_ends_are_the_parents_and_the_chosen_point_is_the_merge(root):
    sweep = pd.read_parquet(root / "sweep.parquet")
    assert sweep.columns.tolist() == [
        *("model", "t", "corpus", "loss", "accuracy", "n_predictions", "barrier", "is_best")
    ]
    assert len(sweep) == 12
    for t, model in ((0.0, "lua"), (0.58, "merged"), (1.0, "stories"), (None, "base"), (None, "lua")):
        metrics = json.loads((root / "models" / model / "metrics.json").read_text())["corpora"]
        rows = sweep[sweep["model"] == model if t is None else sweep["t"] == t].set_index("corpus")
        for corpus in CORPORA:
            assert rows.loc[corpus, "loss"] == pytest.approx(metrics[corpus]["loss"], abs=1e-6)
            assert rows.loc[corpus, "accuracy"] == metrics[corpus]["accuracy"]


def test_features_followed_through_a_sweep_are_those_of_each_parent_at_its_end(tiny, root, tmp_path):
    features = {
        name: [path for shard in SHARDS for path in feature_paths(root, f"{name}.seed0", shard)] for name in PARENTS
    }
    follow_features(
        merges=[settings(PARENTS, t=t) for t in (0.0, 0.58, 1.0)],
        over=["t"],
        parent_folders=[root / "models" / name for name in PARENTS],
        base_folder=None,
        parents={name: Parent(root / "saes" / name / "seed0", features[name]) for name in PARENTS},
        paths_to_probe={corpus: str(tiny.tokens[corpus]["probe"]) for corpus in CORPORA},
        hookpoint=HOOKPOINT,
        dtype="float16",
        batch_rows=8,
        path_to_features=str(tmp_path / "features.parquet"),
        gpus=0,
    )
    edges = {name: str(root / "lineage/edges" / f"{name}__merged.parquet") for name in PARENTS}
    origins = {name: {"base": str(root / "lineage/edges" / f"base__{name}.parquet")} for name in PARENTS}
    counted = {name: count_followed.Parent(features[name], edges[name], None, origins[name]) for name in PARENTS}
    paths = [str(tmp_path / f"{name}.parquet") for name in ("features", "curves", "found")]
    count_followed.count_followed(counted, ["t"], 0.8, *paths)
    table, found = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("features", "found"))
    for name, own, other in (("lua", 0.0, 1.0), ("stories", 1.0, 0.0)):
        of_parent = table[table["model"] == name]
        r = {t: rows["r"].to_numpy() for t, rows in of_parent.groupby("t")}
        assert np.nanmin(r[own]) == pytest.approx(1, abs=1e-9)
        assert np.nanmean(r[other]) < np.nanmean(r[0.58]) < 1
        fires = of_parent.loc[of_parent["t"] == own, "r"].notna().to_numpy()
        ends = found.loc[found["model"] == name, ["found_from", "found_to"]].to_numpy()
        assert bool((np.abs(ends[fires] - own) < 1e-9).any(axis=1).all())
    curves = pd.read_parquet(tmp_path / "curves.parquet")
    at_end = curves[(curves["model"] == "lua") & (curves["t"] == 0) & (curves["kind"] == "all")].iloc[0]
    edge = pd.read_parquet(edges["lua"])
    testable = (edge["side"] == "parent") & (edge["verdict"] != "untestable")
    assert (at_end["share"], at_end["share_n"]) == (1, int(testable.sum()))
    origin = pd.read_parquet(origins["lua"]["base"])
    new = (origin["side"] == "child") & (origin["verdict"] == "new")
    of_new = curves[(curves["model"] == "lua") & (curves["t"] == 0) & (curves["kind"] == "since base")]
    assert of_new.set_index("group").loc["new", ["share", "share_n"]].tolist() == [1, int(new.sum())]


def test_a_finetune_on_ids_that_its_parent_lacks_is_refused(tiny, root, write_tokens, tmp_path):
    write_tokens([[0, 400] * 8] * 8, "train")
    with pytest.raises(InputError, match=r"'base' knows ids 0 to 299, but the run's tokens hold id 400"):
        finetune_model(
            settings={"parent": "base", "precision": "float32"},
            paths_to_tokens={"words": str(tmp_path / "train.npy")},
            parent_folder=root / "models/base",
            folder=tmp_path / "model",
            checkpoints=tmp_path / "checkpoints",
            gpus=0,
        )


def test_shards_of_activations_cover_the_split(tiny, root):
    for split in ("train", "probe"):
        shards = [ActivationShard(shard_path(root / "activations/lua/sums", split, shard)) for shard in SHARDS]
        ids = np.load(tiny.tokens["sums"][split])
        assert sum(shard.n_tokens for shard in shards) == int((ids > 1).sum())
        assert [shard.header["first_row"] for shard in shards] == [0, len(ids) // 2]
        assert shards[1].header["stop_row"] == len(ids)
        assert {shard.d_in for shard in shards} == {D_MLP}


@pytest.mark.parametrize("model", ["base", "merged"])
def test_every_sae_s_folder_loads_and_its_metrics_have_their_keys(root, model):
    entries = json.loads((root / "saes" / model / "metrics.json").read_text())["saes"]
    for seed, metrics in zip(range(2), entries, strict=True):
        folder = root / "saes" / model / f"seed{seed}"
        sae = load_sae(folder)
        assert (sae.d_in, sae.d_sae, sae.k) == (D_MLP, 2 * D_MLP, 4)
        metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
        assert {key: metadata[key] for key in IN_SAELENS} == IN_SAELENS | {"model_name": model}
        trained = metadata["saelineage"]
        assert trained["hookpoint"] == HOOKPOINT
        assert (trained["model"], trained["sae"], trained["n_tokens_left_out"]) == (model, f"seed{seed}", 0)
        assert trained["settings"] == TRAINING | {"n_tokens": 8192, "seed": 10 * MODELS.index(model) + seed}
        assert pd.read_csv(folder / "training.csv")["tokens"].iloc[-1] == 8192
        shape = {"model": model, "sae": f"seed{seed}", "architecture": "topk", "d_in": 48, "d_sae": 96, "k": 4}
        assert {key: metrics[key] for key in shape} == shape
        assert metrics.keys() - shape.keys() == {"pooled", "corpora", "density_histogram"}
        for figures in (metrics["pooled"], *metrics["corpora"].values()):
            assert figures.keys() == {
                *("fvu", "l0", "dead_fraction", "ce_clean", "ce_spliced", "ce_ablated", "ce_recovered"),
                *("ce_mean_ablated", "ce_recovered_from_mean", "ce_difference"),
                *("n_tokens", "n_left_out", "n_predictions"),
            }
        assert metrics["pooled"]["fvu"] < 0.5
        assert metrics["pooled"]["l0"] <= 4


def test_features_are_the_sae_s_latents_of_the_dump(root):
    sae = load_sae(root / "saes/lua/seed1")
    shard = FeatureShard(feature_paths(root, "lua.seed1", SHARDS[1])[1])
    acts = ActivationShard(shard_path(root / "activations/lua/sums/probe", SHARDS[1]))
    assert (shard.model, shard.sae, shard.corpus) == ("lua", "seed1", "sums")
    assert (
        shard.token_range == f"{acts.header['ids_sha256']} rows {acts.header['first_row']} to {acts.header['stop_row']}"
    )
    with torch.no_grad():
        dense = sae.encode(acts.acts().float()).numpy()
    assert np.allclose(shard.latents.toarray(), dense, atol=1e-5)
    assert shard.positions.tolist() == acts.positions().tolist()
    assert shard.compared.all()


def test_tokens_too_long_for_the_sae_have_no_latents(root):
    sae = load_sae(root / "saes/lua/seed1")
    acts = ActivationShard(shard_path(root / "activations/lua/sums/probe", SHARDS[1]))
    compared = acts.norms() <= acts.norms().median()
    indptr, indices, values = encode(sae.encoder(), acts.chunks(CHUNK_TOKENS), compared, CPU)
    with torch.no_grad():
        dense = sae.encode(acts.acts().float()) * compared[:, None]
    found = np.zeros(dense.shape)
    found[np.repeat(np.arange(len(dense)), np.diff(indptr)), indices] = values
    assert np.allclose(found, dense.numpy(), atol=1e-5)


def test_every_edge_has_the_share_under_each_random_control(root):
    summary = json.loads((root / "lineage/summary.json").read_text())
    for edge in summary["edges"]:
        shares = edge["groups"]["all"]
        assert edge["controls"].keys() == shares["control_shares"].keys() == {"shifted", "rotated"}
        for control, found in edge["controls"].items():
            # of shifted documents some tokens have no counterpart, so a feature that fires rarely may be untestable
            assert 0 <= shares["persist_share_n"] - found["persist_share_n"] <= 2, control
            assert found["persist_share"] == shares["control_shares"][control]
        assert shares["control_shares"]["shifted"] < 0.05 < shares["persist_share"]


def test_the_dense_correlation_is_numpy_s(root, tmp_path):
    (lua,) = (partner for partner in partners(root, "base.seed0", SHARDS) if partner.name == "lua.seed0")
    write_dense_correlation(lua, 30, min_firings=5, threads=2, path_to_r=str(tmp_path / "dense.npy"))
    dense = np.load(tmp_path / "dense.npy")
    correlation = load_correlation(correlations_of(root, "base.seed0"), "lua.seed0")
    testable = correlation.testable[0]
    assert dense.shape == (96, 96)
    assert np.array_equal(np.isnan(dense).all(axis=1), ~testable)
    assert np.allclose(np.nanmax(dense[testable], axis=1), correlation.pearson.best[0][testable, 0], atol=1e-6)


def test_documents_are_drawn_again_for_edges_and_their_controls_alone(root):
    for a, partners_of_a in COMPARISONS.partners.items():
        for b in map(str, partners_of_a):
            replicates = load_replicates(root / "correlations" / a / "replicates.safetensors", b)
            assert len(replicates.best[0]) == (20 if f"{a}__{b}" in COMPARISONS.resampled else 0)
            assert replicates.documents[0].max() > 3  # counted for every pair, as is what r rests on
            assert np.nanmax(load_rests_on(root / "correlations" / a / "replicates.safetensors", b)[0]) > 3
    edges = {row["pair"] for row in COMPARISONS.rows}
    assert edges < set(COMPARISONS.resampled) < {f"{a}__{b}" for a, b in COMPARISONS.pairs}


def test_correlations_equal_numpy_s_over_all_shards_and_corpora(root):
    found = load_correlation(correlations_of(root, "base.seed0"), "lua.seed0")
    dense = [
        np.concatenate(
            [FeatureShard(path).latents.toarray() for shard in SHARDS for path in feature_paths(root, sae, shard)]
        )
        for sae in ("base.seed0", "lua.seed0")
    ]
    assert (found.names, found.corpora) == (("base.seed0", "lua.seed0"), sorted(CORPORA))
    for a, partners_of_a in COMPARISONS.partners.items():
        assert group_names(correlations_of(root, a)) == sorted(map(str, partners_of_a))
    assert sum(found.n_tokens.values()) == len(dense[0])
    fires = [(side > 0).sum(0) for side in dense]
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(dense[0].T, dense[1].T)[:96, 96:]
    r[fires[0] < 5] = np.nan
    r[:, fires[1] < 5] = np.nan
    testable = fires[0] >= 5
    assert np.array_equal(found.testable[0], testable)
    assert testable.sum() > 10
    assert np.allclose(found.pearson.best[0][testable, 0], np.nanmax(r[testable], axis=1), atol=1e-9)
    combined = correlate(*dense, min_firings=5, progress=False).combined
    assert found.combined is not None
    for side in range(2):
        assert np.array_equal(found.combined.whole_of[side], combined.whole_of[side])
        assert np.allclose(found.combined.r[side], combined.r[side], rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("shift", [False, True])
def test_splits_are_over_all_shards_and_the_compared_documents(write_tokens, tmp_path, shift):
    fires = np.random.default_rng(0).random((200, 1)) < 0.3
    first = np.random.default_rng(1).random((200, 1)) < 0.6
    sides = {"a": fires * 1.0, "b": np.hstack([fires & first, fires & ~first]) * 1.0}
    (tmp_path / "words").mkdir()
    write_tokens([[0, *[5] * 10]] * 20, "words/probe")
    text = [11 * row + place for row in range(20) for place in range(1, 11)]
    pairs = []
    for number, rows in enumerate((slice(0, 100), slice(100, 200))):
        paths = []
        for model, dense in sides.items():
            covered = {"first_row": 10 * number, "stop_row": 10 * number + 10, "n_ctx": 11}
            latents = scipy.sparse.csr_array(dense[rows])
            header = {"model": model, "sae": "seed0", "corpus": "words", "d_sae": dense.shape[1], "ids_sha256": "0"}
            paths.append(str(tmp_path / f"{model}{number}"))
            arrays = (latents.indptr, latents.indices, latents.data, np.array(text[rows]), np.ones(100, dtype=bool))
            save_shard(paths[-1], *arrays, header | covered)
        pairs.append((paths[0], paths[1]))
    correlate_features(
        partners=[Partner("b.seed0", shift, pairs)],
        paths_to_probe={"words": str(tmp_path / "words/probe.npy")},
        settings=SETTINGS,
        resampled=["b.seed0"],
        draws={"n_replicates": 2, "seed": 0},
        threads=1,
        path_to_correlations=tmp_path / "correlations",
        path_to_replicates=tmp_path / "replicates",
    )
    combined = load_correlation(tmp_path / "correlations", "b.seed0").combined
    assert combined is not None
    np.testing.assert_allclose(combined.r[0], [np.nan] if shift else [1], atol=1e-9)
    assert combined.whole_of[1].tolist() == ([-1, -1] if shift else [0, 0])


def test_the_lineage_has_a_table_per_edge_all_features_and_a_summary(root):
    summary = json.loads((root / "lineage/summary.json").read_text())
    assert {key: summary[key] for key in ("run", "threshold", "models")} == {
        "run": "tiny",
        "threshold": 0.8,
        "models": list(MODELS),
    }
    assert [(edge["parent"], edge["child"]) for edge in summary["edges"]] == list(EDGES)
    assert set(summary["pw_mcc"]) == set(MODELS)
    assert all(0 < of_model["pw_mcc"] < 1 for of_model in summary["pw_mcc"].values())
    for edge in summary["edges"]:
        table = pd.read_parquet(root / "lineage/edges" / f"{edge['parent']}__{edge['child']}.parquet")
        assert len(table) == 2 * 96
        for side in ("parent", "child"):
            counted = edge["groups"]["all"][side]
            of_side = table[table["side"] == side]
            verdicts = {name: n for name, n in counted.items() if name not in ("headline", "robust")}
            assert verdicts == {name: int((of_side["verdict"] == name).sum()) for name in verdicts}
            assert sum(verdicts.values()) == edge[f"n_{side}"] == 96
            assert sum(edge["groups"]["identified"][side][name] for name in verdicts) == of_side["identified"].sum()
        assert edge["two_seed_share_n"] > 0
        low, high = edge["groups"]["all"]["relative_persistence_interval"]
        assert low <= high
        testable = table["verdict"] != "untestable"
        assert (table["r_low"] <= table["r_high"])[testable & table["r_low"].notna()].all()
        assert set(table.loc[table["headline"], "verdict"]) <= {"gone", "new"}
        assert table.loc[table["headline"], "identified"].all()
        assert table.loc[table["robust"], "headline"].all()
        assert table["cosine"].between(-1, 1)[table["match"] >= 0].all()
        assert (table[["strength_ratio", "spread_ratio"]] > 0).all(axis=1)[table["match"] >= 0].all()
        by_corpus = edge["groups"]["all"]["corpora"].values()
        for share in ("persist_share_n", "inherited_share_n", "no_change_share_n"):
            assert sum(of_corpus[share] for of_corpus in by_corpus) == edge["groups"]["all"][share]
    features = pd.read_parquet(root / "lineage/features.parquet")
    assert features["model"].value_counts().to_dict() == dict.fromkeys(MODELS, 96)
    assert set(features["sae"]) == {"seed0"}
    assert features["identified"].tolist() == (features["recurrence"] >= 1).tolist()


def test_the_summary_weighs_every_instrument_and_every_source_of_a_merge(root):
    summary = json.loads((root / "lineage/summary.json").read_text())
    assert [(row["parent"], row["child"]) for row in summary["instruments"]] == list(EDGES)
    sources = summary["sources"]["merged"]
    assert sources.keys() == {"lua", "stories", "base", "both", "new"}
    assert sum(found["share"] for found in sources.values()) == pytest.approx(1)
    table = pd.read_parquet(root / "lineage/sources.parquet")
    assert len(table) == 96
    curves = pd.read_parquet(root / "lineage/curves.parquet")
    assert set(curves["name"]) == {"edge", "no change", "shifted", "rotated"}
    assert (curves.groupby(["parent", "child", "name"])["share"].diff().fillna(0) <= 0).all()


def annotations_of(tiny):
    """The probe's tokens, each with its id as its text."""
    rows = read_token_rows({corpus: tiny.tokens[corpus]["probe"] for corpus in CORPORA})
    special = {(own.info["bos_id"], own.info["eos_id"]) for own in rows.values()}.pop()
    texts = {
        corpus: [[None if token in special else str(token) for token in row] for row in own.ids.tolist()]
        for corpus, own in rows.items()
    }
    return annotated(texts)


def importance_of(verdicts: pd.DataFrame) -> pd.DataFrame:
    """A table of importance with the columns that examples need."""
    figures = {"importance": 1.0, "effect": 1.0, "exact_effect": np.nan, "contrast_corpus": "lua", "density_lua": 0.1}
    return verdicts.assign(**figures, match_density_lua=0.1)


def write_examples(tiny, root: Path, path: Path, *others: str) -> None:
    """The examples of the diamond, and of other models without parents; the root's features 7 and 4 follow concepts."""
    labels = pd.DataFrame({"latent": [3, 7, 4], "label": ["assignment", "assignment target", "exception"]})
    labels = labels.assign(
        kind="concept", score=[0.25, 0.75, 0.5], precision=1.0, recall=0.5, wins=True, sae="seed0", n_documents=9
    )
    saes = [f"{model}.seed0" for model in MODELS]
    edges = {edge: pd.read_parquet(root / f"lineage/edges/{edge[0]}__{edge[1]}.parquet") for edge in EDGES}
    collect_examples(
        features=pd.read_parquet(root / "lineage/features.parquet"),
        edges=edges,
        importance={edge: importance_of(table) for edge, table in edges.items()},
        shards=shards_by_sae(
            [path for sae in saes for shard in SHARDS for path in feature_paths(root, sae, shard)],
            [tuple(sae.split(".")) for sae in saes],
        ),
        annotations=annotations_of(tiny),
        labels=dict.fromkeys([*MODELS, *others], labels),
        models=[*MODELS, *others],
        roots=["base", *others],
        shares_numbers=False,
        threshold=0.8,
        concepts=["exception", "assignment"],
        n_features=2,
        n_changed=2,
        n_examples=3,
        path_to_examples=str(path),
    )


@pytest.fixture(scope="module")
def examples(tiny, root, tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("examples") / "examples.json"
    write_examples(tiny, root, path)
    return json.loads(path.read_text())


def described(examples: dict) -> list[dict]:
    """All features of `examples.json`."""
    of_edges = (feature for edge in examples["changed"] for side in ("gone", "new") for feature in edge[side])
    return [*examples["named"], *examples["persisting"], *of_edges]


def test_examples_name_the_features_that_follow_concepts_best(examples):
    named = [(feature["concept"], feature["members"][0]["latent"], feature["score"]) for feature in examples["named"]]
    assert named == [("exception", 4, 0.5), ("assignment", 7, 0.75)]
    for feature in examples["named"]:
        others = [member["model"] for member in feature["members"][1:]]
        assert {"lua", "stories"} <= set(others)  # where it is not found there, the closest
        assert set(feature["found"]) <= set(others)


def test_examples_are_of_every_edge(examples):
    assert examples["n_models"] == len(MODELS)
    assert [(edge["parent"], edge["child"]) for edge in examples["changed"]] == list(EDGES)
    assert len(described(examples)) > len(examples["named"])


def test_passages_of_examples_are_the_probe_s_text_with_the_saes_latents(tiny, root, examples):
    probe = annotations_of(tiny)
    for feature in described(examples):
        assert feature["passages"]
        for member, number in zip(feature["members"], range(9), strict=False):
            acts = np.zeros(len(probe.pieces), dtype=np.float32)
            for shard in SHARDS:
                for path in feature_paths(root, f"{member['model']}.{member['sae']}", shard):
                    own = FeatureShard(path)
                    tokens = numbers_of(probe, own.corpus, own.positions)
                    acts[tokens] = own.latents[:, [member["latent"]]].toarray()[:, 0]
            assert member["max_activation"] == pytest.approx(acts.max(), abs=5e-5)
            for passage in feature["passages"]:
                first = probe.starts[passage["corpus"]] + passage["row"] * probe.n_ctx + passage["first"]
                shown = slice(first, first + len(passage["tokens"]))
                assert passage["activations"][number] == pytest.approx(acts[shown].tolist(), abs=5e-5)
                assert passage["tokens"] == [probe.strings[piece] for piece in probe.pieces[shown]]


def test_examples_made_again_are_equal_bytes(tiny, root, tmp_path):
    for name in ("first", "second"):
        write_examples(tiny, root, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_model_without_any_edge_has_no_examples_and_changes_no_others(tiny, root, examples, tmp_path):
    write_examples(tiny, root, tmp_path / "examples.json", "alone")
    assert json.loads((tmp_path / "examples.json").read_text()) == examples | {"n_models": len(MODELS) + 1}


def test_the_page_is_written_with_the_table_behind_each_figure_beside_it(tmp_path):
    sources = read_sources([str(TEMPLATES / name) for name in PAGE_SOURCES])
    assert sorted(sources.scripts) == ["downloads", "elements", "explorer", "jobs", "page"]
    found = results()
    write_report(found, sources, str(tmp_path / "index.html"), tmp_path / "tables", str(tmp_path / "index.md"))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(script in page for name, script in sources.scripts.items() if name != "jobs")
    assert (tmp_path / "index.md").read_text(encoding="utf-8").startswith("# tiny: what became of the features")
    written = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "tables").iterdir()}
    assert written == {name: table.to_csv(index=False) for name, table in found.tables.items()}


def read_as_it_is(root: Path, folder: Path, *starts: str) -> dict[str, torch.Tensor]:
    """The weights of an SAE of `lua` that starts from others and is trained on nothing."""
    train_and_save(
        model="lua",
        settings={"start": TRAINING | {"n_tokens": 0, "seed": 5}},
        paths_to_shards=training_shards(root, "lua"),
        folder=folder,
        checkpoint=folder / "state.safetensors",
        events=None,
        gpus=0,
        starts=[str(root / "saes" / start) for start in starts],
    )
    return load_file(folder / "start" / WEIGHTS_FILE)


def test_an_sae_that_starts_from_another_and_is_not_trained_is_that_one(root, tmp_path):
    weights, others = read_as_it_is(root, tmp_path, "base/seed0"), load_file(root / "saes/base/seed0" / WEIGHTS_FILE)
    assert all(torch.equal(weights[name], others[name]) for name in others)


def test_two_starts_are_averaged(root, tmp_path):
    starts = ("base/seed0", "lua/seed0")
    one, other = (load_file(root / "saes" / start / WEIGHTS_FILE)["W_dec"] for start in starts)
    assert torch.allclose(read_as_it_is(root, tmp_path, *starts)["W_dec"], (one + other) / 2)


def test_running_a_script_again_gives_equal_bytes(root, tmp_path):
    merge_models(settings(PARENTS, t=0.58), [root / "models" / name for name in PARENTS], None, tmp_path / "merged")
    record = json.loads((root / "saes/lua/seed0/cfg.json").read_text())["metadata"]["saelineage"]
    train_and_save(
        model="lua",
        settings={"seed0": record["settings"]},
        paths_to_shards=training_shards(root, "lua"),
        folder=tmp_path,
        checkpoint=tmp_path / "state.safetensors",
        events=None,
        gpus=0,
    )
    for first, again in (
        ("models/merged/model.safetensors", "merged/model.safetensors"),
        ("models/merged/merge.json", "merged/merge.json"),
        ("saes/lua/seed0/sae_weights.safetensors", "seed0/sae_weights.safetensors"),
        ("saes/lua/seed0/cfg.json", "seed0/cfg.json"),
        ("saes/lua/seed0/training.csv", "seed0/training.csv"),
    ):
        assert (root / first).read_bytes() == (tmp_path / again).read_bytes(), first


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from saelineage.saes.trainer import SaeTrainer
from train_sae import train_and_save
from write_dense_correlation import write_dense_correlation

class KilledTrainer(SaeTrainer):
    def step(self, acts):
        if self.step_number == 27:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(acts)

import saelineage.saes.training
saelineage.saes.training.SaeTrainer = KilledTrainer
arguments = eval(sys.argv[1])
train_and_save(**arguments | {name: Path(arguments[name]) for name in ("folder", "checkpoint")})
"""


def test_saes_whose_training_is_killed_and_started_again_are_the_same_files(root, tmp_path):
    common = TRAINING | {"n_tokens": 8192}
    settings = {
        "seed0": common | {"seed": 0},
        "seed1": common | {"seed": 1, "architecture": "relu", "target_l0": 6.0},
        "seed2": common | {"seed": 2, "architecture": "batchtopk"},
    }

    def arguments(name: str) -> dict:
        found = {"model": "lua", "settings": settings, "paths_to_shards": training_shards(root, "lua"), "gpus": 0}
        checkpoint = tmp_path / f"{name}.checkpoints" / "state.safetensors"
        return found | {"folder": tmp_path / name, "checkpoint": checkpoint, "events": None}

    plain = {key: str(value) if isinstance(value, Path) else value for key, value in arguments("killed").items()}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, repr(plain)], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [path.name for path in (tmp_path / "killed.checkpoints").iterdir()] == ["state.safetensors"]
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "undisturbed"):
        train_and_save(**arguments(name))
    for sae in settings:
        for file in ("sae_weights.safetensors", "cfg.json", "training.csv"):
            again = (tmp_path / "killed" / sae / file).read_bytes()
            assert again == (tmp_path / "undisturbed" / sae / file).read_bytes(), f"{sae}/{file}"


def train_with_events(root: Path, tmp_path: Path) -> None:
    train_and_save(
        model="lua",
        settings={sae: TRAINING | {"n_tokens": 27 * 256, "seed": 0} for sae in ("seed0", "seed1")},
        paths_to_shards=training_shards(root, "lua"),
        folder=tmp_path / "saes",
        checkpoint=tmp_path / "state.safetensors",
        events=tmp_path / "events",
        gpus=0,
    )


def test_training_curves_can_be_read_by_tensorboard(root, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_with_events(root, tmp_path)
    for sae in ("seed0", "seed1"):
        curve = pd.read_csv(tmp_path / "saes" / sae / "training.csv")
        events = EventAccumulator(str(tmp_path / "events" / sae)).Reload()
        assert set(events.Tags()["scalars"]) == set(curve.columns)
        for name in curve.columns:
            points = events.Scalars(name)
            assert [point.step for point in points] == curve["tokens"].tolist() == [25 * 256, 27 * 256]
            assert [point.value for point in points] == pytest.approx(curve[name].tolist(), rel=1e-6)


def test_without_tensorboard_the_setting_is_refused(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # what Python does where a package is missing
    with pytest.raises(InputError, match=r"saes\.tensorboard needs the package tensorboard, which is not installed"):
        train_with_events(root, tmp_path)
    assert not (tmp_path / "saes").exists()
