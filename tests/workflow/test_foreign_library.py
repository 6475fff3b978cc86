"""A workflow uses the library of its own checkout, whatever is installed."""

from pathlib import Path

from tests.workflow.conftest import Checkout


def test_the_library_of_another_checkout_is_refused_with_one_clear_line(tmp_path: Path):
    checkout, foreign = Checkout(tmp_path / "checkout"), tmp_path / "foreign"
    (foreign / "saelineage").mkdir(parents=True)
    (foreign / "saelineage" / "__init__.py").touch()
    done = checkout.snakemake("--dry-run", library=foreign)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if str(foreign) in line]
    assert line.startswith("saelineage must be this checkout's own library")
    assert f"pip install -e '{checkout.folder}'" in line
