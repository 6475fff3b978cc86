"""The contents of a run: models, SAEs and the comparisons between them."""

from collections.abc import Mapping
from functools import cached_property
from itertools import product

from saelineage.plan.comparisons import Comparisons, Pair, pair_name
from saelineage.plan.crosscoders import Crosscoders
from saelineage.plan.difference_saes import DifferenceSaes
from saelineage.plan.graph import Edge, Graph
from saelineage.plan.merges import merge_settings, needs_choice
from saelineage.plan.sae_names import ONE_SAE, SaeName, SaeNames


class Contents:
    """Everything that a config describes, without paths and needs.

    Attributes:
        config: the config with every default filled in. Rules pass blocks of it on.
        graph: the models and their edges.
        hookpoint: the name of the hookpoint whose SAEs these are.
        sae_settings: the config's `saes` block with what overrides it there.
        saes: the SAEs and their settings.
        comparisons: the pairs of SAEs that are compared.
        crosscoders: the dictionaries of several models, where there are any.
        difference_saes: the SAEs of what edges wrote, where there are any.
    """

    def __init__(self, config: dict, hookpoint: str | None = None):
        """Keep the config; everything else is computed when it is asked for.

        Args:
            config: as `config.load_config` gives it.
            hookpoint: the hookpoint whose SAEs these are; None for the first.
        """
        self.config = config
        self.graph = Graph(config)
        self.hookpoint = hookpoint or next(iter(self.hookpoints))
        self.sae_settings = sae_settings_at(config, self.hookpoint)
        self.saes = SaeNames(config | {"saes": self.sae_settings}, self.graph)
        self.comparisons = Comparisons(config, self.graph, self.saes)
        at_hookpoint = config | {"saes": self.sae_settings}
        self.crosscoders = Crosscoders(at_hookpoint, self.graph, self.comparisons)
        self.difference_saes = DifferenceSaes(at_hookpoint, self.graph, self.comparisons)

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.config["run"]

    @property
    def conversations(self) -> list[str]:
        """Corpora whose documents are lists of messages."""
        return [name for name, settings in self.config["corpora"].items() if settings.get("messages_column")]

    @property
    def has_explanations(self) -> bool:
        """True if features are explained by a language model."""
        return "explanations" in self.config["labels"]

    @property
    def hookpoints(self) -> dict[str, str]:
        """Where activations are read, by the name of the hookpoint, which is part of paths."""
        return self.config["activations"]["hookpoints"]

    @cached_property
    def trained_corpora(self) -> list[str]:
        """Corpora that a dictionary of any hookpoint is trained on, in the config's order; all where none is trained.

        One job dumps a model's activations at all hookpoints.
        """
        changed = self.config["saes"]["hookpoints"]
        unchanged = [name for name in self.hookpoints if name not in changed][:1]  # all of these are alike
        at_each = [self.config | {"saes": sae_settings_at(self.config, name)} for name in (*unchanged, *changed)]
        of_saes = {
            corpus
            for saes in (SaeNames(config, self.graph) for config in at_each)
            for sae in self.comparisons.saes
            if sae not in saes.imported
            for corpus in saes.settings(*sae)["corpora"]
        }
        for kind in (Crosscoders, DifferenceSaes):
            of_saes |= {corpus for config in at_each for corpus in kind(config, self.graph, self.comparisons).corpora}
        return [corpus for corpus in self.config["corpora"] if corpus in of_saes or not of_saes]

    @property
    def keeps_dumps(self) -> bool:
        """True if the activations that SAEs are trained on are kept."""
        return self.config["activations"]["keep"] is True

    @property
    def streams(self) -> bool:
        """True if SAEs are trained without dumps, while their model is read."""
        return self.config["activations"]["keep"] == "stream"

    @property
    def place(self) -> str:
        """Where activations are read at this hookpoint."""
        return self.hookpoints[self.hookpoint]

    @property
    def modules(self) -> list[str]:
        """The modules of the hookpoints, without `.input` or `.output`."""
        return [place.rpartition(".")[0] for place in self.hookpoints.values()]

    @property
    def leading_saes(self) -> list[SaeName]:
        """The SAEs that verdicts rest on, one for each model of the lineage."""
        return [self.comparisons.leading_sae(model) for model in self.graph.lineage]

    def compared_with(self, group: str) -> list[SaeName]:
        """The SAEs that verdicts rest on of the edges that a group's crosscoders are asked about."""
        asked = {pair.edge for pair in self.crosscoders.asked(group)}
        pairs = zip(self.graph.edges, self.edge_pairs, strict=True)
        return list(dict.fromkeys(sae for edge, pair in pairs if str(edge) in asked for sae in pair))

    @property
    def traced_saes(self) -> list[SaeName]:
        """The SAEs whose directions are compared: the leading ones, and those of models with several seeds."""
        of_seeds = [sae for model in self.comparisons.seed_pair_names for sae in self.saes.of_seeds(model)]
        return list(dict.fromkeys([*self.leading_saes, *of_seeds]))

    @cached_property
    def edge_pairs(self) -> list[Pair]:
        """The two SAEs that each edge's verdicts rest on, in the order of the edges."""
        return [self.comparisons.edge_pair(self.comparisons.leading, edge) for edge in self.graph.edges]

    @cached_property
    def token_type_pairs(self) -> list[Pair]:
        """The pairs of each comparison and its no-change control, where the study's protocol is asked for."""
        rows = self.comparisons.rows if self.config["lineage"]["token_type"] else []
        names = dict.fromkeys(name for row in rows for name in (row["pair"], *row["no_change"]))
        pairs = {pair_name(pair): pair for pair in self.comparisons.pairs}
        return [pairs[name] for name in names]

    def sweep_corpora(self, sweep: str) -> list[str]:
        """Corpora that a sweep is measured on: those of its config, of the parents' fine-tunes, or all."""
        named = self.config["sweeps"][sweep].get("corpora")
        return named or self.graph.training_corpora(self.swept_model(sweep)) or list(self.config["corpora"])

    def described(self) -> dict:
        """What the page says of the run beyond its results, as JSON-able data.

        Returns:
            `corpora`; `made`, how each model was made in words, parents before children; `merged_models`, the parents
            of each merged model; `swept`, of each sweep `chosen`, the swept settings of its merge, and `parents`;
            `followed_sweeps`, those through which features are followed; `crosscoders`, group and seed of each;
            `lines`, the chains of models that are shown by step, and `line_edges`, the names of all edges in them.
        """
        swept = {sweep: self.swept_model(sweep) for sweep in self.config["sweeps"]}
        return {
            "corpora": list(self.config["corpora"]),
            "made": {model: self.graph.made(model) for model in self.graph.ordered},
            "merged_models": {model: self.graph.parents(model) for model in self.graph.of_kind("merge")},
            "swept": {
                sweep: {
                    "chosen": {name: self.graph.merge(model)[name] for name in self.config["sweeps"][sweep]["over"]},
                    "parents": self.graph.parents(model),
                }
                for sweep, model in swept.items()
            },
            "followed_sweeps": self.followed_sweeps,
            "crosscoders": list(map(list, self.crosscoders.names)),
            "lines": self.graph.lines,
            "line_edges": list(map(str, self.graph.line_edges)),
        }

    def subset(self, block: str, *keys: str) -> dict:
        """Some keys of a block of the config, for rules that read only these."""
        return {key: self.config[block][key] for key in keys}

    def deciding(self, *blocks: str) -> dict:
        """Whole blocks of the config, for the digest of what decides a result."""
        return {block: self.config[block] for block in blocks}

    def swept_model(self, sweep: str) -> str:
        """The merged model of a sweep."""
        return self.config["sweeps"][sweep]["model"]

    def chosen_on(self, model: str) -> list[str]:
        """The corpora by which settings of a merge are chosen; none where nothing is."""
        settings = self.graph.merge(model)
        if not needs_choice(settings):
            return []
        return settings["chosen_on"] or self.graph.training_corpora(model) or list(self.config["corpora"])

    def beside_sweep(self, sweep: str) -> list[str]:
        """The models that a sweep is shown beside: the parents of its merge, and what they descend from."""
        model = self.swept_model(sweep)
        base = self.graph.merge_base(model) or self.graph.common_ancestor(model)
        return list(dict.fromkeys([*self.graph.parents(model), *([base] if base else [])]))

    def followed_parents(self, sweep: str) -> list[str]:
        """The parents of a sweep's merge whose features are followed: those that have SAEs that verdicts rest on."""
        parents = self.graph.parents(self.swept_model(sweep))
        return [parent for parent in parents if parent in self.comparisons.leading_saes]

    def parents_with_edges(self, sweep: str) -> list[str]:
        """Those of the followed parents of which an edge of the lineage leads to the merge."""
        model = self.swept_model(sweep)
        return [parent for parent in self.followed_parents(sweep) if Edge(parent, model) in self.graph.edges]

    def followed_origins(self, sweep: str) -> list[Edge]:
        """The edges of the lineage to the followed parents."""
        parents = self.followed_parents(sweep)
        return [edge for edge in self.graph.edges if edge.child in parents]

    @property
    def followed_sweeps(self) -> list[str]:
        """The sweeps through which features are followed."""
        return [sweep for sweep in self.config["sweeps"] if self.followed_parents(sweep)]

    def swept_merges(self, sweep: str) -> list[dict]:
        """The settings of each merge of a sweep, the last one of the swept settings varying fastest."""
        model, over = self.swept_model(sweep), self.config["sweeps"][sweep]["over"]
        points = [dict(zip(over, values, strict=True)) for values in product(*over.values())]
        block = self.graph.block(model)
        return [merge_settings(block | point, f"sweeps.{sweep}.over") for point in points]


def sae_settings_at(config: Mapping, hookpoint: str) -> dict:
    """The config's `saes` block at one hookpoint: `saes.hookpoints` overrides its settings and those under `models`."""
    saes = config["saes"]
    overrides = saes["hookpoints"].get(hookpoint, {})
    models = dict(saes["models"])
    for model, settings in overrides.get("models", {}).items():
        before = models.get(model, {})
        of_saes = {name: before.get(name, {}) | own for name, own in settings.items() if ONE_SAE.match(name)}
        models[model] = before | settings | of_saes
    return saes | overrides | {"models": models}
