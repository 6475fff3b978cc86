"""Which SAEs are compared, and why: instruments, and beside each edge its floor, its nulls and its controls.

An instrument says which SAE of a parent is compared with which SAE of its child:

- `independent`: SAEs from seeds of their own, each model's another. Floor: two seeds of one model.
- `anchored`: the child's SAE starts from the parent's, along the whole lineage; a merge's from the average of its
  parents'. Floor: the parent treated as its own child, on its own tokens in another order.
- `frozen`: anchored and not trained at all: the root's SAE read on every model. Nothing can emerge under it.
- `same_init`: one initialisation and order of tokens for all models, as in the original study. Floor: the same
  initialisation with another order.
- `own_mixture`: as independent, each SAE trained on the corpora of its model and the model's ancestors.
- `anchored@{n}`: anchored, the child's SAE trained on n tokens (`lineage.budgets`).

The first one of the config leads: its verdicts are the run's. Plain functions over a validated config.
"""

from collections.abc import Iterable
from itertools import combinations

from saelineage.plan import graph
from saelineage.plan.graph import Edge, SaeName

Pair = tuple[SaeName, SaeName]
BUDGETS = {"anchored": "", "frozen": "@0"}
"""What follows in the names of an anchored instrument's SAEs; after `anchored@{n}` it is `@{n}`."""


def instruments(config: dict) -> list[str]:
    """All that are used, the leading one first."""
    return [*config["lineage"]["instruments"], *(f"anchored@{n_tokens}" for n_tokens in config["lineage"]["budgets"])]


def budget(instrument: str) -> str | None:
    """What follows in the names of an anchored instrument's SAEs; None for other instruments."""
    name, at, n_tokens = instrument.partition("@")
    return at + n_tokens if at else BUDGETS.get(name)


def sae_of(config: dict, instrument: str, model: str) -> SaeName:
    """The SAE of a model that an instrument compares."""
    if budget(instrument) is not None:
        return graph.anchor(config, model, budget(instrument))
    kind = {"independent": "seed", "same_init": "shared", "own_mixture": "own"}[instrument]
    return SaeName(model, f"{kind}{config['saes']['seeds'][0]}")


def leading_saes(config: dict) -> dict[str, str]:
    """The SAE of each model of the lineage that the run's verdicts rest on."""
    leading = instruments(config)[0]
    return {model: sae_of(config, leading, model).sae for model in graph.lineage_models(config)}


def edge_pair(config: dict, instrument: str, edge: Edge) -> Pair:
    """The two SAEs that an edge's verdicts rest on under an instrument."""
    return sae_of(config, instrument, edge.parent), sae_of(config, instrument, edge.child)


def floor_pairs(config: dict, instrument: str, model: str) -> list[Pair]:
    """Pairs of SAEs of one model that differ as those of an edge do, but for the model: what no change looks like."""
    first = sae_of(config, instrument, model)
    if budget(instrument) is not None:
        return [(first, SaeName(model, f"from_{model}{budget(instrument)}"))]
    if instrument == "same_init":
        return [(first, SaeName(model, f"{first.sae}_again"))]
    kind = first.sae.rstrip("0123456789")
    return list(combinations([SaeName(model, f"{kind}{seed}") for seed in config["saes"]["seeds"]], 2))


def seed_pairs(config: dict, model: str) -> list[Pair]:
    """Every two SAEs of a model from seeds of their own."""
    return list(combinations(graph.saes(config, model), 2))


def null_pairs(config: dict, instrument: str, edge: Edge) -> dict[str, Pair]:
    """What an edge's parent is compared with in the child's place, by the null's or control's name.

    The child's features of other documents (`shifted`) or read on rotated activations (`rotated`), and models that
    stand in the child's place: those re-initialised like the parent or an ancestor of it, and the child's own.
    """
    parent, child = edge_pair(config, instrument, edge)
    pairs = {null: (parent, SaeName(child.model, f"{child.sae}_{null}")) for null in config["correlations"]["nulls"]}
    for model, why in _controls_of(config, edge).items():
        started = f"from_{edge.parent}{budget(instrument)}"
        own = sae_of(config, instrument, model) if budget(instrument) is None else SaeName(model, started)
        pairs[f"{why} ({model})"] = (parent, own)
    return pairs


