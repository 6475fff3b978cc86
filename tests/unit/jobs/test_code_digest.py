"""The code digest changes with what code computes, not with how it is written or where it lies, and follows imports."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import saelineage
from saelineage.jobs import code_digest as module
from saelineage.jobs.code_digest import code_digest, imported_modules, written

FILES = {
    "train.py": """
        from typing import TYPE_CHECKING
        from saelineage.saes import train
        from saelineage.locks import hold
        if TYPE_CHECKING:
            from saelineage import figures

        def run():
            with hold():
                return train()
    """,
    "inside.py": """
        def run():
            from saelineage.figures import draw
            return draw()
    """,
    "both.py": """
        from saelineage import maths, saes as s
        def run(): return s.train() + maths.add(1, 2)
    """,
    "deep.py": "from saelineage.samples.lua import document\n",
    "saelineage/__init__.py": '"""The package."""\n',
    "saelineage/saes.py": """
        import logging
        from saelineage.maths import add
        logger = logging.getLogger(__name__)

        def train():
            logger.info("training")
            if add(0, 0) != 0:
                raise ValueError("sums are wrong")
            return add(1, 2)
    """,
    "saelineage/maths.py": "def add(a, b):\n    return a + b\n",
    "saelineage/locks.py": "from saelineage import figures\nDECIDES_RESULTS = False\nSECONDS = 7\n",
    "saelineage/figures.py": "def draw():\n    return 1\n",
    "saelineage/samples/__init__.py": '"""Samples."""\n',
    "saelineage/samples/lua.py": "from saelineage import maths\n\n\ndef document():\n    return maths.add('l', 'ua')\n",
}


def unindented(text: str) -> str:
    return text.replace("\n        ", "\n").lstrip("\n") if text.startswith("\n") else text


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(unindented(text))
    monkeypatch.setattr(module, "SCRIPTS", tmp_path)
    monkeypatch.setattr(module, "KEPT", tmp_path / "kept" / "code.json")
    start_anew()
    yield tmp_path
    start_anew()


def start_anew() -> None:
    """Forget everything but what is kept in a file, as another process would."""
    for cached in (module._digest, module._read, module._kept):
        cached.cache_clear()


def digest_after(path: Path, old: str, new: str, script: str = "train") -> str:
    """The digest of a script once one file has been edited."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    start_anew()
    return code_digest(script)


def reached_files(script: Path) -> set[Path]:
    """A script and the library files that decide its results, imported directly or through others."""
    reached: set[Path] = set()
    left_to_visit = [script]
    while left_to_visit:
        path = left_to_visit.pop()
        meaning = module.meaning_of(path.read_bytes())
        if path not in reached and meaning.decides_results:
            reached.add(path)
            files = [module.SCRIPTS.joinpath(*name.split(".")) for name in imported_modules(meaning)]
            left_to_visit += [file / "__init__.py" if file.is_dir() else file.with_suffix(".py") for file in files]
    return reached


def reached(scripts: Path, script: str) -> list[str]:
    return sorted(path.relative_to(scripts).as_posix() for path in reached_files(scripts / f"{script}.py"))


@pytest.mark.parametrize(
    ("script", "files"),
    [
        ("train", ["saelineage/maths.py", "saelineage/saes.py", "train.py"]),
        ("both", ["both.py", "saelineage/maths.py", "saelineage/saes.py"]),
        ("inside", ["inside.py", "saelineage/figures.py"]),
        ("deep", ["deep.py", "saelineage/maths.py", "saelineage/samples/lua.py"]),
    ],
)
def test_imports_are_followed_to_every_file_that_decides_results(scripts: Path, script: str, files: list[str]):
    assert reached(scripts, script) == files


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return add(1, 2)", "# three\n\n    return add(\n        1,\n        2,\n    )"),
        ("def train():", 'def train():\n    """Train.\n\n    At length.\n    """'),
        ("import logging", '"""A module."""\n\nimport logging'),
        ("return add(1, 2)", "return (add(0x1, 2))"),
        ("def train():", "def train() -> int:"),
        ('logger.info("training")', 'logger.info("training SAEs", 7)'),
        ('ValueError("sums are wrong")', 'ValueError("sums are wrong: repair the processor") from None'),
    ],
)
def test_comments_layout_annotations_and_messages_do_not_change_it(scripts: Path, old: str, new: str):
    before = code_digest("train")
    assert digest_after(scripts / "saelineage" / "saes.py", old, new) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("train.py", "return train()", "return train() + 1"),
        ("saelineage/saes.py", "add(1, 2)", "add(1, 3)"),
        ("saelineage/saes.py", "return add(1, 2)", "return 'add(1, 2)'"),
        ("saelineage/saes.py", "!= 0", "!= 1"),
        ("saelineage/saes.py", "raise ValueError(", "raise KeyError("),
        ("saelineage/maths.py", "a + b", "a - b"),
    ],
)
def test_an_edit_of_the_code_changes_it_wherever_the_script_reaches(scripts: Path, file: str, old: str, new: str):
    before = code_digest("train")
    assert digest_after(scripts / file, old, new) != before


