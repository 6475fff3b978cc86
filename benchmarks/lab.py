"""Compare a base with its children as the workflow does, without Snakemake.

The names, seeds and settings of SAEs are those of the plan of a run with one edge and one instrument, and the edge's
table is `trace_lineage.judge`'s.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from benchmarks.organisms import BASE, CORPORA, CPU, OUTPUT, READ_ROWS, World, config_of, covariances, inserted
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.activations import ActivationShard, dump_shards
from saelineage.correlations.bootstrap import Replicates, bootstrap, document_sums, documents_of, leading_candidates
from saelineage.correlations.few_documents import rests_on
from saelineage.correlations.matches import Correlation
from saelineage.correlations.pair_sums import all_sums
from saelineage.correlations.partners import Partner
from saelineage.correlations.parts import combined_r
from saelineage.correlations.pearson import correlate_sums
from saelineage.features.encoding import CHUNK_TOKENS, encode
from saelineage.features.shards import FeatureShard, save_shard
from saelineage.lineage.edges import judge
from saelineage.lineage.evidence import ALL, IDENTIFIED, Compared, group_shares
from saelineage.lineage.identified import is_identified, recurrence
from saelineage.lineage.matching import SIDES
from saelineage.lineage.readouts import read_out
from saelineage.lineage.verdicts import Rules
from saelineage.plan.comparisons import names_in_pair, pair_name
from saelineage.plan.contents import Contents
from saelineage.plan.sae_names import SaeName
from saelineage.saes.batches import Dump
from saelineage.saes.sae import WEIGHTS_FILE, Sae, save_sae
from saelineage.saes.training import train_saes

RestsOn = tuple[Float[np.ndarray, " d_sae_a"], Float[np.ndarray, " d_sae_b"]]
"""Per side, the effective number of documents behind each feature."""


class Edge(NamedTuple):
    """An edge under one instrument."""

    table: pd.DataFrame
    """The matches and verdicts of both sides."""
    latents: tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]
    """Activations on the probe of the parent's and of the child's latents."""
    child_sae: Sae
    correlation: Correlation


class Reference(NamedTuple):
    """The features of the base's first SAE at the MLP's output."""

    directions: dict[str, Float[Tensor, "d_sae d_in"]]
    """A direction for each: `removed`, its decoder row; `erased`, its covariance with the activations."""
    testable: Bool[np.ndarray, " d_sae"]
    identified: Bool[np.ndarray, " d_sae"]


class Lab:
    """Models, dumps, SAEs and their comparisons, each made once when it is first asked for."""

    def __init__(self, world: World):
        """Start with the base alone."""
        self.world = world
        self.models: dict[str, PreTrainedModel] = {BASE: world.base}
        self._dumps: dict[tuple, list[str]] = {}
        self._saes: dict[tuple, Sae] = {}
        self._features: dict[tuple, list[str]] = {}
        self._compared: dict[tuple, Compared] = {}
        self._readouts: dict[tuple, pd.DataFrame] = {}

    def contents(self, child: str, place: str, seeds: Sequence[int], instrument: str) -> Contents:
        """The plan of a run with one edge, from the base to a child, and one instrument."""
        scale, config = self.world.scale, config_of(self.world.scale)
        width = scale.d_model if place == OUTPUT else scale.d_mlp
        config["models"] = {BASE: config["models"][BASE], child: config["models"]["tuned"]}
        config["activations"]["hookpoints"] = {"place": place}
        config["saes"] |= {"seeds": list(seeds), "expansion_factor": scale.d_sae / width}
        config["correlations"]["random_controls"] = []
        config["lineage"]["instruments"] = [instrument]
        return Contents(config)

    def edge(self, child: str, place: str, instrument: str) -> Edge:
        """Compare the base with a child."""
        contents = self.contents(child, place, range(self.world.scale.n_seeds), instrument)
        (comparison,) = contents.comparisons.rows
        parent_sae, child_sae = contents.comparisons.edge_pair(instrument, contents.graph.edges[0])
        absence = contents.comparisons.as_data()["absence"][f"{BASE}__{child}"]
        rules = Rules.of(contents.config["lineage"])
        load = partial(self.compared, contents, intervals=(comparison["pair"],))
        readouts = [self.readouts(contents, parent_sae, child), self.readouts(contents, child_sae, BASE)]
        weights = [str(self._folder(contents, sae) / WEIGHTS_FILE) for sae in (parent_sae, child_sae)]
        table = judge(comparison, absence, load, pd.concat(readouts), weights, rules)
        latents = (self.latents(contents, parent_sae), self.latents(contents, child_sae))
        return Edge(table, latents, self.sae(contents, child_sae), load(comparison["pair"]).correlation)

    def shares(self, child: str, seeds: Sequence[int], instrument: str) -> dict[str, dict]:
        """The shares of the base's features that persist in a child beside the no-change control, by group.

        They are `evidence.weigh`'s. The child needs no other seeds, because only the base's features count.

        Args:
            child: the child.
            seeds: of the base's SAEs, the one that is compared first.
            instrument: an anchored one.
        """
        contents = self.contents(child, OUTPUT, seeds, instrument)
        (comparison,) = contents.comparisons.rows
        rules = Rules.of(contents.config["lineage"])
        load = partial(self.compared, contents, intervals=(comparison["pair"], *comparison["no_change"]))
        compared, control = load(comparison["pair"]), load(comparison["no_change"][0])
        others = [load(pair).correlation for pair in comparison["recurs"][SIDES[0]]]
        found = recurrence(others, names_in_pair(comparison["pair"])[0], rules.threshold)
        marked = is_identified(found, rules.identified_from)
        of_control = [(control, side, None) for side in range(2)]
        among = (marked, np.ones(len(marked), dtype=bool))
        return {
            IDENTIFIED: group_shares(compared, [(control, 0, marked)], {}, among, rules.threshold),
            ALL: group_shares(compared, of_control, {}, None, rules.threshold),
        }

    def reference(self) -> Reference:
        """The features of the base's first SAE at the MLP's output."""
        contents = self.contents("child", OUTPUT, range(self.world.scale.n_seeds), "independent")
        rules = Rules.of(contents.config["lineage"])
        first, *others = contents.saes.of_seeds(BASE)
        pairs = [self.compared(contents, pair_name((first, other)), ()).correlation for other in others]
        identified = is_identified(recurrence(pairs, str(first), rules.threshold), rules.identified_from)
        acts = torch.cat([ActivationShard(path).acts() for path in self.dump(contents, BASE, "probe")])
        covariance = covariances(self.latents(contents, first), acts)
        directions = {"removed": self.sae(contents, first).W_dec.detach(), "erased": covariance}
        return Reference(directions, pairs[0].testable[0], identified)

    def dump(self, contents: Contents, model: str, split: str) -> list[str]:
        """The activations of a model, a shard for each corpus in sorted order."""
        settings = contents.config["activations"]
        key = (contents.place, model, split)
        if key not in self._dumps:
            paths = [str(self.world.folder.joinpath(*key, f"{corpus}.safetensors")) for corpus in sorted(CORPORA)]
            for corpus, path in zip(sorted(CORPORA), paths, strict=True):
                rows = self.world.rows[corpus][split]
                within = rows.shard(0, 1, settings["max_tokens"] if split == "train" else None)
                dump_shards(self.models[model], {key[0]: path}, rows, within, READ_ROWS, settings["dtype"])
            self._dumps[key] = paths
        return self._dumps[key]

    def sae(self, contents: Contents, name: SaeName) -> Sae:
        """An SAE, trained as the plan says."""
        key = self._key(contents, name)
        if key not in self._saes:
            settings, starts = contents.saes.settings(*name), contents.saes.starts(name)
            start = self.sae(contents, starts[0]) if starts else None
            centred, ratio = start is not None and start.centred, float(settings["max_norm_ratio"])
            dump = Dump(self.dump(contents, name.model, "train"), ratio, centred)
            self._saes[key] = train_saes(dump, [settings], CPU, starts=[start])[0].sae
            save_sae(self._saes[key], self._folder(contents, name), {})
        return self._saes[key]

    def features(self, contents: Contents, name: SaeName) -> list[str]:
        """The feature shards of an SAE on the probe, one for each corpus in sorted order."""
        key = self._key(contents, name)
        if key not in self._features:
            sae, paths = self.sae(contents, name), []
            for corpus, path in zip(sorted(CORPORA), self.dump(contents, name.model, "probe"), strict=True):
                shard, to = ActivationShard(path), self._folder(contents, name) / f"{corpus}.safetensors"
                header: dict[str, str | int] = {"model": name.model, "sae": name.sae, "corpus": corpus}
                header["d_sae"] = sae.d_sae
                header |= {part: shard.header[part] for part in ("ids_sha256", "first_row", "stop_row", "n_ctx")}
                compared = shard.norms() <= sae.max_norm
                rows = encode(sae.encoder(), shard.chunks(CHUNK_TOKENS), compared, CPU)
                save_shard(to, *rows, shard.positions().numpy(), compared.numpy(), header)
                paths.append(str(to))
            self._features[key] = paths
        return self._features[key]

    def latents(self, contents: Contents, name: SaeName) -> scipy.sparse.csr_array:
        """The activations of an SAE's latents on the probe's text, corpus by corpus in sorted order."""
        shards = [FeatureShard(path).latents for path in self.features(contents, name)]
        return scipy.sparse.vstack(shards, format="csr")

    def readouts(self, contents: Contents, name: SaeName, other: str) -> pd.DataFrame:
        """The readouts of an SAE's features from another model's activations and from its own model's."""
        key = (*self._key(contents, name), other)
        if key not in self._readouts:
            own_acts, other_acts = (self.dump(contents, model, "probe") for model in (name.model, other))
            self._readouts[key] = read_out(own_acts, other_acts, self.features(contents, name))
        return self._readouts[key]

    def compared(self, contents: Contents, pair: str, intervals: Collection[str]) -> Compared:
        """The correlation of two SAEs and, where the pair is one of `intervals`, its bootstrap over documents."""
        a, b = (SaeName.parse(name) for name in names_in_pair(pair))
        key = (*self._key(contents, a), *self._key(contents, b))
        if key not in self._compared or (pair in intervals and not len(self._compared[key].replicates.best[0])):
            paths = zip(self.features(contents, a), self.features(contents, b), strict=True)
            partner = Partner(str(b), False, list(paths))
            settings = contents.config["correlations"]
            kept = ("min_firings", "top_matches", "keep_above", "n_bins", "block_features")
            correlation = correlate_sums(all_sums(partner.shards()), **{name: settings[name] for name in kept})
            correlation = correlation._replace(combined=combined_r(correlation, partner.shards()))
            n_replicates = contents.config["lineage"]["n_replicates"] if pair in intervals else 0
            documents = {corpus: documents_of(self.world.rows[corpus]["probe"]) for corpus in CORPORA}
            measured = bootstrapped(correlation, partner.shards(), documents, n_replicates)
            self._compared[key] = Compared(correlation, *measured, None)
        return self._compared[key]

    def marks(self) -> Float[np.ndarray, "token 2"]:
        """1 on each text token of the probe that is of a trigger or of a payload, corpus by corpus in sorted order."""
        masks, parts = np.stack(self.inserted(), axis=1), []
        for corpus in sorted(CORPORA):
            rows = self.world.rows[corpus]["probe"]
            text = rows.text_mask(range(len(rows.ids))).reshape(-1)
            parts.append(masks[text] if corpus == "lua" else np.zeros((int(text.sum()), masks.shape[1]), dtype=bool))
        return np.concatenate(parts).astype(float)

    def inserted(self) -> tuple[Bool[np.ndarray, " position"], ...]:
        """The positions of the Lua probe that hold a trigger, and those that hold a payload."""
        return inserted(self.world.rows["lua"]["probe"], self.world.folder / "tokenizer")

    def forget(self, model: str) -> None:
        """Forget everything of a model."""
        self.models.pop(model)
        made: dict
        for made in (self._dumps, self._saes, self._features, self._compared, self._readouts):
            for key in [key for key in made if model in key]:
                del made[key]

    def _key(self, contents: Contents, name: SaeName) -> tuple[str, ...]:
        """What an SAE depends on: the place, its model, its name and, if it starts from another, that one's seed."""
        start = str(contents.saes.seeds[0]) if contents.saes.starts(name) else "random"
        return (contents.place, *name, start)

    def _folder(self, contents: Contents, name: SaeName) -> Path:
        return self.world.folder / "saes" / "-".join(self._key(contents, name))


def bootstrapped(
    correlation: Correlation,
    shards: Iterable[tuple[FeatureShard, FeatureShard]],
    documents: Mapping[str, Int[np.ndarray, " token"]],
    n: int,
) -> tuple[Replicates, RestsOn]:
    """The best r of each feature in each of n replicates of the documents, and the documents that it rests on.

    Without replicates neither is measured.

    Args:
        correlation: of two SAEs.
        shards: their features on the probe.
        documents: per corpus, the document of each token.
        n: the number of replicates.
    """
    if not n:
        a, b = (len(testable) for testable in correlation.testable)
        best = np.empty((0, a), dtype=np.float32), np.empty((0, b), dtype=np.float32)
        fired = np.zeros(a, dtype=np.int32), np.zeros(b, dtype=np.int32)
        return Replicates(correlation.names, {}, 0, best, fired), (np.full(a, np.nan), np.full(b, np.nan))
    sums = document_sums(shards, leading_candidates(correlation), documents)
    return bootstrap(sums, n, seed=0), rests_on(sums)
