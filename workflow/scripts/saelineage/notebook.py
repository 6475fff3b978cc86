"""Runs: a finished run, opened from its folder, for notebooks and scripts.

Everything is read from the files that docs/artifacts.md lists, when it is asked for, by the functions that the workflow
itself reads them with. Whether the files are those that were written is not checked here: `snakemake --cores 1 verify`
compares each with the digest in its manifest.
"""

from collections.abc import Iterable, Iterator
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
from saelineage.plan.graph import SaeName, shard_names
from saelineage.report.tables import edge_table
from saelineage.tokens import TokenRows, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from saelineage.saes import sae as saes

SUMMARY, FEATURES = "lineage/summary.json", "lineage/features.parquet"
STAGES = ("corpora", "tokenizer", "tokens", "models", "activations", "saes", "features", "correlations", "lineage")
ACTIVATION_COLUMNS = ("latent", "corpus", "row", "place", "token", "activation")


def open_run(folder: Path | str) -> "Run":
    """Open the folder of a finished run, such as `results/demo`.

    Raises:
        InputError: if there is no run in the folder, or its lineage is unfinished.
    """
    run = Run(folder)
    if not any((run.folder / stage).is_dir() for stage in STAGES):
        raise InputError(
            f"'{folder}' must be the folder of a run, results/NAME, but holds none of {', '.join(STAGES)}; "
            "correct the path, or make the run: snakemake --cores 2"
        )
    run.path(FEATURES)
    for edge in run.summary["edges"]:
        run.path(f"lineage/edges/{edge['parent']}__{edge['child']}.parquet")
    return run


