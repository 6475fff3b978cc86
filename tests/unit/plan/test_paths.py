"""Paths: patterns are filled in one order, and input functions name what a job reads."""

import re
from pathlib import Path

from saelineage.plan.paths import Paths, folder_files
from saelineage.plan.plan import Plan
from saelineage.plan.sae_names import SaeName
from tests.unit.plan.jobs import Wildcards
from tests.unit.plan.lineages import RANDOM, diamond

FEATURES = "results/tiny/features/mlp"


def paths() -> Paths:
    return Plan(diamond()).places["mlp"].paths


def test_the_last_name_varies_fastest_and_text_counts_as_one_value():
    assert paths().fill("{a}-{b}/{c}", a=["x", "y"], b="text", c=["0", "1"]) == [
        "x-text/0",
        "x-text/1",
        "y-text/0",
        "y-text/1",
    ]
    assert paths().fill("{a}/{b}", a=["x"], b=[]) == []
    assert paths().own_page == "results/tiny/report/index.html"


def test_a_rule_s_output_leaves_wildcards_that_are_not_given():
    assert paths().over("{a}/{b}/{c}", b=["x", "y"]) == ["{a}/x/{c}", "{a}/y/{c}"]
    assert paths().fix("{a}/{b}", a="x") == "x/{b}"


def test_a_manifest_has_the_stem_of_its_file_or_is_in_its_folder():
    assert Paths.manifest("a/b.c/rows.npy") == "a/b.c/rows.manifest.json"
    assert Paths.folder_manifest("a/b/sae_weights.safetensors") == "a/b/manifest.json"
    assert paths().model_output() == {
        "config": "results/tiny/models/{model}/config.json",
        "weights": "results/tiny/models/{model}/model.safetensors",
        "tokenizer": "results/tiny/models/{model}/tokenizer.json",
        "tokenizer_config": "results/tiny/models/{model}/tokenizer_config.json",
        "manifest": "results/tiny/models/{model}/manifest.json",
    }


def test_all_shards_of_a_corpus_come_before_the_next_corpus():
    folder = f"{FEATURES}/lua/from_base"
    assert paths().sae_features(SaeName("lua", "from_base")) == [
        f"{folder}/english/shard-00000-of-00002.safetensors",
        f"{folder}/english/shard-00001-of-00002.safetensors",
        f"{folder}/lua/shard-00000-of-00002.safetensors",
        f"{folder}/lua/shard-00001-of-00002.safetensors",
    ]


def test_a_null_of_shifted_documents_has_the_features_of_the_sae_that_is_shifted():
    wildcards = Wildcards(a="base.seed0", b="lua.from_base_shifted")
    side_a, side_b = (paths().side_features(side)(wildcards) for side in "ab")
    assert side_a == paths().sae_features(SaeName("base", "seed0"))
    assert side_b == paths().sae_features(SaeName("lua", "from_base"))
    rotated = Wildcards(a="base.seed0", b="lua.from_base_rotated")
    assert paths().side_features("b")(rotated)[0].startswith(f"{FEATURES}/lua/from_base_rotated/")


def test_a_model_is_made_from_its_parents_or_from_the_model_that_it_is_like():
    plan = Plan(diamond(random=RANDOM))
    folders = {
        model: sorted({Path(path).parent.name for path in plan.paths.parents(Wildcards(model=model))})
        for model in plan.graph.models
    }
    assert folders == {
        "base": [],
        "lua": ["base"],
        "stories": ["base"],
        "merged": ["lua", "stories"],
        "random": ["base"],
    }


def test_an_sae_is_trained_on_its_own_corpora_and_those_of_one_pass_on_those_of_the_first():
    config = diamond("independent")
    config["saes"]["models"] = {"lua": {"seed0": {"corpora": ["lua"]}}}
    dump = "results/tiny/activations/mlp/lua/{}/train/shard-00000-of-00001.safetensors"
    plan = Plan(config).places["mlp"]
    assert plan.paths.sae_dump(Wildcards(model="lua", sae="seed1")) == [dump.format("english"), dump.format("lua")]
    assert plan.paths.sae_dump(Wildcards(model="lua", sae="seed0")) == [dump.format("lua")]
    assert plan.paths.sae_dump(Wildcards(model="lua")) == [dump.format("lua")]


def test_of_a_user_s_folder_only_files_with_known_endings_are_inputs(tmp_path: Path):
    for name in ("model.safetensors", "config.json", "training.log"):
        (tmp_path / name).touch()
    expected = [str(tmp_path / "config.json"), str(tmp_path / "model.safetensors")]
    assert folder_files(str(tmp_path), (".json", ".safetensors")) == expected


def test_all_asks_for_one_manifest_of_each_thing_that_is_kept():
    plan = Plan(diamond("independent", random=RANDOM)).places["mlp"]
    manifests = plan.paths.manifests()
    assert len(set(manifests)) == len(manifests)
    assert [path for path in manifests if not path.endswith("manifest.json")] == []
    stages = {path.split("/")[2] for path in manifests}
    assert stages == {
        *("corpora", "tokenizer", "tokens", "models", "activations", "saes", "features", "correlations"),
        *("lineage", "labels", "behaviour", "report"),
    }
    saes = {f"results/tiny/saes/mlp/{sae.model}/{sae.sae}/manifest.json" for sae in plan.comparisons.saes}
    assert saes <= set(manifests)
    # Every result that `all` asks for has its manifest next to it.
    folders = {Path(path).parent for path in manifests}
    assert {Path(path).parent for path in plan.paths.everything()} <= folders


