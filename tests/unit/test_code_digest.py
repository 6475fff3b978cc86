"""The code digest changes with what code means, not with how it is written, and follows imports."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import saelineage
from saelineage import code_digest as module
from saelineage.code_digest import code_digest, reached_files

FILES = {
    "train.py": "from saelineage.saes import train\n\n\ndef run():\n    return train()\n",
    "other.py": "import json\nfrom pathlib import Path\n\nprint(json, Path)\n",
    "plain.py": "import saelineage.figures\n",
    "both.py": "from saelineage import saes as s, maths\n",
    "inside.py": "def run():\n    from saelineage.figures import draw\n\n    return draw()\n",
    "deep.py": "from saelineage.samples.lua import document\n",
    "whole.py": "from saelineage.samples import lua\n",
    "saelineage/__init__.py": '"""The package."""\n',
    "saelineage/saes.py": "from saelineage.maths import add\n\n\ndef train():\n    return add(1, 2)\n",
    "saelineage/maths.py": "def add(a, b):\n    return a + b\n",
    "saelineage/figures.py": "def draw():\n    return 1\n",
    "saelineage/samples/__init__.py": "KINDS = 1\n",
    "saelineage/samples/lua.py": "from saelineage import maths\n\n\ndef document():\n    return 'lua'\n",
}


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(module, "SCRIPTS", tmp_path)
    monkeypatch.setattr(module, "KEPT", tmp_path / "kept" / "code.json")
    another_process()
    return tmp_path


def another_process() -> None:
    """Forget everything but what is kept in a file."""
    module._read.cache_clear()
    module._kept.cache_clear()


def digest_after(path: Path, old: str, new: str, script: str = "train") -> str:
    """The digest of a script once one file has been edited."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    another_process()
    return code_digest(script)


def reached(scripts: Path, script: str) -> list[str]:
    return sorted(path.relative_to(scripts).as_posix() for path in reached_files(scripts / f"{script}.py"))


@pytest.mark.parametrize(
    ("script", "files"),
    [
        ("train", ["saelineage/__init__.py", "saelineage/maths.py", "saelineage/saes.py", "train.py"]),
        ("other", ["other.py"]),
        ("plain", ["plain.py", "saelineage/__init__.py", "saelineage/figures.py"]),
        ("both", ["both.py", "saelineage/__init__.py", "saelineage/maths.py", "saelineage/saes.py"]),
        ("inside", ["inside.py", "saelineage/__init__.py", "saelineage/figures.py"]),
        (
            "deep",
            [
                "deep.py",
                "saelineage/__init__.py",
                "saelineage/maths.py",
                "saelineage/samples/__init__.py",
                "saelineage/samples/lua.py",
            ],
        ),
        (
            "whole",
            [
                "saelineage/__init__.py",
                "saelineage/maths.py",
                "saelineage/samples/__init__.py",
                "saelineage/samples/lua.py",
                "whole.py",
            ],
        ),
    ],
)
def test_imports_are_followed_to_every_file_and_to_no_other(scripts: Path, script: str, files: list[str]):
    assert reached(scripts, script) == files


def test_modules_that_import_each_other_are_each_read_once(scripts: Path):
    (scripts / "saelineage" / "maths.py").write_text("from saelineage import saes\n")
    assert reached(scripts, "train") == [
        "saelineage/__init__.py",
        "saelineage/maths.py",
        "saelineage/saes.py",
        "train.py",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    return add(1, 2)", "    return add(1, 2)  # three"),
        ("    return add(1, 2)", "    # three\n\n    return add(\n        1,\n        2,\n    )"),
        ("    return add(1, 2)", '    """Train.\n\n    At length.\n    """\n    return add(1, 2)'),
        ("from saelineage", '"""A module."""\n\nfrom saelineage'),
        ("return add(1, 2)", "return (add(0x1, 2))"),
    ],
)
def test_comments_docstrings_and_layout_do_not_change_it(scripts: Path, old: str, new: str):
    before = code_digest("train")
    assert digest_after(scripts / "saelineage" / "saes.py", old, new) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("train.py", "return train()", "return train() + 1"),
        ("saelineage/saes.py", "add(1, 2)", "add(1, 3)"),
        ("saelineage/saes.py", "return add(1, 2)", "return 'add(1, 2)'"),
        ("saelineage/maths.py", "a + b", "a - b"),
        ("saelineage/__init__.py", '"""The package."""', "SEED = 1"),
    ],
)
def test_an_edit_of_the_code_changes_it_wherever_the_script_reaches(scripts: Path, file: str, old: str, new: str):
    before = code_digest("train")
    assert digest_after(scripts / file, old, new) != before


