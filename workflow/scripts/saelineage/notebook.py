"""The library's face for notebooks: open a finished run, and correlate the features of two SAEs.

A run is read lazily, with the functions that the workflow uses, from the files that docs/artifacts.md lists. Files are
not checked against their manifests here; `snakemake --cores 1 verify` does that.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from saelineage.correlations.matches import Correlation, load_correlation
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard
from saelineage.files.atomic import read_json
from saelineage.files.tensors import group_names
from saelineage.plan.sae_names import SaeName, shard_names
from saelineage.report.sentences import count, interval, percent
from saelineage.report.tables import drift_table, edge_table
from saelineage.tokens import TokenRows, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from saelineage.correlations.pearson import correlate
    from saelineage.saes.sae import Sae

__all__ = ["Run", "correlate", "open_run"]

STAGES = ("corpora", "tokenizer", "tokens", "models", "activations", "saes", "features", "correlations", "lineage")
ACTIVATION_COLUMNS = ("latent", "corpus", "row", "place", "token", "activation")


def open_run(folder: Path | str, hookpoint: str | None = None) -> "Run":
    """Open the folder of a finished run, such as `results/demo`.

    Args:
        folder: of the run.
        hookpoint: the name of the hookpoint whose results are read; None if the run has only one.

    Raises:
        InputError: if the folder holds no run, or no lineage at that hookpoint, or that is unfinished; or if the run
            has several hookpoints and none is named.
    """
    if not any((Path(folder) / stage).is_dir() for stage in STAGES):
        raise InputError(
            f"'{folder}' must be the folder of a run, results/NAME, but holds none of {', '.join(STAGES)}; "
            "correct the path, or make the run: snakemake --cores 2"
        )
    run = Run(folder, _chosen_hookpoint(Path(folder), hookpoint))
    run.path(run.in_lineage("features.parquet"))
    for edge in run.summary["edges"]:
        run.path(run.in_lineage(f"edges/{edge['parent']}__{edge['child']}.parquet"))
    return run


def _chosen_hookpoint(folder: Path, named: str | None) -> str:
    """The hookpoint that is named, or the only one that there is a lineage of."""
    finished = sorted(path.parent.name for path in folder.glob("lineage/*/summary.json"))
    hookpoints = finished or _folders(folder / "lineage")
    run = folder.absolute().name
    if not hookpoints:
        raise InputError(
            f"run '{run}' is unfinished: '{folder / 'lineage'}' holds the lineage of no hookpoint; with the run's "
            "config, run: snakemake --cores 2"
        )
    if named is None and len(hookpoints) > 1:
        raise InputError(
            f"run '{run}' has several hookpoints, so one must be named, as in open_run('{folder}', '{hookpoints[0]}'); "
            f"choose one of: {', '.join(hookpoints)}"
        )
    chosen = named or hookpoints[0]
    if chosen not in hookpoints:
        raise InputError(f"run '{run}' has no hookpoint '{chosen}'; choose one of: {', '.join(hookpoints)}")
    return chosen


def __getattr__(name: str) -> object:
    """Import `correlate` on first use, because numba takes a second to load and tables do not need it."""
    if name == "correlate":
        from saelineage.correlations.pearson import correlate

        return correlate
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


class Run:
    """A finished run at one of its hookpoints.

    Methods take the name of a model, `lua`, or of one SAE, `lua.seed1`. Where an SAE is needed and a model is named, it
    is the model's leading SAE, which the run's verdicts rest on.

    Attributes:
        folder: path of the run.
        hookpoint: name of the hookpoint whose SAEs and verdicts are read.
        name: the run's name in the config.
    """

    def __init__(self, folder: Path | str, hookpoint: str):
        """Remember the folder without reading it; see `open_run`."""
        self.folder, self.hookpoint = Path(folder), hookpoint
        self.name = self.folder.absolute().name

    def __repr__(self) -> str:
        """Say what is in the run, and how to get it."""
        models = ", ".join(f"{model} ({sae})" for model, sae in self.saes.items())
        edges = ", ".join(f"{edge['parent']} -> {edge['child']}" for edge in self.summary["edges"])
        return (
            f"Run '{self.name}' at hookpoint '{self.hookpoint}'\n"
            f"models (leading SAE): {models}\n"
            f"edges: {edges or 'none'}\n"
            "tables: answer, edges, drift, features, edge(parent, child), labels(model), "
            "activations(model, latents)\n"
            "also: summary, correlation(parent, child), sae(model), model(model)"
        )

    @cached_property
    def summary(self) -> dict:
        """`lineage/{hookpoint}/summary.json`: counts and shares of every edge, with their controls."""
        return read_json(self.path(self.in_lineage("summary.json")))

    @property
    def models(self) -> list[str]:
        """Models of the lineage, parents before children."""
        return list(self.summary["models"])

    @property
    def saes(self) -> dict[str, str]:
        """Leading SAE of each model of the lineage, which verdicts rest on."""
        return dict(self.summary["saes"])

    @property
    def edges(self) -> pd.DataFrame:
        """One row per edge and group (identified, all), as in the report: the number of features with each verdict."""
        return edge_table(self.summary, self._drift)

    @property
    def answer(self) -> pd.DataFrame:
        """One row per edge in six columns, of identified features or, where a model has one SAE seed, of all.

        Columns: the numbers of the parent's features that persist, have drifted and are gone, and of the child's that
        are new; the share of the parent's that is found, with Wilson's 95 % interval and its n; and the same share for
        an unchanged model and the largest for a random one.
        """
        leading = self.edges.drop_duplicates(["parent", "child"])  # identified features come first
        rows = [
            {
                "edge": f"{row['parent']} -> {row['child']}",
                "persist": row["parent_persists"],
                "drifted": row["parent_drifted"],
                "gone": row["parent_gone"],
                "new": row["child_new"],
                "found": f"{_with_interval(row)} of {count(row['persist_share_n'])} {row['group']}",
                "unchanged, random": f"{percent(row['no_change_share'])}, {percent(row['largest_random_share'])}",
            }
            for row in leading.to_dict("records")
        ]
        columns = ["edge", "persist", "drifted", "gone", "new", "found", "unchanged, random"]
        return pd.DataFrame(rows, columns=columns).set_index("edge")

    @property
    def drift(self) -> pd.DataFrame:
        """One row per edge and corpus, and over all (`pooled`), as in the report: how much changed at all."""
        return drift_table(self._drift)

    @cached_property
    def _drift(self) -> dict:
        """`lineage/{hookpoint}/drift.json`, which runs without edges do not have."""
        path = self.folder / self.in_lineage("drift.json")
        return read_json(path) if path.exists() else {}

    @cached_property
    def features(self) -> pd.DataFrame:
        """`lineage/{hookpoint}/features.parquet`: one row per feature of every model, with its trajectory."""
        return pd.read_parquet(self.path(self.in_lineage("features.parquet")))

    @cached_property
    def examples(self) -> dict:
        """`report/examples/{hookpoint}.json`: features and passages shown in the report."""
        return read_json(self.path(f"report/examples/{self.hookpoint}.json"))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return load_tokenizer(self.path("tokenizer"))

    def edge(self, parent: str, child: str) -> pd.DataFrame:
        """Verdicts of one edge, one row per feature of either side.

        Raises:
            InputError: if the run has no such edge; the message lists its edges.
        """
        edges = [(edge["parent"], edge["child"]) for edge in self.summary["edges"]]
        if (parent, child) not in edges:
            listed = ", ".join(f"{parent} -> {child}" for parent, child in edges)
            raise InputError(f"run '{self.name}' has no edge {parent} -> {child}; choose one of: {listed}")
        return pd.read_parquet(self.path(self.in_lineage(f"edges/{parent}__{child}.parquet")))

    def labels(self, name: str) -> pd.DataFrame:
        """Labels of an SAE's features: `labels/{hookpoint}/{model}/{sae}.parquet`.

        Raises:
            InputError: if the run has no such SAE, or no labels for it.
        """
        sae = self._sae(name)
        return pd.read_parquet(self.path(f"labels/{self.hookpoint}/{sae.model}/{sae.sae}.parquet"))

    def sae(self, name: str) -> "Sae":
        """Load an SAE, with float32 weights.

        Raises:
            InputError: if the run has no such SAE; the message lists the model's SAEs.
        """
        from saelineage.saes.sae import load_sae  # here, because tables need no torch

        sae = self._sae(name)
        return load_sae(self.path(f"saes/{self.hookpoint}/{sae.model}/{sae.sae}"))

    def model(self, model: str) -> "PreTrainedModel":
        """Load a language model of the run, in evaluation mode and float32; controls can be loaded too.

        Raises:
            InputError: if the run has no such model; the message lists its models.
        """
        from saelineage.models.loading import load_model  # here, because tables need no transformers

        self._require_model(model)
        return load_model(self.path(f"models/{model}"))

    def correlation(self, a: str, b: str) -> Correlation:
        """Load the correlation of two SAEs' features; for an edge, name the parent first.

        Args:
            a, b: names; `{model}.{sae}_shifted` and `{model}.{sae}_rotated` are random controls.

        Raises:
            InputError: if the run did not correlate this pair; the message lists the pairs of these models.
        """
        first, partner = (name if "." in name else str(self._sae(name)) for name in (a, b))
        path = self.folder / "correlations" / self.hookpoint / first / "correlations.safetensors"
        partners = group_names(path) if path.exists() else []
        if partner not in partners:
            models = {SaeName.parse(name).model for name in (a, b)}
            pairs = self._correlated_pairs()
            near = [pair for pair in pairs if {SaeName.parse(name).model for name in pair} == models]
            listing = ", ".join("__".join(pair) for pair in near or pairs)
            raise InputError(
                f"run '{self.name}' has no correlation {first}__{partner}; choose one of: {listing}; or correlate the "
                f"folders of their features with saelineage.notebook.correlate"
            )
        return load_correlation(path, partner)

    def _correlated_pairs(self) -> list[tuple[str, str]]:
        """The pairs of SAEs that the run correlated, sorted by the first."""
        paths = sorted((self.folder / "correlations" / self.hookpoint).glob("*/correlations.safetensors"))
        return [(path.parent.name, partner) for path in paths for partner in group_names(path)]

    def activations(self, name: str, latents: Iterable[int | np.integer]) -> pd.DataFrame:
        """List the firings of some latents of an SAE on the probe.

        Args:
            name: a model, or `{model}.{sae}`.
            latents: numbers of the latents.

        Returns:
            One row per latent and token on which it fires; latents in the order given, then corpora by name, then
            tokens in the order of the text. Columns: `latent`, `corpus`, `row`, `place` in the row, `token` (the text
            of this token alone, with U+FFFD where it is part of a character) and `activation`, above 0.

        Raises:
            InputError: if the run has no such SAE or latent, or the features are of other tokens than the run's.
        """
        sae, numbers = self._sae(name), [int(latent) for latent in latents]
        shards = [self._shard_activations(path, rows, numbers) for rows, path in self._shards(sae)]
        table = pd.concat(shards, ignore_index=True)
        order = table["latent"].map({latent: rank for rank, latent in enumerate(numbers)})
        table = table.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)
        texts = {token: self.tokenizer.decode([token], skip_special_tokens=False) for token in table["token"].unique()}
        return table.assign(token=table["token"].map(texts).astype(str))

    def in_lineage(self, name: str) -> str:
        """Path within the run of a file of the lineage at this hookpoint."""
        return f"lineage/{self.hookpoint}/{name}"

    def path(self, relative: str) -> Path:
        """Path of a file or folder of the run, from its path within the run.

        Raises:
            InputError: if it does not exist; the message says how to make it.
        """
        path = self.folder / relative
        if not path.exists():
            raise InputError(f"run '{self.name}' is unfinished: '{path}' is missing; {self._remedy(relative)}")
        return path

    def _remedy(self, relative: str) -> str:
        return f"with the run's config, run: snakemake --cores 2 results/{self.name}/{relative}"

    def _require_model(self, model: str) -> None:
        models = _folders(self.folder / "models")
        if model not in models:
            raise InputError(f"run '{self.name}' has no model '{model}'; choose one of: {', '.join(models)}")

    def _sae(self, name: str) -> SaeName:
        """The SAE of this name, or the leading SAE of the model of this name."""
        model, given = SaeName.parse(name)
        self._require_model(model)
        saes = _folders(self.folder / "saes" / self.hookpoint / model)
        sae = given or self.saes.get(model, "")
        if sae not in saes:
            problem = f"no SAE '{name}'" if given else f"no verdicts on '{model}', so its SAE must be named"
            choices = ", ".join(f"{model}.{sae}" for sae in saes) or "none"
            raise InputError(f"run '{self.name}' has {problem}; choose one of: {choices}")
        return SaeName(model, sae)

    def _shards(self, sae: SaeName) -> Iterator[tuple[TokenRows, Path]]:
        """Feature shards of an SAE with the probe's token rows, corpora by name."""
        for corpus in _folders(self.folder / "tokens"):
            rows = TokenRows(self.path(f"tokens/{corpus}/probe.npy"))
            folder = f"features/{self.hookpoint}/{sae.model}/{sae.sae}/{corpus}"
            first = min(
                (path.stem for path in self.path(folder).glob("shard-*.safetensors")), default="shard-00000-of-00001"
            )
            for shard in shard_names(int(first.partition("-of-")[2])):
                yield rows, self.path(f"{folder}/shard-{shard}.safetensors")

    def _shard_activations(self, path: Path, rows: TokenRows, latents: list[int]) -> pd.DataFrame:
        """`activations` of one shard, with token ids in the column `token`."""
        shard = FeatureShard(path)
        if shard.ids_sha256 != rows.digest:
            raise InputError(
                f"'{path}' must hold features of the tokens in '{rows.path}', but holds those of other tokens; "
                "delete it and rerun"
            )
        invalid = [latent for latent in latents if not 0 <= latent < shard.d_sae]
        if invalid:
            raise InputError(
                f"latents of {shard.model}.{shard.sae} are from 0 to {shard.d_sae - 1}, not {invalid[0]}; correct it"
            )
        entries = shard.latents[:, latents].tocoo()
        row, place = np.divmod(shard.positions[entries.row], shard.n_ctx)
        columns = (np.asarray(latents, dtype=np.int64)[entries.col], shard.corpus, row, place)
        values = (*columns, np.asarray(rows.ids)[row, place].astype(np.int64), entries.data)
        return pd.DataFrame(dict(zip(ACTIVATION_COLUMNS, values, strict=True)))


def _with_interval(row: Mapping) -> str:
    """The share of a row of `edges` that is found, with its interval if there is one."""
    bounds = interval((row["persist_share_low"], row["persist_share_high"]))
    return percent(row["persist_share"]) + (f" [{bounds}]" if bounds else "")


def _folders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder; empty if it does not exist."""
    return sorted(path.name for path in folder.glob("*") if path.is_dir())