def other_pairs(config: dict, model: str) -> list[Pair]:
    """The leading instrument's SAE of a model with other SAEs of it: those of other seeds, or else its floor's."""
    leading = instruments(config)[0]
    first = sae_of(config, leading, model)
    own = graph.saes(config, model)
    return [(first, sae) for sae in own if sae != first] if first in own else floor_pairs(config, leading, model)


def no_change_pairs(config: dict, model: str) -> list[Pair]:
    """Pairs that are correlated anyway and show what the leading instrument finds of a model where nothing changed."""
    leading = instruments(config)[0]
    wanted = {frozenset(pair) for pair in floor_pairs(config, leading, model) if sae_of(config, leading, model) in pair}
    return [pair for pair in all_pairs(config) if frozenset(pair) in wanted]


def anchored_alone(config: dict, edge: Edge) -> Pair | None:
    """For an edge to a merge, the parent's SAE and the one of the merge that started from that parent's alone."""
    if len(graph.parents(config, edge.child)) < 2:
        return None
    return graph.anchor(config, edge.parent), SaeName(edge.child, f"from_{edge.parent}")


def recurrence_pairs(config: dict, edge: Edge) -> dict[str, dict[str, list[Pair]]]:
    """For each side of an edge, pairs that its features should recur in (other SAEs of its own model, from seeds of
    their own) and be absent from (all of the other model) to be called robustly gone, or robustly new."""
    ends = edge_pair(config, instruments(config)[0], edge)
    found = {}
    for side, own, other in (("parent", *ends), ("child", *reversed(ends))):
        recurs = [(own, sae) for sae in graph.saes(config, own.model) if sae != own]
        others = [other, *(sae for sae in graph.saes(config, other.model) if sae != other)]
        found[side] = {"recurs": recurs, "absent": [(own, sae) for sae in others]}
    return found


def source_pairs(config: dict, merge: str) -> dict[str, Pair]:
    """A merge's SAE with each parent's, and with that of the model both descend from, where there is one."""
    leading, base = instruments(config)[0], graph.common_ancestor(config, merge)
    names = [*graph.parents(config, merge), *([base] if base else [])]
    own = sae_of(config, leading, merge)
    return {name: (sae_of(config, leading, name), own) for name in dict.fromkeys(names)}


def merges(config: dict) -> list[str]:
    """Models of the lineage with more than one parent, each followed by the merges that stand in its place."""
    found = []
    for model in graph.lineage_models(config):
        line = [model, *config["lineage"]["controls"].get(model, [])]
        if len(graph.parents(config, model)) > 1:
            found += [name for name in line if len(graph.parents(config, name)) > 1]
    return found


def plan(config: dict) -> dict:
    """All comparisons by the names of their pairs, as plain data: what `trace_lineage` reads."""
    known = {frozenset(pair): pair_name(pair) for pair in all_pairs(config)}

    def names(pairs: Iterable[Pair]) -> list[str]:
        return [known[frozenset(pair)] for pair in pairs]

    rows = []
    for edge in graph.edges(config):
        for instrument in instruments(config):
            nulls = null_pairs(config, instrument, edge)
            row = {
                "parent": edge.parent,
                "child": edge.child,
                "instrument": instrument,
                "pair": pair_name(edge_pair(config, instrument, edge)),
                "floors": names(floor_pairs(config, instrument, edge.parent)),
                "seeds": {model: names(seed_pairs(config, model)) for model in edge},
                "nulls": dict(zip(nulls, names(nulls.values()), strict=True)),
            }
            rows.append(row)
            if instrument == "anchored" and (alone := anchored_alone(config, edge)):
                name = f"anchored to {edge.parent} alone"
                rows.append(row | {"instrument": name, "pair": pair_name(alone), "nulls": {}})
    recurrence = {
        f"{edge.parent}__{edge.child}": {
            side: {what: names(pairs) for what, pairs in both.items()}
            for side, both in recurrence_pairs(config, edge).items()
        }
        for edge in graph.edges(config)
    }
    sources = {}
    for merge in merges(config):
        pairs = source_pairs(config, merge)
        sources[merge] = {
            "parents": graph.parents(config, merge),
            "pairs": dict(zip(pairs, names(pairs.values()), strict=True)),
        }
    return {
        "leading": instruments(config)[0],
        "saes": leading_saes(config),
        "comparisons": rows,
        "recurrence": recurrence,
        "sources": sources,
    }


