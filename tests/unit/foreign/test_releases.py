"""Published SAEs by SAELens's names: the table, its resolution into hub blocks, and refusals before any download."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.foreign import releases
from saelineage.foreign.releases import LOADERS, NO_SAES, neuronpedia_address, resolve
from saelineage.foreign.sae_formats.registry import FORMATS, SaeSource, describe_source
from saelineage.foreign.sae_inputs import RunInput, is_centred
from saelineage.plan.config import load_config, read_schema
from tests.hub_server import SCRIPTS, running_hub

SCHEMA = SCRIPTS.parents[1] / "config" / "config.schema.yaml"
LIMITS = {"format": "auto", "max_fvu": 0.9, "max_l0_fraction": 0.15}


def block(release: str, sae_id: str, **given: object) -> dict:
    return {"saelens": {"release": release, "sae_id": sae_id}, **LIMITS, **given}


def refusal(release: str, sae_id: str, **given: object) -> str:
    with pytest.raises(InputError) as refused:
        resolve(block(release, sae_id, **given), "saes.import")
    return str(refused.value)


def test_a_release_becomes_a_block_of_the_hub():
    assert resolve(block("gpt2-small-res-jb", "blocks.8.hook_resid_pre"), "saes.import") == LIMITS | {
        "repo": "jbloom/GPT2-Small-SAEs-Reformatted",
        "revision": "main",
        "subfolder": "blocks.8.hook_resid_pre",
        "format": "saelens",
        "saelens": {
            "release": "gpt2-small-res-jb",
            "sae_id": "blocks.8.hook_resid_pre",
            "table": "sae_lens 6.54.12",
            "model": "gpt2-small",
            "neuronpedia_id": "gpt2-small/8-res-jb",
            "overrides": {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
        },
    }


def test_a_revision_may_be_given_beside_it():
    given = block("gpt2-small-res-jb", "blocks.8.hook_resid_pre", revision="abc")
    assert resolve(given, "saes.import")["revision"] == "abc"


def test_a_folder_may_have_the_ending_of_a_file():
    found = resolve(block("gpt2-small-resid-post-v5-32k", "blocks.0.hook_resid_post"), "saes.import")
    assert (found["subfolder"], "file" in found) == ("v5_32k_layer_0.pt", False)


@pytest.mark.parametrize(
    ("release", "sae_id", "place"),
    [
        (
            "gemma-scope-2b-pt-res-canonical",
            "layer_12/width_16k/canonical",
            {
                "repo": "google/gemma-scope-2b-pt-res",
                "subfolder": "layer_12/width_16k/average_l0_82",
                "format": "gemma_scope",
            },
        ),
        (
            "qwen-scope-3-1.7b-base-w32k-l50",
            "layer3",
            {"repo": "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "file": "layer3.sae.pt", "format": "qwen_scope"},
        ),
        (
            "goodfire-llama-3.1-8b-instruct",
            "layer_19",
            {
                "repo": "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
                "file": "Llama-3.1-8B-Instruct-SAE-l19.pth",
                "format": "goodfire",
            },
        ),
        (
            "gemma-scope-2-4b-it-res",
            "layer_17_width_16k_l0_big",
            {"subfolder": "resid_post/layer_17_width_16k_l0_big", "format": "gemma_scope_2"},
        ),
        ("llama_scope_lxa_8x", "l0a_8x", {"subfolder": "Llama3_1-8B-Base-L0A-8x", "format": "llama_scope"}),
    ],
)
def test_each_kind_of_release_names_its_files(release: str, sae_id: str, place: dict):
    assert resolve(block(release, sae_id), "saes.import").items() >= place.items()


def test_an_unknown_release_or_sae_is_answered_with_the_nearest_names():
    assert refusal("gemma-scope-2b-pt-res-cannonical", "x") == (
        "saes.import.saelens.release: 'gemma-scope-2b-pt-res-cannonical' is no release of the 170 in SAELens 6.54.12; "
        "the nearest are gemma-scope-2b-pt-res-canonical, gemma-scope-27b-pt-res-canonical, "
        "gemma-scope-9b-pt-res-canonical, gemma-scope-9b-it-res-canonical, gemma-scope-2b-pt-mlp-canonical; "
        "correct the name, or name the files with repo, revision and subfolder"
    )
    message = refusal("gpt2-small-res-jb", "blocks.8.hook_resid_post")
    assert "is no sae_id of the 13 in the release 'gpt2-small-res-jb'; the nearest are" in message
    assert "blocks.8.hook_resid_pre" in message


@pytest.mark.parametrize(
    ("release", "sae_id", "reason"),
    [
        ("gemma-scope-2b-pt-transcoders", "layer_0/width_16k/average_l0_76", "they are transcoders"),
        ("gemma-scope-2-4b-pt-transcoders-all", "layer_0_width_16k_l0_big", "they are transcoders"),
        ("mwhanna-qwen3-4b-transcoders", "layer_0", "they are transcoders"),
        ("mntss-gemma-2-2b-2.5m-clt-as-per-layer", "layer_0", "they are transcoders"),
        ("temporal-sae-gemma-2-2b", "blocks.12.hook_resid_post", "their latents depend on earlier tokens"),
    ],
)
def test_what_is_no_sae_of_single_tokens_is_refused_with_releases_that_are(release: str, sae_id: str, reason: str):
    message = refusal(release, sae_id)
    assert message.startswith(f"saes.import.saelens: '{release}' cannot be imported, because {reason}")
    assert "; choose a release of SAEs" in message


@pytest.mark.parametrize(
    ("release", "sae_id", "reason"),
    [
        ("mistral-7b-res-wg", "blocks.8.hook_resid_pre", "replaces normalize_activations with 'constant_norm_rescale'"),
    ],
)
def test_files_that_are_not_read_are_refused_with_the_way_through_saelens(release: str, sae_id: str, reason: str):
    message = refusal(release, sae_id)
    assert reason in message
    assert "SAELens's SAE.from_pretrained, save it with its save_model(FOLDER), and import {folder: FOLDER}" in message
    assert message.endswith("{folder: FOLDER}")


@pytest.mark.parametrize("given", [{"repo": "a/b"}, {"folder": "x"}, {"subfolder": "x"}, {"format": "sparsify"}])
def test_a_release_and_another_source_are_refused(given: dict):
    assert f"so {next(iter(given))} must be left out beside saelens" in refusal("a", "b", **given)


def test_every_loader_of_the_table_is_a_format_or_refused_by_name():
    version, table = releases.releases()
    assert (version, len(table), sum(len(release.saes) for release in table.values())) == ("6.54.12", 170, 13857)
    others = {release.loader for release in table.values()} - LOADERS.keys() - NO_SAES.keys()
    assert others == set()
    assert set(FORMATS) == {*LOADERS.values(), "openai"}


def test_the_table_has_the_same_bytes_whenever_it_is_written():
    packed = releases.TABLE.read_bytes()
    content = json.loads(gzip.decompress(packed))
    text = json.dumps(content, separators=(",", ":")).encode()
    assert gzip.decompress(packed) == text
    assert packed[4:8] == bytes(4)  # no time in the header
    assert "MIT" in content["licence"]
    assert Path(releases.TABLE.with_name("saelens_releases.LICENSE")).read_text().startswith("MIT License")


def test_paths_and_ids_of_the_table_are_safe():
    _, table = releases.releases()
    for release in table.values():
        for path, neuronpedia_id, _ in release.saes.values():
            assert not {"..", ""} & set(path.split("/"))
            assert neuronpedia_id is None or neuronpedia_address(neuronpedia_id)


@pytest.mark.parametrize(
    "value", ["a", "a/b/c", "a/b?x", "../b", "a/..", "a/b c", "a/<b>", "", None, 7, "a/b\n", "/a/b"]
)
def test_what_is_no_id_on_neuronpedia_becomes_no_address(value: object):
    assert neuronpedia_address(value) is None


def test_an_id_on_neuronpedia_becomes_the_address_of_its_latents():
    assert neuronpedia_address("gpt2-small/8-res-jb") == "https://www.neuronpedia.org/gpt2-small/8-res-jb"


def test_overrides_of_the_registry_replace_keys_of_the_config(tmp_path: Path):
    settings = resolve(block("gpt2-small-res-jb", "blocks.8.hook_resid_pre"), "saes.import")
    old = {"hook_point": "blocks.8.hook_resid_pre", "d_in": 768, "d_sae": 24576}
    new = {
        "architecture": "standard",
        "metadata": {"sae_lens_version": "6.0.0", "hook_name": "blocks.8.hook_resid_pre"},
    }
    run = RunInput("transformer.h.8.input", 128, "base", norm="layer")
    for config in (old, new):
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        described = describe_source(SaeSource(tmp_path, "saelens", None, settings=settings))
        assert described.model_settings == {"center_writing_weights": True}
        assert is_centred(described, run, "saes.import")


def config(saes: dict) -> dict:
    given = {
        "run": "mine",
        "corpora": {"lua": {"source": "sample", "kind": "lua"}},
        "tokenizer": {"source": "train", "vocab_size": 384, "corpora": ["lua"]},
        "models": {"base": {"path": {"folder": "base"}}, "tuned": {"path": {"folder": "tuned", "parents": ["base"]}}},
        "activations": {"hookpoint": "model.layers.1.output"},
        "saes": saes,
    }
    return load_config(given, read_schema(SCHEMA))["saes"]


def test_releases_are_looked_up_wherever_an_sae_may_be_imported():
    named = {"saelens": {"release": "gpt2-small-res-jb", "sae_id": "blocks.8.hook_resid_pre"}}
    of_all = config({"import": named})["import"]
    of_model = config({"models": {"base": {"import": named}}})["models"]["base"]["import"]
    of_one = config({"models": {"base": {"seed0": {"import": named}}}})["models"]["base"]["seed0"]["import"]
    assert of_all == of_model == of_one
    assert of_all["repo"] == "jbloom/GPT2-Small-SAEs-Reformatted"
    with pytest.raises(InputError, match=r"^saes\.models\.base\.seed0\.import\.saelens\.release: 'x' is no release"):
        config({"models": {"base": {"seed0": {"import": {"saelens": {"release": "x", "sae_id": "y"}}}}}})


def test_a_release_without_an_sae_is_refused_by_the_schema():
    with pytest.raises(InputError, match="'sae_id' is a required property"):
        config({"import": {"saelens": {"release": "gpt2-small-res-jb"}}})


FETCH = """
import json, sys
from saelineage.foreign.hub import fetch_sae_config
from saelineage.foreign.releases import resolve
from saelineage.foreign.sae_formats.registry import check_source
from saelineage.foreign.sae_inputs import RunInput
found = fetch_sae_config(resolve(json.loads(sys.argv[1]), "saes.import"), "saes.import")
run = RunInput("transformer.h.8.input", 128, "gpt2", norm="layer")
print(json.dumps([found.source.format, found.weights, check_source(found.source, run, "key")]))
"""


def test_a_release_is_fetched_like_any_repository_of_the_hub(tmp_path: Path):
    folder = "blocks.8.hook_resid_pre"
    config = {"hook_point": folder, "hook_point_layer": 8, "d_in": 768, "d_sae": 24576, "model_name": "gpt2-small"}
    files = {f"{folder}/cfg.json": json.dumps(config).encode(), f"{folder}/sae_weights.safetensors": b"not read"}
    with running_hub() as hub:
        hub.push("jbloom/GPT2-Small-SAEs-Reformatted", files, kind="models")
        command = [sys.executable, "-c", FETCH, json.dumps(block("gpt2-small-res-jb", folder))]
        answer = json.loads(subprocess.check_output(command, env=hub.environment(tmp_path), text=True))
        assert not [request for request in hub.requests if "safetensors" in request]
    # No doubt about centring: the registry says that the activations were centred.
    assert answer == ["saelens", f"{folder}/sae_weights.safetensors", []]
