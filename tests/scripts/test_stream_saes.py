"""Training a model's SAEs while it is read, through the files: the archive, what each SAE says of itself, and one SAE
taken out."""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from saelineage.models.loading import load_model
from saelineage.saes.sae import Sae, load_sae, save_sae
from stream_saes import Reading, stream_saes
from tests.sae_settings import SAE_SETTINGS
from unpack_sae import unpack_sae

PLACES = {"early": "model.layers.0.mlp.down_proj.input", "late": "model.layers.1.output"}
FILES = ["cfg.json", "sae_weights.safetensors", "training.csv"]


@pytest.fixture
def bundle(tiny, tmp_path) -> Path:
    """SAEs at two hookpoints, one of which starts from an imported SAE."""
    start = Sae("topk", 32, 64, 6)
    directions = torch.nn.functional.normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        start.W_dec.copy_(directions)
        start.W_enc.copy_(directions.T)
    save_sae(start, tmp_path / "start", {"l0": 6.0})
    settings = SAE_SETTINGS | {"n_tokens": 640, "batch_tokens": 64, "k": 4}
    left = {"from_start": ["architecture", "k", "target_l0"]}
    saes = {"early": {"seed0": settings}, "late": {"seed0": settings, "from_base": settings | left}}
    starts = {"early": {"seed0": []}, "late": {"seed0": [], "from_base": [str(tmp_path / "start")]}}
    path, tokens = tmp_path / "1.tar", [tiny.tokens[corpus]["train"] for corpus in ("words", "sums")]
    reading = Reading(max_tokens=None, buffer_tokens=500, batch_rows=4, dtype="float32", seed=1)
    given = (reading, path, tmp_path / "checkpoints" / "state", None, 0, {"name": "own/a"})
    facts = stream_saes("a", tiny.models["a"], list(map(str, tokens)), PLACES, saes, starts, *given)
    assert facts["vocabulary"]["unshared"] == {}
    assert facts["dtype"] == "float32"
    return path


def test_the_archive_holds_the_folders_of_all_saes_and_no_time(bundle):
    with tarfile.open(bundle) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == sorted(
        f"{sae}/{file}" for sae in ("early/seed0", "late/seed0", "late/from_base") for file in FILES
    )
    assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}


def test_an_sae_is_taken_out_and_says_what_it_was_trained_on(bundle, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()  # as Snakemake does
    unpack_sae(bundle, "late/from_base", folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    sae, config = load_sae(folder), json.loads((folder / "cfg.json").read_text())
    assert (sae.d_in, sae.d_sae, sae.k) == (32, 64, 6)  # size and k of its start
    metadata = config["metadata"]
    assert (metadata["hook_name"], metadata["model_name"], metadata["context_size"]) == ("model.layers.1", "own/a", 16)
    of_run = metadata["saelineage"]
    assert (of_run["model"], of_run["sae"], of_run["hookpoint"]) == ("a", "from_base", PLACES["late"])
    assert (of_run["kept"], of_run["starts"], of_run["n_tokens_left_out"]) == ({"k": 6}, [str(tmp_path / "start")], 0)
    assert (folder / "training.csv").read_text().splitlines()[-1].startswith("10,640,")


def test_the_model_is_opened_in_the_number_format_that_the_config_says(tiny, tmp_path):
    load_model(tiny.models["a"]).to(torch.bfloat16).save_pretrained(tmp_path / "rounded")
    saes = {"late": {"seed0": SAE_SETTINGS | {"n_tokens": 64, "batch_tokens": 64, "k": 4}}}
    opened = {}
    for model_dtype in ("weights", "float32"):
        reading = Reading(None, buffer_tokens=500, batch_rows=4, dtype="float32", seed=1, model_dtype=model_dtype)
        given = (reading, tmp_path / "1.tar", tmp_path / "checkpoints" / "state", None, 0)
        tokens = [str(tiny.tokens["words"]["train"])]
        places = {"late": PLACES["late"]}
        facts = stream_saes("a", tmp_path / "rounded", tokens, places, saes, {"late": {"seed0": []}}, *given)
        opened[model_dtype] = facts["dtype"]
    assert opened == {"weights": "bfloat16", "float32": "float32"}
