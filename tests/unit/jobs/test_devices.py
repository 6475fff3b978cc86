"""Threads and devices of jobs."""

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from saelineage.jobs import devices, gpus
from saelineage.jobs.devices import pick_device, prepare_cpu
from saelineage.jobs.gpus import noted_device, torch_without_cuda
from saelineage.precision import native_bf16


@pytest.fixture
def threads() -> Iterator[None]:
    """Torch's number of threads, given back afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class OtherLibrary:
    """A C library without mallopt."""

    def __init__(self, name: None):
        """As ctypes.CDLL(None)."""


def test_torch_gets_the_threads_of_the_job(threads, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", OtherLibrary)  # this process keeps its allocator as it is
    for n in (2, 1):
        prepare_cpu(n)
        assert torch.get_num_threads() == n


def test_glibc_is_told_to_keep_memory_and_takes_both_settings(threads, monkeypatch):
    told = []

    class Glibc:
        def __init__(self, name: None):
            self.mallopt = lambda *setting: told.append(setting)

    monkeypatch.setattr(ctypes, "CDLL", Glibc)
    prepare_cpu(1)
    assert dict(told).keys() == {-1, -3}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    monkeypatch.undo()
    code = (
        f"import ctypes; c = ctypes.CDLL(None); print([c.mallopt(*s) if hasattr(c, 'mallopt') else 1 for s in {told}])"
    )
    accepted = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert accepted.stdout.strip() == "[1, 1]"


def test_a_job_runs_on_the_gpu_that_it_was_given_and_only_training_may_round_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    set_to = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set_to.append)
    assert pick_device(0, may_round=True) == torch.device("cpu")
    assert (noted_device(), set_to) == ("cpu", [])
    assert pick_device(1) == pick_device(1, may_round=True) == torch.device("cuda")
    assert (noted_device(), set_to) == ("cuda (Some GPU)", ["highest", "high"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(1) == torch.device("cpu")
    assert noted_device() == "cpu"


def fails() -> None:
    raise RuntimeError("The NVIDIA driver on your system\nis too old")


@pytest.mark.parametrize(
    ("has_driver", "cuda", "init", "said"),
    [
        (0, None, None, "there is no NVIDIA driver here (/dev/nvidiactl); set gpu: 0 in the profile"),
        (1, None, None, "the torch that is installed was built without CUDA and cannot use it; install the build"),
        (1, "12.6", fails, "torch for CUDA 12.6 says: The NVIDIA driver on your system is too old; compare with"),
        (1, "12.6", lambda: None, "torch for CUDA 12.6 finds none among CUDA_VISIBLE_DEVICES; compare with nvidia-smi"),
    ],
    ids=["no driver", "torch for CPUs", "old driver", "none visible"],
)
def test_a_gpu_that_cannot_be_used_is_warned_of_with_the_reason(has_driver, cuda, init, said, monkeypatch, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "visible_gpus", lambda: has_driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    pick_device(1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the job was given a GPU and computes on the CPU: ")
    assert said in line
    pick_device(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as docs/cluster.md says to keep a run off the GPU
    pick_device(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "is_said"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", True),
        ("cuda: Optional[str] = '12.6'\nhip: Optional[str] = None\n", False),
    ],
    ids=["for CPUs", "for CUDA"],
)
def test_a_torch_without_cuda_beside_a_driver_is_said_at_the_start(text, is_said, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "version.py").write_text(text)
    monkeypatch.setattr(gpus.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "a.py")))
    assert torch_without_cuda() is None  # no driver
    monkeypatch.setattr(gpus, "visible_gpus", lambda: 1)
    assert (torch_without_cuda() is not None) == is_said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert torch_without_cuda() is None


def test_the_installed_torch_s_own_words_are_understood(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "visible_gpus", lambda: 1)
    assert (torch_without_cuda() is not None) == (torch.version.cuda is None)


def test_bfloat16_is_native_where_the_processor_multiplies_it(monkeypatch):
    for avx, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert native_bf16(torch.device("cpu")) == (avx or amx)


def test_a_training_that_was_promised_a_gpu_in_vain_runs_on_the_cpu(tiny, training_settings, tmp_path, monkeypatch):
    from saelineage.models.loading import load_model
    from saelineage.models.training import train_on
    from saelineage.tokens import TokenRows

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = {"words": TokenRows(tiny.tokens["words"]["train"])}
    model = train_on(
        load_model(tiny.models["a"]), rows, training_settings | {"n_tokens": 4 * 16}, tmp_path, pick_device(1)
    )
    assert model.device == torch.device("cpu")