def test_an_edit_of_a_module_that_is_not_reached_does_not_change_it(scripts: Path):
    before = code_digest("train")
    assert digest_after(scripts / "saelineage" / "figures.py", "return 1", "return 2") == before


def test_a_text_that_is_no_docstring_counts(scripts: Path):
    before = code_digest("deep")
    assert digest_after(scripts / "saelineage" / "samples" / "lua.py", "'lua'", "'moon'", "deep") != before


def test_moving_code_from_one_module_to_another_changes_it(scripts: Path):
    before = code_digest("train")
    shutil.move(scripts / "saelineage" / "maths.py", scripts / "saelineage" / "sums.py")
    assert digest_after(scripts / "saelineage" / "saes.py", "saelineage.maths", "saelineage.sums") != before


def test_the_digest_does_not_depend_on_where_the_project_lies(scripts: Path, tmp_path_factory: pytest.TempPathFactory):
    before = code_digest("train")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "scripts"
    shutil.copytree(scripts, elsewhere)
    module.SCRIPTS = elsewhere
    assert code_digest("train") == before
    assert len(before) == 16


def test_a_file_whose_content_is_known_is_not_parsed_again(scripts: Path, monkeypatch: pytest.MonkeyPatch):
    before = code_digest("train")
    another_process()
    monkeypatch.setattr(module.ast, "parse", None)  # which no one can call
    assert code_digest("train") == before
    with pytest.raises(TypeError):
        code_digest("deep")


@pytest.mark.parametrize("kept", ["", "{", "[]", "7", '{"a": 1}', '{"a": [1, 2]}', "\xff"])
def test_what_was_kept_and_is_damaged_is_found_anew(scripts: Path, kept: str):
    before = code_digest("train")
    module.KEPT.write_text(kept, encoding="latin-1")
    another_process()
    assert code_digest("train") == before


def test_old_findings_are_thrown_away(scripts: Path, monkeypatch: pytest.MonkeyPatch):
    code_digest("train")
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    another_process()
    assert module._kept() == {}


def test_where_nothing_can_be_kept_the_digest_is_the_same(scripts: Path, monkeypatch: pytest.MonkeyPatch):
    before = code_digest("train")
    (scripts / "file").touch()
    monkeypatch.setattr(module, "KEPT", scripts / "file" / "code.json")
    another_process()
    assert code_digest("train") == before


def test_a_script_that_is_not_there_is_an_error(scripts: Path):
    with pytest.raises(FileNotFoundError, match=r"nobody\.py"):
        code_digest("nobody")


def test_the_real_digest_is_the_same_in_another_process():
    another_process()
    folder = Path(saelineage.__file__).parent.parent
    command = "from saelineage.code_digest import code_digest; print(code_digest('prepare_corpus'))"
    environment = {"PYTHONPATH": str(folder), "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == code_digest("prepare_corpus")


def test_preparing_a_corpus_does_not_depend_on_how_models_are_trained():
    folder = Path(saelineage.__file__).parent.parent
    names = {path.stem for path in reached_files(folder / "prepare_corpus.py")}
    assert {"prepare_corpus", "corpora", "files", "lua", "manifests", "logs"} <= names
    assert not names & {"training", "saes", "models", "tokens", "graph", "config"}