def test_modules_that_say_so_decide_no_result_nor_does_what_they_import(scripts: Path):
    before = code_digest("train")
    assert digest_after(scripts / "saelineage" / "locks.py", "SECONDS = 7", "SECONDS = 8") == before
    assert digest_after(scripts / "saelineage" / "figures.py", "return 1", "return 2") == before
    assert digest_after(scripts / "saelineage" / "locks.py", "RESULTS = False", "RESULTS = True") != before


def test_moving_or_renaming_a_module_does_not_change_it(scripts: Path):
    before = {script: code_digest(script) for script in ("train", "both", "deep")}
    (scripts / "saelineage" / "arithmetic").mkdir()
    shutil.move(scripts / "saelineage" / "maths.py", scripts / "saelineage" / "arithmetic" / "sums.py")
    for path, old, new in [
        ("saelineage/saes.py", "from saelineage.maths", "from saelineage.arithmetic.sums"),
        ("both.py", "import maths, saes as s", "import saes as s\nfrom saelineage.arithmetic import sums"),
        ("both.py", "maths.add", "sums.add"),
        ("saelineage/samples/lua.py", "from saelineage import maths", "from saelineage.arithmetic import sums"),
        ("saelineage/samples/lua.py", "maths.add", "sums.add"),
    ]:
        digest_after(scripts / path, old, new)
    assert {script: code_digest(script) for script in before} == before


def test_swapping_two_modules_changes_it(scripts: Path):
    before = code_digest("both")
    assert (
        digest_after(scripts / "both.py", "s.train() + maths.add(1, 2)", "maths.train() + s.add(1, 2)", "both")
        != before
    )


@pytest.mark.parametrize("line", ["import saelineage.maths", "from . import maths", "from saelineage.nowhere import x"])
def test_imports_that_cannot_be_followed_are_errors(scripts: Path, line: str):
    (scripts / "saelineage" / "saes.py").write_text(f"{line}\n\n\ndef train():\n    return 3\n")
    with pytest.raises(ValueError, match="import"):
        code_digest("train")


def test_a_circle_of_imports_is_an_error(scripts: Path):
    (scripts / "saelineage" / "maths.py").write_text("from saelineage import saes\nprint(saes)\n")
    with pytest.raises(ValueError, match=r"train\.py.*circle"):
        code_digest("train")


def test_the_digest_does_not_depend_on_where_the_project_lies(scripts: Path, tmp_path_factory: pytest.TempPathFactory):
    before = code_digest("train")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "scripts"
    shutil.copytree(scripts, elsewhere)
    module.SCRIPTS = elsewhere
    start_anew()
    assert code_digest("train") == before
    assert len(before) == 16


def test_a_file_whose_content_is_known_is_not_parsed_again(scripts: Path, monkeypatch: pytest.MonkeyPatch):
    before = code_digest("train")
    start_anew()
    monkeypatch.setattr(module.ast, "parse", None)  # calling it fails
    assert code_digest("train") == before
    with pytest.raises(TypeError):
        code_digest("deep")


@pytest.mark.parametrize("kept", ["{", "[]", '{"a": 1}', '{"a": [1, 2, 3, 4]}', "\xff"])
def test_kept_digests_that_are_damaged_are_made_anew(scripts: Path, kept: str):
    before = code_digest("train")
    module.KEPT.write_text(kept, encoding="latin-1")
    start_anew()
    assert code_digest("train") == before


