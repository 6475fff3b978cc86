"""Jobs of a run that imports SAEs."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.workflow.conftest import TINY, Checkout

SAES = "saes: {expansion_factor: 4, k: 8, batch_tokens: 512, seeds: [0, 1]}"


@pytest.fixture
def jobs(tmp_path: Path):
    """List the jobs of a run from nothing, given the `saes` block of its config."""
    checkout = Checkout(tmp_path)
    theirs = checkout.folder / "theirs"
    theirs.mkdir()
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "model.layers.0.mlp.down_proj.input"}
    config = {"architecture": "topk", "k": 8, "d_in": 32, "d_sae": 128, "metadata": metadata}
    (theirs / "cfg.json").write_text(json.dumps(config))
    shapes = {"W_enc": (32, 128), "W_dec": (128, 32), "b_enc": (128,), "b_dec": (32,)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, theirs / "sae_weights.safetensors")

    def planned(saes: str) -> set[tuple[str, str]]:
        tiny = TINY.read_text()
        assert SAES in tiny
        assert "[anchored]" in tiny
        checkout.config.write_text(tiny.replace(SAES, saes).replace("[anchored]", "[independent]"))
        return checkout.stale_jobs()

    return planned


def test_exactly_the_saes_with_an_import_are_imported(jobs):
    planned = jobs(
        "saes: {k: 8, seeds: [0, 1], models: {base: {seed1: {import: {folder: theirs}}}, "
        "left: {import: {repo: a/b, revision: main}, seed0: {import: null}}}}"
    )
    assert {job for rule, job in planned if rule == "import_sae"} == {"mlp.base.seed1", "mlp.left.seed1"}
    assert {job for rule, job in planned if rule == "train_sae"} == {
        *(
            "mlp.base.seed0",
            "mlp.left.seed0",
            "mlp.right.seed0",
            "mlp.right.seed1",
            "mlp.merged.seed0",
            "mlp.merged.seed1",
        )
    }


def test_if_all_saes_are_imported_no_train_split_is_dumped(jobs):
    rules = {rule for rule, _ in jobs("saes: {seeds: [0], import: {folder: theirs}}")}
    assert {"import_sae", "dump_probe", "write_report"} <= rules
    assert not rules & {"train_sae", "dump_activations"}