def test_a_service_is_asked_about_features_and_edges_only_if_explanations_are_asked_for():
    without, config = Plan(diamond()).places["mlp"], diamond()
    config["labels"] = {"explanations": {"model": "small"}}
    asked = Plan(config).places["mlp"].paths
    assert without.paths.all_words() == without.paths.all_explanations() == []
    assert asked.all_words() == ["results/tiny/report/words/mlp.json"]
    assert len(asked.all_explanations()) == 4
    assert "results/tiny/report/words/mlp.manifest.json" in asked.manifests()
    assert "results/tiny/report/words/mlp.manifest.json" not in without.paths.manifests()


def test_the_lineage_reads_the_weights_of_all_seeds_beside_the_leading_saes():
    plan = Plan(diamond()).places["mlp"]
    named = list(map(str, plan.traced_saes))
    assert len(named) == len(set(named)) == len(plan.paths.traced_weights())
    assert set(named) == {
        *map(str, plan.leading_saes),
        *(name for pairs in plan.comparisons.seed_pair_names.values() for pair in pairs for name in pair.split("__")),
    }
    for name, path in zip(named, plan.paths.traced_weights(), strict=True):
        assert path == f"results/tiny/saes/mlp/{name.replace('.', '/')}/sae_weights.safetensors"


def two_hookpoints() -> dict:
    """The diamond at two places, with other settings at the second."""
    config = diamond("independent")
    config["activations"]["hookpoints"] = {"mlp": "model.layers.0.mlp.output", "late": "model.layers.1.output"}
    config["saes"]["models"] = {"lua": {"k": 16, "seed1": {"learning_rate": 0.01}}}
    config["saes"]["hookpoints"] = {"late": {"k": 8, "models": {"lua": {"seed1": {"k": 4}}}}}
    return config


def test_paths_of_all_hookpoints_leave_theirs_open_and_those_of_one_fill_it_in():
    plan = Plan(two_hookpoints())
    assert plan.paths.summary == "results/tiny/lineage/{hookpoint}/summary.json"
    assert plan.paths.fill(plan.paths.correlations, a="x") == [
        "results/tiny/correlations/{hookpoint}/x/correlations.safetensors"
    ]
    assert plan.places["late"].paths.summary == "results/tiny/lineage/late/summary.json"
    assert [page["page"] for page in plan.pages().values()] == [
        "results/tiny/report/index.html",
        "results/tiny/report/late.html",
    ]
    assert {path for path in plan.everything() if "summary" in path} == {
        f"results/tiny/lineage/{hookpoint}/summary.json" for hookpoint in ("mlp", "late")
    }
    assert not [path for path in plan.page_files() if "{" in path]


def test_settings_of_a_hookpoint_come_before_those_of_all_and_below_those_of_one_of_its_saes():
    plan = Plan(two_hookpoints())
    k = {
        hookpoint: [place.saes.settings("lua", sae)["k"] for sae in ("seed0", "seed1")]
        for hookpoint, place in plan.places.items()
    }
    assert k == {"mlp": [16, 16], "late": [16, 4]}  # lua's own k is nearer than that of the hookpoint
    assert plan.places["late"].saes.settings("base", "seed0")["k"] == 8
    assert plan.places["late"].saes.settings("lua", "seed1")["learning_rate"] == 0.01
    job = Wildcards(hookpoint="late", model="lua", sae="seed1")
    assert plan.placed(lambda place: place.params.sae)(job)["seed1"]["k"] == 4
    assert plan.places["late"].place == "model.layers.1.output"


def test_a_model_is_dumped_on_the_corpora_of_the_saes_of_all_hookpoints():
    config = two_hookpoints()
    config["saes"]["corpora"], config["saes"]["hookpoints"]["late"]["corpora"] = ["lua"], ["english"]
    plan = Plan(config)
    assert plan.trained_corpora == [place.trained_corpora for place in plan.places.values()][1] == ["english", "lua"]
    job = Wildcards(hookpoint="late", model="base", sae="seed0")
    (dump,) = plan.placed(lambda place: place.paths.sae_dump)(job)
    assert dump.startswith("results/tiny/activations/late/base/english/")


def test_latents_are_exported_under_the_module_of_their_own_hookpoint():
    exported = Plan(two_hookpoints()).exported()
    for path, is_own in (
        ("late/lua/seed0/model.layers.1/config.json", True),
        ("late/lua/seed0/model.layers.0.mlp/config.json", False),
        ("mlp/lua/seed0/model.layers.0.mlp/config.json", True),
    ):
        assert bool(re.match(f"({exported})", path)) == is_own


def test_only_saes_of_a_hookpoint_that_are_imported_there_are_imported():
    config = two_hookpoints()
    config["saes"]["hookpoints"]["late"]["models"] = {"base": {"seed0": {"import": {"folder": "sae"}}}}
    plan = Plan(config)
    assert re.fullmatch(f"({plan.imported()}).*", "late/base/seed0/cfg.json")
    for path, is_trained in (("late/base/seed0/", False), ("late/base/seed1/", True), ("mlp/base/seed0/", True)):
        assert bool(re.match(f"({plan.trained_alone()})", path)) == is_trained
        assert bool(re.match(f"({plan.imported()})", path)) != is_trained


def test_every_model_with_a_parent_is_compared_with_all_its_parents_unless_that_is_off():
    config = diamond(random=RANDOM)
    plan = Plan(config)
    assert [Path(path).parent.name for path in plan.paths.all_matrix_changes()] == ["lua", "stories", "merged"]
    read = plan.paths.changed_weights(Wildcards(model="merged"))
    assert read == [f"results/tiny/models/{model}/model.safetensors" for model in ("lua", "stories", "merged")]
    off = Plan(config | {"lineage": config["lineage"] | {"weights": False}})
    assert off.paths.all_matrix_changes() == []
    assert not [path for path in off.manifests() if "changes" in path]