def test_where_nothing_can_be_kept_the_digest_is_the_same(scripts: Path, monkeypatch: pytest.MonkeyPatch):
    before = code_digest("train")
    (scripts / "file").touch()
    monkeypatch.setattr(module, "KEPT", scripts / "file" / "code.json")
    start_anew()
    assert code_digest("train") == before


def test_a_script_that_is_not_there_is_an_error(scripts: Path):
    with pytest.raises(FileNotFoundError, match=r"nobody\.py"):
        code_digest("nobody")


def test_the_real_digest_is_the_same_in_another_process():
    start_anew()
    folder = Path(saelineage.__file__).parent.parent
    command = f"from {module.__name__} import code_digest; print(code_digest('prepare_corpus'))"
    environment = {"PYTHONPATH": str(folder), "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == code_digest("prepare_corpus")


def test_preparing_a_corpus_depends_on_samples_and_not_on_training_or_plumbing():
    folder = Path(saelineage.__file__).parent.parent
    names = {path.stem for path in reached_files(folder / "prepare_corpus.py")}
    assert {"prepare_corpus", "atomic", "lua", "hub"} <= names
    assert not names & {
        "training",
        "saes",
        "models",
        "tokens",
        "graph",
        "config",
        "manifests",
        "logs",
        "locks",
        "errors",
    }


PINNED = '''"""A module."""

import math
from collections.abc import Callable

NAMES = {"a": 1.5, **{}, 'é': b"\\x00"}


class Wave(Callable[[int], float]):
    """A wave."""

    scale: float = 2e3

    async def at(self, x: int, /, *rest, base=None, **more) -> float:
        """Its height."""
        if not (0 <= x < 9 or ...):
            raise ValueError(f"{x!r} is {x:>{x}} far")
        return [self.scale * math.sin(y) ** 1j for y in rest if y][::-1]


def sign(x):
    match x:
        case None | {"a": [0, *_]}:
            return lambda: (yield)
        case _:
            return f"{x=}" "b"
'''
PINNED_SHA256 = "2dd5426f63c1059a6e9b0ce42713580cb4abf0e41f5ad52b50a8b8a556f9b9dc"


def test_the_digest_of_a_module_is_the_same_in_every_version_of_python():
    # Equal in 3.11, 3.12 and 3.13, whose `ast.dump` differ.
    assert module.meaning_of(PINNED.encode()).tree_sha256 == PINNED_SHA256


def test_fields_that_a_version_does_not_have_or_leaves_empty_are_equal():
    absent, none, empty = (ast.parse("def f(x): return x") for _ in range(3))
    none.body[0].type_params = None
    empty.body[0].type_params = []
    for tree in (none, empty):
        tree.body[0]._fields = (*ast.FunctionDef._fields, "type_params")
        assert written(tree) == written(absent)
    full = ast.parse("def f(x): return x")
    full.body[0]._fields = (*ast.FunctionDef._fields, "type_params")
    full.body[0].type_params = [ast.Name("T", ast.Load())]
    assert written(full) != written(absent)


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("1", "1.0"),
        ("1", "True"),
        ("'1'", "1"),
        ("'a'", "b'a'"),
        ("None", "..."),
        ("[]", "()"),
        ("f(*a)", "f(**a)"),
        ("{**a}", "{a}"),
        ("def f(*, a, b=1): x", "def f(*, a=1, b): x"),
        ("x[a:]", "x[:a]"),
        ("'\\ud800'", "'\\ud801'"),
        ("from a import b", "from .a import b"),
    ],
)
def test_code_of_another_meaning_is_written_otherwise(one: str, another: str):
    assert json.dumps(written(ast.parse(one))) != json.dumps(written(ast.parse(another)))


def test_plumbing_is_marked_and_nothing_else_is():
    folder = Path(saelineage.__file__).parent
    mentioning = [path for path in folder.rglob("*.py") if module.MARK in path.read_text()]
    marked = {path.stem for path in mentioning if not module.meaning_of(path.read_bytes()).decides_results}
    plumbing = {"benchmark", "checkpoints", "code_digest", "commands", "errors", "gpus", "job", "launcher"}
    assert marked == plumbing | {"launcher_client", "locks", "manifests", "session", "targets"}
