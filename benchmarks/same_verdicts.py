"""Compare the verdicts of two runs of one config, such as one on a GPU and one on the CPU.

    python -m benchmarks.same_verdicts RESULTS RESULTS [--json FILE]

Correlations must agree within 1e-5, verdicts must be equal except of features whose r lies within 1e-4 of the
threshold. Ends with status 1 if they do not. Both runs must have the same SAEs, because latents are compared by number.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

R_TOLERANCE, THRESHOLD_TOLERANCE = 1e-5, 1e-4
KEYS = ["side", "latent"]


def compare_tables(a: pd.DataFrame, b: pd.DataFrame, threshold: float) -> dict:
    """Compare two tables of one edge.

    Returns:
        The number of features; the largest difference of r; the features whose verdicts differ although r is not near
        the threshold, and the number of those near it.

    Raises:
        ValueError: if the tables are of different features, or r is missing in one alone.
    """
    a, b = (table.sort_values(KEYS).reset_index(drop=True) for table in (a, b))
    if not a[KEYS].equals(b[KEYS]):
        raise ValueError(f"both runs must have the same features, but have {len(a)} and {len(b)}")
    r = np.stack([table["r"].to_numpy(dtype=np.float64) for table in (a, b)])
    if not np.array_equal(*np.isnan(r)):
        raise ValueError("r must be missing for the same features in both runs")
    near = (np.abs(r - threshold) <= THRESHOLD_TOLERANCE).any(axis=0)
    differs = (a["verdict"] != b["verdict"]).to_numpy()
    return {
        "n_features": len(a),
        "largest_r_difference": float(np.nanmax(np.abs(r[0] - r[1]), initial=0.0)),
        "n_differing_near_threshold": int((differs & near).sum()),
        "differing": [f"{side} {latent}" for side, latent in a.loc[differs & ~near, KEYS].itertuples(index=False)],
    }


def compare_runs(a: Path, b: Path) -> dict[str, dict]:
    """Compare all edges of two result folders, by the path of their tables.

    Raises:
        ValueError: if there are no tables, or not the same ones.
    """
    tables = [sorted(str(path.relative_to(run)) for path in run.glob("lineage/*/edges/*.parquet")) for run in (a, b)]
    if not tables[0] or tables[0] != tables[1]:
        raise ValueError(f"both runs must have verdicts of the same edges, but '{a}' and '{b}' have {tables}")
    return {
        name: compare_tables(pd.read_parquet(a / name), pd.read_parquet(b / name), threshold_of(a / name))
        for name in tables[0]
    }


def threshold_of(path_to_table: Path) -> float:
    """The threshold on r of a run's verdicts, from the summary beside them."""
    summary = json.loads((path_to_table.parents[1] / "summary.json").read_text())
    return float(summary["threshold"])


def agree(edges: dict[str, dict]) -> bool:
    """True if correlations and verdicts agree within the tolerances."""
    return all(not edge["differing"] and edge["largest_r_difference"] <= R_TOLERANCE for edge in edges.values())


def main() -> None:
    """Compare, print, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs=2, help="the folders results/{run} of two runs")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    edges = compare_runs(*args.results)
    for name, edge in edges.items():
        print(f"{name}: {edge}")
    if args.json:
        args.json.write_text(json.dumps({"agree": agree(edges), "edges": edges}, indent=1) + "\n")
    if not agree(edges):
        raise SystemExit(f"r must agree within {R_TOLERANCE} and verdicts be equal, see above")


if __name__ == "__main__":
    main()
