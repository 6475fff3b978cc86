"""Published SAEs that a config names as SAELens does, turned into the hub repositories that hold them."""

from collections.abc import Iterator

from saelineage.foreign.releases import resolve


def name_sources(config: dict) -> None:
    """Replace, in place, each `import` block with a release of SAELens by one that names the repository.

    Everything after this knows the keys of hub repositories only.

    Args:
        config: a config with its defaults filled in.

    Raises:
        InputError: if there is no such release or SAE, or it cannot be imported.
    """
    for holder, key in _holders(config["saes"], "saes"):
        block = holder.get("import")
        if isinstance(block, dict) and "saelens" in block:
            holder["import"] = resolve(block, f"{key}.import")


def _holders(block: dict, key: str) -> Iterator[tuple[dict, str]]:
    """Yield the mappings that may hold an `import` block: of all SAEs, a hookpoint's, a model's, and one SAE's."""
    yield block, key
    for name, of_hookpoint in block.get("hookpoints", {}).items():
        yield from _holders(of_hookpoint, f"{key}.hookpoints.{name}")
    for name, of_model in block.get("models", {}).items():
        yield of_model, f"{key}.models.{name}"
        for sae, of_sae in of_model.items():
            if isinstance(of_sae, dict) and sae != "import":
                yield of_sae, f"{key}.models.{name}.{sae}"
