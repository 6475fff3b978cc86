"""Make the table of SAELens's releases (`saelineage.foreign.releases`) and compare it with SAELens's own look-up.

    python -m benchmarks.saelens_releases [--write] [--json FILE]

Run it in a separate environment, with this project (`pip install -e .`) and benchmarks/requirements.txt. `--write`
makes the table anew, with the same bytes for the same version of SAELens.
"""

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import files, version
from pathlib import Path

import yaml

from saelineage.errors import InputError
from saelineage.foreign.releases import LOADERS, TABLE, no_sae, releases, resolve

# SAELens imports torchvision if it is installed, and fails if its build does not match torch's.
sys.modules["torchvision"] = None  # type: ignore[assignment]  # None makes imports fail, as Python documents

LICENCE = TABLE.with_name("saelens_releases.LICENSE")


def registry() -> dict:
    """SAELens's registry, as its file holds it."""
    return yaml.load(_file_of_saelens("pretrained_saes.yaml").read_bytes(), Loader=yaml.CSafeLoader)


def table(of_saelens: Mapping) -> dict:
    """The table of a registry."""
    return {
        "saelens": version("sae-lens"),
        "licence": "made from SAELens's pretrained_saes.yaml, MIT licence; see saelens_releases.LICENSE",
        "releases": {name: _release(of_saelens[name]) for name in sorted(of_saelens)},
    }


def _release(release: Mapping) -> dict:
    return {
        "repo": release["repo_id"],
        "model": release["model"],
        "loader": release.get("conversion_func") or "sae_lens",
        "overrides": release.get("config_overrides") or {},
        "saes": {
            sae["id"]: [str(sae["path"]), sae.get("neuronpedia"), sae.get("norm_scaling_factor")]
            for sae in release["saes"]
        },
    }


def write(content: Mapping) -> None:
    """Write the table, without a time in its header, and the licence of its source beside it."""
    text = json.dumps(content, separators=(",", ":"), sort_keys=False)
    TABLE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    LICENCE.write_bytes(_file_of_saelens("licenses/LICENSE").read_bytes())


def _file_of_saelens(ending: str) -> Path:
    (path,) = (path for path in files("sae-lens") or [] if str(path).endswith(ending))
    return Path(str(path.locate()))


def compare() -> dict[str, int]:
    """Count SAEs whose repository, path, loader, Neuronpedia id or factor differ from what SAELens looks up."""
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.loading import pretrained_saes_directory as directory

    ours = {
        (name, sae_id): (release.repo, path, release.loader, neuronpedia_id, factor)
        for name, release in releases()[1].items()
        for sae_id, (path, neuronpedia_id, factor) in release.saes.items()
    }
    theirs = {
        (name, sae_id): (
            *directory.get_repo_id_and_folder_name(name, sae_id),
            loaders.get_conversion_loader_name(name),
            directory.get_config_overrides(name, sae_id)["neuronpedia_id"],
            directory.get_norm_scaling_factor(name, sae_id),
        )
        for name, release in directory.get_pretrained_saes_directory().items()
        for sae_id in release.saes_map
    }
    differing = sum(ours.get(key) != theirs.get(key) for key in ours | theirs)
    return {"saes": len(theirs), "differing": differing}


def kinds() -> list[dict]:
    """One row per loader: its format here, and how many of its SAEs are resolved, and how many are refused."""
    rows = []
    for loader in sorted({release.loader for release in releases()[1].values()}):
        counts: Counter[str] = Counter()
        of_loader = {name: release for name, release in releases()[1].items() if release.loader == loader}
        for name, release in of_loader.items():
            for sae_id in release.saes:
                try:
                    resolve({"saelens": {"release": name, "sae_id": sae_id}}, "saes.import")
                    counts["resolved"] += 1
                except InputError:
                    counts["no SAEs" if no_sae(release, sae_id) else "refused"] += 1
        rows.append({"loader": loader, "format": LOADERS.get(loader, ""), "releases": len(of_loader), **counts})
    return rows


def main() -> None:
    """Print a row per loader and the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make the table anew")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    arguments = parser.parse_args()
    if arguments.write:
        write(table(registry()))
    rows, differences = kinds(), compare()
    columns = ("resolved", "refused", "no SAEs")
    print(f"{'loader':28} {'format':20} {'releases':>8}" + "".join(f" {column:>9}" for column in columns))
    for row in rows:
        counts = "".join(f" {row.get(column, 0):9}" for column in columns)
        print(f"{row['loader']:28} {row['format']:20} {row['releases']:8}{counts}")
    print(f"{differences['differing']} of {differences['saes']} SAEs differ from SAELens {releases()[0]}'s own look-up")
    if arguments.json:
        arguments.json.write_text(json.dumps({"loaders": rows, "comparison": differences}, indent=1) + "\n")


if __name__ == "__main__":
    main()
