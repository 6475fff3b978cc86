"""The pairs of SAEs that a run compares: each edge under each instrument, with its controls."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import combinations

from saelineage.plan.graph import CONTINUED, REVIVED, TWIN, Edge, Graph
from saelineage.plan.instruments import INSTRUMENTS, instrument, shares_numbers
from saelineage.plan.sae_names import SaeName, SaeNames

Pair = tuple[SaeName, SaeName]
CONTROL = "control"
"""Role of a model from `lineage.controls`; names of such comparisons begin with it."""
RANDOM_CONTROLS = ("shifted", "rotated")
"""Random controls made from the child's features, on other documents or on rotated activations.

Names of their SAEs end in `_{control}`."""
TRAINED_CONTROLS = (CONTROL, TWIN, CONTINUED)
"""Roles of trained models in the child's place, as names of comparisons begin: `{role} ({model})`."""


class Comparisons:
    """The compared pairs of SAEs, by role."""

    def __init__(self, config: Mapping, graph: Graph, saes: SaeNames):
        """Keep the config; everything else is computed when it is asked for.

        Args:
            config: with `lineage` and `correlations`, defaults filled in.
            graph: its models.
            saes: its SAEs.
        """
        lineage = config["lineage"]
        of_two_saes = [name for name in lineage["instruments"] if name in INSTRUMENTS]
        self.instruments: list[str] = [*of_two_saes, *(f"anchored@{n}" for n in lineage["budgets"])]
        """All instruments that compare two SAEs, the leading one first."""
        self._random: list[str] = config["correlations"]["random_controls"]
        self._has_reset_control: bool = lineage["reset_control"]
        self._has_second_anchor: bool = lineage["second_anchor"]
        self._stages = lineage["stages"]
        self._graph, self._saes = graph, saes

    @property
    def leading(self) -> str:
        """The instrument whose verdicts are the run's."""
        return self.instruments[0]

    @property
    def shares_numbers(self) -> bool:
        """Whether the SAEs that verdicts rest on come from one another, so that a latent keeps its number."""
        return shares_numbers(self.leading)

    @cached_property
    def leading_saes(self) -> dict[str, str]:
        """The SAE of each lineage model that the run's verdicts rest on."""
        return {model: self.sae_of(self.leading, model).sae for model in self._graph.lineage}

    def leading_sae(self, model: str) -> SaeName:
        """The SAE of one lineage model that the run's verdicts rest on."""
        return SaeName(model, self.leading_saes[model])

    def sae_of(self, name: str, model: str) -> SaeName:
        """The SAE of a model that an instrument compares."""
        chosen = instrument(name)
        if chosen.is_anchored:
            return self._saes.anchor(model, chosen.budget)
        return SaeName(model, f"{chosen.stem}{self._saes.seeds[0]}")

    def edge_pair(self, name: str, edge: Edge) -> Pair:
        """The two SAEs that an edge's verdicts rest on under an instrument."""
        return self.sae_of(name, edge.parent), self.sae_of(name, edge.child)

    def no_change_pairs(self, name: str, model: str) -> list[Pair]:
        """Pairs of SAEs of one model that are trained like the two of an edge."""
        chosen, first = instrument(name), self.sae_of(name, model)
        if chosen.is_anchored:
            return [(first, SaeName(model, f"from_{model}{chosen.budget}"))]
        if name == "same_init":
            return [(first, SaeName(model, f"{first.sae}_again"))]
        return list(combinations([SaeName(model, f"{chosen.stem}{seed}") for seed in self._saes.seeds], 2))

    def reset_pair(self, name: str, model: str) -> Pair | None:
        """A model's SAE and the one that starts from it with some latents afresh; None where nothing is trained on."""
        chosen = instrument(name)
        if not self._has_reset_control or not chosen.is_anchored or chosen.budget == "@0":
            return None
        return self.sae_of(name, model), SaeName(model, f"reset_{model}{chosen.budget}")

    def second_pairs(self, edge: Edge) -> dict[str, Pair]:
        """The edge in the chain of the root's second seed, and the two SAEs of the parent; none if there is no chain.

        Returns:
            `edge`, and `parents`, the parent's SAEs of both chains.
        """
        if not self._has_second_anchor:
            return {}
        parent, child = self._saes.second_anchor(edge.parent), self._saes.second_anchor(edge.child)
        return {"edge": (parent, child), "parents": (self._saes.anchor(edge.parent), parent)}

    @cached_property
    def staged_edges(self) -> list[Edge]:
        """The edges that have two-step SAEs (`lineage.stages`): those to models with text of their own."""
        named = self._stages if isinstance(self._stages, Mapping) else None
        children = [model for model in self._graph.lineage if named is None or model in named] if self._stages else []
        return [
            edge
            for edge in self._graph.edges
            if edge.child in children
            and len(self._graph.parents(edge.child)) == 1
            and self._saes.stage_corpora(edge.child)
        ]

    def stage_pairs(self, edge: Edge) -> dict[str, list[Pair]]:
        """The pairs that an edge's two steps rest on, by the order of the steps.

        Each is a step: the parent's SAE and the first one's, and the first one's and the second one's.
        """
        (parent, child), start = edge, self._saes.anchor(edge.parent)
        via = {
            "data_model": [SaeName(parent, f"data_{child}"), SaeName(child, f"data+model_{parent}")],
            "model_data": [SaeName(child, f"model_{parent}"), SaeName(child, f"model+data_{parent}")],
        }
        return {order: [(start, first), (first, second)] for order, (first, second) in via.items()}

    def seed_pairs(self, model: str) -> list[Pair]:
        """Every two SAEs of a model that have random streams of their own."""
        return list(combinations(self._saes.of_seeds(model), 2))

    @property
    def seed_pair_names(self) -> dict[str, list[str]]:
        """The names of the seed pairs of every model of the lineage that has SAEs of several seeds."""
        names = {model: self._names(self.seed_pairs(model)) for model in self._graph.lineage}
        return {model: pairs for model, pairs in names.items() if pairs}

    def control_pairs(self, name: str, edge: Edge) -> dict[str, Pair]:
        """The SAE of an edge's parent with each control in the child's place, by name.

        Random controls are the child's features on other documents (`shifted`) or on rotated activations (`rotated`),
        and models re-initialised like the parent or one of its ancestors. Others are trained models: those that the
        config names, the child's twins, and the parent trained further on its own corpora.
        """
        parent, child = self.edge_pair(name, edge)
        pairs = {random: (parent, SaeName(child.model, f"{child.sae}_{random}")) for random in self._random}
        for model, role in self.in_place_of_child(edge).items():
            pairs[f"{role} ({model})"] = (parent, self._in_place(name, edge, model))
        return pairs

    def _in_place(self, name: str, edge: Edge, model: str) -> SaeName:
        """The SAE of a model in the place of an edge's child: made as the child's is under an instrument."""
        chosen = instrument(name)
        if chosen.is_anchored:
            return SaeName(model, f"from_{edge.parent}{chosen.budget}")
        return self.sae_of(name, model)

    def leading_no_change_pairs(self, model: str) -> list[Pair]:
        """The correlated pairs that are the no-change control of a model's SAE under the leading instrument."""
        first = self.sae_of(self.leading, model)
        unchanged = {frozenset(pair) for pair in self.no_change_pairs(self.leading, model) if first in pair}
        return [pair for pair in self.pairs if frozenset(pair) in unchanged]

    def anchored_alone(self, edge: Edge) -> Pair | None:
        """For an edge to a merge, the parent's SAE and the merge's SAE that starts from that parent's alone."""
        if len(self._graph.parents(edge.child)) < 2:
            return None
        return self._saes.anchor(edge.parent), SaeName(edge.child, f"from_{edge.parent}")

    def pairs_by_seed(self, edge: Edge) -> list[Pair]:
        """The SAEs of both sides of an edge seed by seed, no SAE in two pairs; none unless they are an instrument's."""
        if "independent" not in self.instruments:
            return []
        parents, children = ({sae.sae: sae for sae in self._saes.of_seeds(model)} for model in edge)
        return [(parents[seed], children[seed]) for seed in parents if seed in children]

    def recurrence_pairs(self, edge: Edge) -> list[Pair]:
        """The SAE of each side of an edge with the other seeds of its model, which identify its features."""
        pair = self.edge_pair(self.leading, edge)
        return [(sae, seed) for sae in pair for seed in self._saes.of_seeds(sae.model) if seed != sae]

    def absence_pairs(self, edge: Edge) -> dict[str, list[Pair]]:
        """The SAE of each side of an edge with all SAEs of the other model, by side.

        A feature is robustly lost or new only if none of them has it.
        """
        parent, child = self.edge_pair(self.leading, edge)
        return {
            side: [(sae, opposite), *((sae, seed) for seed in self._saes.of_seeds(opposite.model) if seed != opposite)]
            for side, sae, opposite in (("parent", parent, child), ("child", child, parent))
        }

    def trained_control_pairs(self, edge: Edge) -> dict[str, dict[str, dict[str, Pair]]]:
        """The pairs of an edge's `twins` and `continued` models under the leading instrument, by model.

        Each model's SAE is compared with the parent's (`parent`), to see whether the same features are lost, and with
        the child's (`child`), to see whether the same features are new.
        """
        parent, child = self.edge_pair(self.leading, edge)
        pairs: dict[str, dict[str, dict[str, Pair]]] = {"twins": {}, "continued": {}}
        for model, kind in self._graph.trained_controls(edge).items():
            sae = self._in_place(self.leading, edge, model)
            pairs["twins" if kind == TWIN else "continued"][model] = {"parent": (parent, sae), "child": (child, sae)}
        return pairs

    def revival_pairs(self, edge: Edge) -> dict[str, dict[str, Pair]]:
        """The SAE of an edge's parent with those that tell which lost features return, by revived model.

        Each has three: `revived`, with the model's own SAE; `continued`, with that of the model's control; and
        `unchanged`, with another one of the child; without a second seed it is missing where SAEs have seeds of their
        own. Anchored SAEs are all three made from the child's in the same way.
        """
        parent, child = self.edge_pair(self.leading, edge)
        again = [sae for pair in self.no_change_pairs(self.leading, edge.child) for sae in pair if sae != child]
        unchanged = {"unchanged": (parent, again[0])} if again else {}
        onwards = {
            model: {REVIVED: Edge(edge.child, model), CONTINUED: Edge(edge.child, control)}
            for model, control in self._graph.revivals(edge).items()
        }
        return {
            model: {kind: (parent, self._in_place(self.leading, onward, onward.child)) for kind, onward in both.items()}
            | unchanged
            for model, both in onwards.items()
        }

    def source_pairs(self, merge: str) -> dict[str, Pair]:
        """A merge's SAE with each parent's, and with that of their common ancestor, if there is one."""
        base = self._graph.common_ancestor(merge)
        sources = dict.fromkeys([*self._graph.parents(merge), *([base] if base else [])])
        of_merge = self.sae_of(self.leading, merge)
        return {model: (self.sae_of(self.leading, model), of_merge) for model in sources}

    @cached_property
    def merges(self) -> list[str]:
        """Lineage models with more than one parent, each followed by those of its controls that are merges."""
        lines = [[model, *self._graph.controls(model)] for model in self._graph.lineage if self._is_merge(model)]
        return [model for line in lines for model in line if self._is_merge(model)]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every pair of SAEs that is correlated, in one direction only."""
        pairs: dict[frozenset, Pair] = {}
        for pair in self._pairs_by_role():
            pairs.setdefault(frozenset(pair), pair)
        return list(pairs.values())

    @cached_property
    def partners(self) -> dict[str, list[SaeName]]:
        """For each SAE on side a of a pair, by its name, all SAEs on side b."""
        partners: dict[str, list[SaeName]] = {}
        for a, b in self.pairs:
            partners.setdefault(str(a), []).append(b)
        return partners

    @cached_property
    def resampled(self) -> list[str]:
        """The names of pairs whose documents are drawn again: those of edges and of their no-change controls.

        Intervals over documents are of these alone.
        """
        return list(dict.fromkeys(name for row in self.rows for name in (row["pair"], *row["no_change"])))

    @cached_property
    def saes(self) -> list[SaeName]:
        """Every SAE of the run, by model: all seeds of lineage models, compared SAEs, and starts of others."""
        lineage_models = [model for model in self._graph.models if model not in self._graph.outside]
        saes = dict.fromkeys(sae for model in lineage_models for sae in self._saes.of_seeds(model))
        saes |= dict.fromkeys(without_control(sae) for pair in self.pairs for sae in pair)
        left = list(saes)
        for sae in left:  # the list grows in the loop, because a start may have starts itself
            new = [start for start in self._saes.starts(sae) if start not in saes]
            saes |= dict.fromkeys(new)
            left += new
        order = {model: place for place, model in enumerate(self._graph.models)}
        return sorted(saes, key=lambda sae: order[sae.model])

    @cached_property
    def trained_saes(self) -> list[SaeName]:
        """The SAEs that are trained, not imported."""
        return [sae for sae in self.saes if sae not in self._saes.imported]

    @cached_property
    def measured_saes(self) -> list[SaeName]:
        """The SAEs whose quality is measured: all seeds of lineage models, and both SAEs of every edge."""
        pairs = [self.edge_pair(name, edge) for edge in self._graph.edges for name in self.instruments]
        pairs += [pair for edge in self._graph.edges if (pair := self.anchored_alone(edge))]
        measured = {sae for pair in pairs for sae in pair}
        measured |= {sae for model in self._graph.lineage for sae in self._saes.of_seeds(model)}
        return [sae for sae in self.saes if sae in measured]

    @cached_property
    def compared_saes(self) -> list[SaeName]:
        """The SAEs on either side of a pair, controls included."""
        return list(dict.fromkeys(sae for pair in self.pairs for sae in pair))

    def as_data(self) -> dict:
        """All comparisons by the names of their pairs, as JSON-able data for `trace_lineage`."""
        return {
            "leading": self.leading,
            "saes": self.leading_saes,
            "comparisons": self.rows,
            "absence": {
                str(edge): {side: self._names(pairs) for side, pairs in self.absence_pairs(edge).items()}
                for edge in self._graph.edges
            },
            "trained_controls": {
                str(edge): {
                    kind: {model: self._named(pairs) for model, pairs in of_kind.items()}
                    for kind, of_kind in self.trained_control_pairs(edge).items()
                }
                for edge in self._graph.edges
            },
            "revivals": {
                str(edge): {model: self._named(pairs) for model, pairs in of_edge.items()}
                for edge in self._graph.edges
                if (of_edge := self.revival_pairs(edge))
            },
            "sources": {
                merge: {"parents": self._graph.parents(merge), "pairs": self._named(self.source_pairs(merge))}
                for merge in self.merges
            },
            "second_anchor": {
                str(edge): self._named(pairs) for edge in self._graph.edges if (pairs := self.second_pairs(edge))
            },
            "stages": {
                str(edge): {order: self._names(pairs) for order, pairs in self.stage_pairs(edge).items()}
                for edge in self.staged_edges
            },
        }

    @cached_property
    def rows(self) -> list[dict]:
        """One row per edge and instrument, with the names of its pair and of the pairs that it is read beside.

        These are its controls; `recurs`, per side the SAE with the other seeds of its model; `seeds`, pairs of
        seeds of each model; `seeds_of_child`, the parent's SAE with every seed of the child; and `by_seed`, the edge
        under every seed. Those that are not correlated are left out.
        """
        rows = []
        for edge in self._graph.edges:
            for name in self.instruments:
                row: dict[str, object] = {
                    "parent": edge.parent,
                    "child": edge.child,
                    "instrument": name,
                    "pair": pair_name(self.edge_pair(name, edge)),
                    "no_change": self._names(self.no_change_pairs(name, edge.parent)),
                    "recurs": self._recurs(self.edge_pair(name, edge)),
                    "seeds": {model: self._names(self.seed_pairs(model)) for model in edge},
                    "seeds_of_child": self._correlated(self.sae_of(name, edge.parent), self._saes.of_seeds(edge.child)),
                    "controls": self._named(self.control_pairs(name, edge)),
                    "reset": self._reset(name, edge.parent),
                    "by_seed": self._by_seed(edge) if name == "independent" else [],
                }
                rows.append(row)
                if name == "anchored" and (alone := self.anchored_alone(edge)):
                    by_parent = f"anchored to {edge.parent} alone"
                    changed = {"pair": pair_name(alone), "recurs": self._recurs(alone), "controls": {}}
                    rows.append(row | {"instrument": by_parent} | changed)
        return rows

    @cached_property
    def _correlated_names(self) -> dict[frozenset, str]:
        """The name under which a pair is correlated, by the pair in either direction."""
        return {frozenset(pair): pair_name(pair) for pair in self.pairs}

    def _reset(self, name: str, model: str) -> dict | None:
        """The reset control of a model: its pair, and the share and seed that say which latents start afresh."""
        if (pair := self.reset_pair(name, model)) is None:
            return None
        settings = self._saes.settings(*pair[1])
        return {"pair": self._names([pair])[0], "share": settings["reset_share"], "seed": settings["seed"]}

    def _by_seed(self, edge: Edge) -> list[dict]:
        """The pairs of an edge seed by seed, each with what identifies the features of its two SAEs."""
        return [{"pair": pair_name(pair), "recurs": self._recurs(pair)} for pair in self.pairs_by_seed(edge)]

    def _recurs(self, pair: Pair) -> dict[str, list[str]]:
        """Per side, the SAE's pairs with the other seeds of its model."""
        parent, child = (
            self._correlated(sae, [seed for seed in self._saes.of_seeds(sae.model) if seed != sae]) for sae in pair
        )
        return {"parent": parent, "child": child}

    def _correlated(self, sae: SaeName, others: Iterable[SaeName]) -> list[str]:
        """The names of an SAE's pairs with others; none if one of them is not correlated."""
        names = [self._correlated_names.get(frozenset((sae, other))) for other in others]
        return [] if None in names else [name for name in names if name]

    def _names(self, pairs: Iterable[Pair]) -> list[str]:
        return [self._correlated_names[frozenset(pair)] for pair in pairs]

    def _named(self, pairs: Mapping[str, Pair]) -> dict[str, str]:
        return dict(zip(pairs, self._names(pairs.values()), strict=True))

    def _is_merge(self, model: str) -> bool:
        return len(self._graph.parents(model)) > 1

    def in_place_of_child(self, edge: Edge) -> dict[str, str]:
        """The models that a parent is also compared with in place of its child, and their role."""
        line = [edge.parent, *self._graph.ancestors(edge.parent)]
        random = [model for model in self._graph.of_kind("reinitialise") if self._graph.like(model) in line]
        controls = dict.fromkeys(self._graph.controls(edge.child), CONTROL) | self._graph.trained_controls(edge)
        return dict.fromkeys(random, "reinitialised") | controls

    def _pairs_by_role(self) -> Iterator[Pair]:
        """The pairs of every role. Some occur more than once."""
        for edge in self._graph.edges:
            for name in self.instruments:
                yield self.edge_pair(name, edge)
                yield from self.no_change_pairs(name, edge.parent)
                yield from self.control_pairs(name, edge).values()
                if reset := self.reset_pair(name, edge.parent):
                    yield reset
            if "anchored" in self.instruments and (alone := self.anchored_alone(edge)):
                yield alone
            yield from self.second_pairs(edge).values()
            yield from self.pairs_by_seed(edge)
            yield from self.recurrence_pairs(edge)
            yield from (pair for pairs in self.absence_pairs(edge).values() for pair in pairs)
            for of_kind in self.trained_control_pairs(edge).values():
                yield from (pair for pairs in of_kind.values() for pair in pairs.values())
            for revivals in self.revival_pairs(edge).values():
                yield from revivals.values()
        for model in self._graph.lineage:
            yield from self.seed_pairs(model)
        for merge in self.merges:
            yield from self.source_pairs(merge).values()
        for edge in self.staged_edges:
            yield from (pair for pairs in self.stage_pairs(edge).values() for pair in pairs)


def pair_name(pair: Pair) -> str:
    """`{model}.{sae}__{model}.{sae}`."""
    return "__".join(map(str, pair))


def names_in_pair(name: str) -> tuple[str, str]:
    """The names of the two SAEs in the name of their pair."""
    a, _, b = name.partition("__")
    return a, b


def without_control(sae: SaeName) -> SaeName:
    """The SAE that the features of a random control come from; any other SAE itself."""
    name = sae.sae
    for control in RANDOM_CONTROLS:
        name = name.removesuffix(f"_{control}")
    return SaeName(sae.model, name)
