"""The number format that models are measured in, and that measurements in 16 bits come close to those in 32."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saelineage.lineage.ablations import group_effects
from saelineage.lineage.attributions import attributed_effects
from saelineage.models.divergences import divergence_sums
from saelineage.models.loading import evaluate, open_model, weights_sha256
from saelineage.precision import is_native, opened_dtype, widest
from saelineage.saes.metrics import measure, measure_clean, report
from saelineage.saes.sae import Sae
from saelineage.tokens import TokenRows

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HOOKPOINT = "model.layers.0.mlp.down_proj.input"


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bfloat16 weights."""
    folder = shutil.copytree(tiny.models["a"], tmp_path_factory.mktemp("bf16") / "copy")
    weights = load_file(folder / "model.safetensors")
    save_file({name: of.bfloat16() for name, of in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def rows(tiny) -> TokenRows:
    return TokenRows(tiny.tokens["words"]["validation"])


def test_auto_takes_the_files_format_where_the_device_computes_in_it(monkeypatch: pytest.MonkeyPatch):
    for has_bf16 in (True, False):
        monkeypatch.setattr("saelineage.precision.native_bf16", lambda device, has_bf16=has_bf16: has_bf16)
        assert opened_dtype("auto", torch.bfloat16, CUDA) == (torch.bfloat16 if has_bf16 else torch.float32)
    assert opened_dtype("auto", torch.float16, CUDA) == torch.float16
    assert opened_dtype("auto", torch.float16, CPU) == torch.float32
    for stored in (torch.bfloat16, torch.float16, torch.float32):
        assert opened_dtype("weights", stored, CPU) == stored
        assert opened_dtype("float32", stored, CUDA) == torch.float32
    assert opened_dtype("auto", torch.float64, CUDA) == torch.float32


def test_the_widest_format_holds_all_numbers():
    assert widest([torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=int)]) == torch.float32
    assert widest([torch.zeros(1).half(), torch.zeros(1).bfloat16()]) == torch.float32
    assert widest([torch.zeros(1).bfloat16()]) == torch.bfloat16


def test_a_model_is_opened_as_the_setting_says_and_its_digest_does_not_depend_on_it(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    opened = {setting: open_model(folder, CPU, setting) for setting in ("auto", "weights", "float32")}
    by_hardware = torch.bfloat16 if is_native(torch.bfloat16, CPU) else torch.float32
    formats = {setting: model.dtype for setting, model in opened.items()}
    assert formats == {"auto": by_hardware, "weights": torch.bfloat16, "float32": torch.float32}
    assert len({weights_sha256(model) for model in opened.values()}) == 1
    assert f"'{folder}' is opened in torch.bfloat16" in caplog.text


def test_measurements_in_bfloat16_come_close_to_those_in_float32(folder: Path, rows: TokenRows, model):
    sae = Sae("topk", 48, 60, 8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 7)
    few = {"words": rows}
    reports, ablated, attributed, diverged = [], [], [], []
    for setting in ("float32", "weights"):
        opened = open_model(folder, CPU, setting)
        clean = measure_clean(opened, {HOOKPOINT: [sae.max_norm]}, rows, 8)
        reports.append(report(measure(opened, {"": sae}, HOOKPOINT, rows, 8, clean)[""]))
        assert clean.losses.means() == evaluate(opened, rows, 8)
        table = group_effects(opened, sae, HOOKPOINT, few, {"all": np.arange(60)}, 8, 8)
        ablated.append(table["loss_change"].item())
        attributed.append(attributed_effects(opened, sae, HOOKPOINT, few, 8, 8).sums[0])
        diverged.append(divergence_sums((model, opened), (rows, rows), range(300), 8, 16).means()["kl"])
    for metric in ("ce_clean", "ce_spliced", "ce_ablated", "ce_mean_ablated", "fvu", "l0"):
        assert reports[1][metric] == pytest.approx(reports[0][metric], rel=0.01)
    assert ablated[1] == pytest.approx(ablated[0], rel=0.1)
    assert np.corrcoef(attributed)[0, 1] > 0.99
    assert all(kl == pytest.approx(0, abs=1e-3) for kl in diverged)