def all_pairs(config: dict) -> list[Pair]:
    """Every pair of SAEs that is correlated, each once whichever way round."""
    found: dict[frozenset, Pair] = {}
    for pair in _wanted_pairs(config):
        found.setdefault(frozenset(pair), pair)
    return list(found.values())


def pair_name(pair: Pair) -> str:
    """`{model}.{sae}__{model}.{sae}`."""
    return "__".join(map(str, pair))


def all_saes(config: dict) -> list[SaeName]:
    """Every SAE of the run, by model: those from seeds of their own, those compared, and those they start from."""
    outside = graph.outside_models(config)
    found = [sae for model in config["models"] if model not in outside for sae in graph.saes(config, model)]
    found += [_without_null(config, sae) for pair in all_pairs(config) for sae in pair]
    waiting = list(known := dict.fromkeys(found))
    for sae in waiting:  # grows while it is read: what an SAE starts from may start from others
        new = [start for start in graph.starts(config, sae.sae) if start not in known]
        known |= dict.fromkeys(new)
        waiting += new
    order = {model: place for place, model in enumerate(config["models"])}
    return sorted(known, key=lambda sae: order[sae.model])


def trained_saes(config: dict) -> list[SaeName]:
    """The SAEs that are trained here."""
    imported = graph.imported_saes(config)
    return [sae for sae in all_saes(config) if sae not in imported]


def measured_saes(config: dict) -> list[SaeName]:
    """The SAEs whose quality is measured: all from seeds of their own and all that an edge is seen through."""
    pairs = [edge_pair(config, instrument, edge) for edge in graph.edges(config) for instrument in instruments(config)]
    pairs += [alone for edge in graph.edges(config) if (alone := anchored_alone(config, edge))]
    wanted = {sae for pair in pairs for sae in pair}
    wanted |= {sae for model in graph.lineage_models(config) for sae in graph.saes(config, model)}
    return [sae for sae in all_saes(config) if sae in wanted]


def job_shape(config: dict) -> dict:
    """What decides which jobs a run has and how they hang together; everything else only changes what they do."""
    return {
        "corpora": list(config["corpora"]),
        "tokenizer": config["tokenizer"].get("corpora", []),
        "models": {
            model: [
                graph.kind(config, model),
                graph.like(config, model),
                graph.parents(config, model),
                graph.training_corpora(config, model),
            ]
            for model in config["models"]
        },
        "saes": {str(sae): graph.sae_settings(config, *sae)["corpora"] for sae in trained_saes(config)},
        "pairs": [pair_name(pair) for pair in all_pairs(config)],
        "one_pass": config["saes"]["one_pass"],
        "imported_saes": [str(sae) for sae in graph.imported_saes(config)],
        "shards": [config["activations"]["n_shards"], config["activations"]["n_probe_shards"]],
        "lineage": {key: config["lineage"][key] for key in ("token_type", "readouts", "ablations")},
        "sweeps": {sweep: [settings["model"], settings.get("corpora")] for sweep, settings in config["sweeps"].items()},
    }


def _controls_of(config: dict, edge: Edge) -> dict[str, str]:
    """The models that stand in the child's place of an edge, and what they are."""
    line = [edge.parent, *graph.ancestors(config, edge.parent)]
    random = [name for name in graph.models_of_kind(config, "reinitialise") if graph.like(config, name) in line]
    named = config["lineage"]["controls"].get(edge.child, [])
    return dict.fromkeys(random, "reinitialised") | dict.fromkeys(named, "control")


def _wanted_pairs(config: dict) -> Iterable[Pair]:
    """Every pair that anything asks for, some of them more than once."""
    for edge in graph.edges(config):
        for instrument in instruments(config):
            yield edge_pair(config, instrument, edge)
            yield from floor_pairs(config, instrument, edge.parent)
            yield from null_pairs(config, instrument, edge).values()
        if "anchored" in instruments(config) and (alone := anchored_alone(config, edge)):
            yield alone
        for both in recurrence_pairs(config, edge).values():
            yield from (pair for pairs in both.values() for pair in pairs)
    for model in graph.lineage_models(config):
        yield from seed_pairs(config, model)
    for merge in merges(config):
        yield from source_pairs(config, merge).values()


def _without_null(config: dict, sae: SaeName) -> SaeName:
    """The SAE that a null's features come from."""
    name = sae.sae
    for null in config["correlations"]["nulls"]:
        name = name.removesuffix(f"_{null}")
    return SaeName(sae.model, name)