class Run:
    """A finished run.

    A name is that of a model, `lua`, or of one SAE of it, `lua.seed1`. Where a model stands for an SAE, it is the one
    that the run's verdicts rest on.

    Attributes:
        folder: where it lies.
        name: as it is called in the config.
    """

    def __init__(self, folder: Path | str):
        """Nothing is read yet; see `open_run`."""
        self.folder = Path(folder)
        self.name = self.folder.absolute().name

    @cached_property
    def summary(self) -> dict:
        """`lineage/summary.json`: counts and shares of every edge beside their floors and nulls."""
        return read_json(self.path(SUMMARY))

    @property
    def models(self) -> list[str]:
        """The models of the lineage, parents before children."""
        return list(self.summary["models"])

    @property
    def saes(self) -> dict[str, str]:
        """The SAE of each model of the lineage that verdicts rest on."""
        return dict(self.summary["saes"])

    @property
    def edges(self) -> pd.DataFrame:
        """One row per edge, as the report shows it: what became of how many features, and the floors."""
        return edge_table(self.summary)

    @cached_property
    def features(self) -> pd.DataFrame:
        """`lineage/features.parquet`: one row per feature of every model, with its trajectory through the lineage."""
        return pd.read_parquet(self.path(FEATURES))

    @cached_property
    def examples(self) -> dict:
        """`report/examples.json`: the features and passages that the report shows."""
        return read_json(self.path("report/examples.json"))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return load_tokenizer(self.path("tokenizer"))

    def edge(self, parent: str, child: str) -> pd.DataFrame:
        """The verdicts of one edge: one row per feature of either side.

        Raises:
            InputError: if there is no such edge, naming those there are.
        """
        edges = [(edge["parent"], edge["child"]) for edge in self.summary["edges"]]
        if (parent, child) not in edges:
            known = ", ".join(f"{one} -> {other}" for one, other in edges)
            raise InputError(f"run '{self.name}' has no edge {parent} -> {child}, only {known}; take one of these")
        return pd.read_parquet(self.path(f"lineage/edges/{parent}__{child}.parquet"))

    def labels(self, name: str) -> pd.DataFrame:
        """What the features of an SAE follow, in words: `labels/{model}/{sae}.parquet`.

        Raises:
            InputError: if there is no such SAE, or the run has no labels for it.
        """
        sae = self._sae(name)
        return pd.read_parquet(self.path(f"labels/{sae.model}/{sae.sae}.parquet"))

    def sae(self, name: str) -> "saes.Sae":
        """An SAE, with float32 weights.

        Raises:
            InputError: if there is no such SAE, naming those there are.
        """
        from saelineage.saes.sae import load_sae  # here, for tables need no torch

        sae = self._sae(name)
        return load_sae(self.path(f"saes/{sae.model}/{sae.sae}"))

    def model(self, model: str) -> "PreTrainedModel":
        """A language model of the run, of the lineage or not, in evaluation mode and float32.

        Raises:
            InputError: if there is no such model, naming those there are.
        """
        from saelineage.models.loading import load_model  # here, for tables need no transformers

        self._require_model(model)
        return load_model(self.path(f"models/{model}"))

    def correlation(self, a: str, b: str) -> Correlation:
        """What is kept of all pairs of two SAEs' features; of an edge the parent comes first.

        Args:
            a, b: names; `{model}.{sae}_shifted` and `{model}.{sae}_rotated` are nulls.

        Raises:
            InputError: if this pair was not compared, naming the pairs of these models that were.
        """
        pair = "__".join(name if "." in name else str(self._sae(name)) for name in (a, b))
        path = f"correlations/{pair}/correlation.safetensors"
        if not (self.folder / path).exists():
            of_models = {a.partition(".")[0], b.partition(".")[0]}
            known = sorted(found.name for found in self.folder.glob("correlations/*"))
            near = [one for one in known if {name.partition(".")[0] for name in one.split("__")} == of_models]
            raise InputError(
                f"run '{self.name}' has no correlation {pair}, only {', '.join(near or known)}; "
                f"take one of these, or {self._remedy(path)}"
            )
        return load_correlation(self.path(path))

    def activations(self, name: str, latents: Iterable[int | np.integer]) -> pd.DataFrame:
        """Where some latents of an SAE fire on the probe, and how strongly; zeros are left out.

        Args:
            name: a model, or `{model}.{sae}`.
            latents: which ones.

        Returns:
            One row per latent and token on which it fires, latents in the order given, corpora by name, tokens as they
            stand: `latent`, `corpus`, `row`, `place` in the row, `token` (the text of that token alone, with U+FFFD
            where it is part of a character) and `activation`, above 0.

        Raises:
            InputError: if there is no such SAE or latent, or its features are not of the run's tokens.
        """
        sae, latents = self._sae(name), [int(latent) for latent in latents]
        found = [self._shard_activations(path, rows, latents) for rows, path in self._shards(sae)]
        table = pd.concat(found, ignore_index=True)
        order = table["latent"].map({latent: rank for rank, latent in enumerate(latents)})
        table = table.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)
        texts = {one: self.tokenizer.decode([one], skip_special_tokens=False) for one in table["token"].unique()}
        return table.assign(token=table["token"].map(texts).astype(str))

    def path(self, relative: str) -> Path:
        """A file or folder of the run.

        Raises:
            InputError: if it is not there, naming it and what makes it.
        """
        path = self.folder / relative
        if not path.exists():
            raise InputError(f"run '{self.name}' is unfinished: '{path}' is missing; {self._remedy(relative)}")
        return path

    def _remedy(self, relative: str) -> str:
        return f"with the run's config, run: snakemake --cores 2 results/{self.name}/{relative}"

    def _require_model(self, model: str) -> None:
        known = _folders(self.folder / "models")
        if model not in known:
            raise InputError(f"run '{self.name}' has no model '{model}', only {', '.join(known)}; take one of these")

    def _sae(self, name: str) -> SaeName:
        """The SAE that a name stands for."""
        model, dot, sae = name.partition(".")
        self._require_model(model)
        known = _folders(self.folder / "saes" / model)
        sae = sae if dot else self.saes.get(model, "")
        if sae not in known:
            what = f"no SAE '{name}'" if dot else f"no verdicts on '{model}', so its SAE must be named"
            raise InputError(
                f"run '{self.name}' has {what}; its SAEs are {', '.join(f'{model}.{one}' for one in known) or 'none'}"
            )
        return SaeName(model, sae)

    def _shards(self, sae: SaeName) -> Iterator[tuple[TokenRows, Path]]:
        """The feature shards of an SAE with the probe's token rows, all corpora in order."""
        for corpus in _folders(self.folder / "tokens"):
            rows = TokenRows(self.path(f"tokens/{corpus}/probe.npy"))
            folder = self.path(f"features/{sae.model}/{sae.sae}/{corpus}")
            first = min((path.stem for path in folder.glob("shard-*.safetensors")), default="shard-00000-of-00001")
            for shard in shard_names(int(first.partition("-of-")[2])):
                yield rows, self.path(f"features/{sae.model}/{sae.sae}/{corpus}/shard-{shard}.safetensors")

    def _shard_activations(self, path: Path, rows: TokenRows, latents: list[int]) -> pd.DataFrame:
        """`activations` of one shard, with ids in the column `token`."""
        shard = FeatureShard(path)
        if shard.ids_sha256 != rows.digest:
            raise InputError(f"'{path}' must be of the tokens in '{rows.path}', but is not; delete it and run again")
        wrong = [latent for latent in latents if not 0 <= latent < shard.d_sae]
        if wrong:
            raise InputError(
                f"latents of {shard.model}.{shard.sae} are 0 to {shard.d_sae - 1}, there is no {wrong[0]}; correct it"
            )
        entries = shard.latents[:, list(latents)].tocoo()
        row, place = np.divmod(shard.positions[entries.row], shard.n_ctx)
        columns = (np.asarray(latents, dtype=np.int64)[entries.col], shard.corpus, row, place)
        values = (*columns, np.asarray(rows.ids)[row, place].astype(np.int64), entries.data)
        return pd.DataFrame(dict(zip(ACTIVATION_COLUMNS, values, strict=True)))


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none where it is missing."""
    return sorted(path.name for path in folder.glob("*") if path.is_dir())
