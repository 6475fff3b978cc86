"""Folders as they lie on disk: links into a shared store."""

from pathlib import Path

import pytest

from import_model import import_model
from saelineage.errors import InputError


def test_a_folder_of_links_is_imported_only_where_its_user_says_that_they_are_followed(tiny, tmp_path: Path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in tiny.models["a"].iterdir():
        (linked / path.name).symlink_to(path.resolve())
    block = {"folder": str(linked), "dequantise": False, "follow_links": False}
    with pytest.raises(InputError, match="is a link that leads out of"):
        import_model(block, "far", 16, tiny.tokenizer, tmp_path / "refused")
    import_model(block | {"follow_links": True}, "far", 16, tiny.tokenizer, tmp_path / "taken")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "taken", tiny.models["a"])]
    assert weights[0] == weights[1]
    with pytest.raises(InputError, match="is a link that leads out of"):  # not beyond the one import
        import_model(block, "far", 16, tiny.tokenizer, tmp_path / "refused")
