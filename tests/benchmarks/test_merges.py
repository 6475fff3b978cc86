"""benchmarks/merges.py: the sizes of its models and what it makes of times and memory."""

import math
import subprocess
import sys

import pytest
from benchmarks.merges import best, llama_shapes, mergekit_config, summarise
from benchmarks.peak_memory import PeakMemory


@pytest.mark.parametrize("megabytes", [20, 1000])
def test_a_model_has_about_the_megabytes_that_were_asked_for(megabytes):
    config, shapes = llama_shapes(megabytes)
    assert 4e-6 * sum(map(math.prod, shapes.values())) == pytest.approx(megabytes, rel=0.1)
    assert len(shapes) == 9 * config["num_hidden_layers"] + 3


def test_ties_differ_from_the_base_and_slerp_starts_at_the_first_parent(tmp_path):
    assert mergekit_config("ties", tmp_path)["base_model"] == str(tmp_path / "base")
    assert mergekit_config("slerp", tmp_path)["base_model"] == str(tmp_path / "a")
    assert "base_model" not in mergekit_config("linear", tmp_path)


def test_of_all_rounds_the_smallest_time_and_the_largest_memory_count():
    rounds = [{"clock_s": 3.0, "peak_own_gb": 1.0}, {"clock_s": 2.0, "peak_own_gb": 1.5}]
    assert best(rounds) == {"clock_s": 2.0, "peak_own_gb": 1.5}


def test_half_the_time_and_a_quarter_of_the_memory_make_2_and_a_quarter():
    figures = {
        "copy": {"clock_s": 1.0},
        "mergekit ties": {"clock_s": 6.0, "cpu_s": 10.0, "peak_own_gb": 2.0},
        "ours ties": {"clock_s": 3.0, "cpu_s": 4.0, "peak_own_gb": 0.5},
    }
    summary = summarise(figures, ["ties"])
    assert summary["vs_mergekit"] == {"ties": {"clock": 2.0, "cpu": 2.5}}
    assert summary["memory_ratio"] == {"ties": 0.25}
    assert summary["vs_copy"] == {"ties": 3.0}


def test_the_memory_of_another_process_is_its_own_without_the_pages_of_files(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 20))
    code = f"import mmap, time; a = bytearray(b'1') * (32 << 20); f = open({str(path)!r}, 'rb')\n"
    code += "m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); sum(m[::4096]); time.sleep(0.2)"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        memory = PeakMemory(process.pid)
        memory.start()
        process.wait()
    own = memory.stop()
    assert 32 << 20 < own < 60 << 20
    assert memory.peak_rss > own + (64 << 20)
