"""Threads and devices of jobs."""

import ctypes
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from saelineage.jobs.devices import pick_device, prepare_cpu
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


def test_without_a_gpu_for_the_job_it_runs_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(0) == torch.device("cpu")
    assert pick_device(1) == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(1) == torch.device("cpu")


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
