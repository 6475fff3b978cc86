"""The lineage graph of a config: models, how each is made, and which descends from which."""

from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.plan.merges import merge_settings, merge_words, needs_base

POOLED = "pooled"
"""The name of all corpora together. No corpus can have it."""

TWIN, CONTINUED = "twin", "continued"
"""Kinds of trained models that are controls of an edge by their kind alone."""
REVIVED = "revived"
"""The kind of models that show which of an edge's lost features return: its child, trained on its parent's corpora."""
KEPT = "kept"
"""The kind of models that are taken from another one's training at one of its steps."""
FINETUNED = ("finetune", TWIN, CONTINUED, REVIVED)
"""Kinds of models that are trained from another model's weights."""

SHORTEST_LINE = 3
"""Models of a chain that is shown by step."""

MODEL_KINDS = {
    "pretrain": "pretrained here",
    "finetune": "fine-tuned from {parents}",
    "merge": "merged from {parents} by {method}",
    "adapter": "{parents} with an adapter merged in",
    "hub": "imported from the hub",
    "path": "imported from a folder",
    "reinitialise": "random weights, like {like}",
    TWIN: "fine-tuned from {parents} like {of}, from another seed",
    CONTINUED: "{parents} trained further on its own corpora, like {like}",
    REVIVED: "{parents} trained further on the corpora of its parent",
    KEPT: "kept at step {step} of the training of {of}",
}
"""Every way of making a model: the key of its block under `models`, and what the page says of such a model."""


class Edge(NamedTuple):
    """A parent and a child of the lineage."""

    parent: str
    child: str

    def __str__(self) -> str:
        return f"{self.parent}__{self.child}"

    @classmethod
    def parse(cls, name: str) -> "Edge":
        """The edge of a name `{parent}__{child}`. Names of models hold no two underscores in a row."""
        parent, _, child = name.partition("__")
        return cls(parent, child)


class Graph:
    """The models of a config and their relations."""

    def __init__(self, config: Mapping):
        """Keep the config; everything else is computed when it is asked for.

        Args:
            config: with `models`, `corpora` and `lineage`, checked against the schema, defaults filled in.
        """
        self._models: Mapping[str, Mapping] = config["models"]
        self._corpora = list(config["corpora"])
        self._controls: Mapping[str, list[str]] = config["lineage"]["controls"]

    @property
    def models(self) -> list[str]:
        """Every model of the run, in the config's order."""
        return list(self._models)

    def kind(self, model: str) -> str:
        """The way in which a model is made, a key of `MODEL_KINDS`."""
        return next(iter(self._models[model]))

    def settings(self, model: str) -> dict:
        """The block that says how a model is made.

        Of a twin, continued or revived model it is the `finetune` that it equals; of a model that is kept from a
        training, that training's.
        """
        kind, block = self.kind(model), self.block(model)
        if kind == KEPT:
            return self.settings(block["of"])
        if kind == TWIN:
            return self.settings(block["of"]) | {"seed": block["seed"]}
        if kind == CONTINUED:
            own = {"parent": block["parent"], "corpora": self.settings(block["parent"])["corpora"]}
            length = {} if block["n_tokens"] is None else {"n_tokens": block["n_tokens"], "epochs": None}
            return self.settings(block["like"]) | own | length | {"seed": block["seed"]}
        if kind == REVIVED:
            before = self.settings(block["of"])["parent"]
            own = {"parent": block["of"], "corpora": self.settings(before)["corpora"]}
            return (
                self.settings(block["of"])
                | own
                | {"epochs": None, "n_tokens": block["n_tokens"], "seed": block["seed"]}
            )
        return block

    def block(self, model: str) -> dict:
        """The block of a model as it stands in the config."""
        return self._models[model][self.kind(model)]

    def made(self, model: str) -> str:
        """How a model was made, in words."""
        block, parents = self.block(model), " and ".join(self.parents(model))
        named = {key: block.get(key) for key in ("like", "of", "step")}
        method = merge_words(self.merge(model)) if self.kind(model) == "merge" else None
        words = MODEL_KINDS[self.kind(model)].format(parents=parents, method=method, **named)
        if freeze := self.freeze(model):
            return f"{words} with {freeze['share']:g} of the matrices of each block frozen (seed {freeze['seed']})"
        return f"{words} with {_words(lora)}" if (lora := self.lora(model)) else words

    def merge(self, model: str) -> dict:
        """The settings of a merged model, with the defaults of its method (`merges.merge_settings`)."""
        return merge_settings(self.block(model), f"models.{model}.merge")

    def merge_base(self, model: str) -> str | None:
        """The model from which a merge takes differences; None if it takes none.

        Raises:
            InputError: if it needs one, and its parents have no common ancestor.
        """
        settings = self.merge(model)
        if not needs_base(settings):
            return None
        if settings["base"] is not None:
            return settings["base"]
        changed = settings["parents"][1 if settings["method"] == "transfer" else 0 :]
        lines = [_line(parent, self.made_from) for parent in changed]  # kept steps are no base
        base = next((name for name in lines[0] if all(name in line for line in lines)), None)
        if base is None:
            raise InputError(
                f"models.{model}.merge.base: must be given, because no model of the run is one that "
                f"{' and '.join(changed)} descend from; name the model that differences are taken from"
            )
        return base

    def lora(self, model: str) -> dict | None:
        """The `lora` block of a fine-tuned model; None where all weights are trained, and for other kinds."""
        return self.settings(model).get("lora")

    def freeze(self, model: str) -> dict | None:
        """The `freeze` block of a fine-tuned model; None where no weights are frozen by it, and for other kinds."""
        freeze = self.settings(model).get("freeze")
        return freeze if freeze and freeze["share"] > 0 else None

    def finetuned(self, *, with_lora: bool, with_steps: bool = False) -> list[str]:
        """Names of the models that are fine-tuned by LoRA, or of those of which all weights are; twins included.

        Args:
            with_lora: those by LoRA.
            with_steps: those of whose trainings models are kept at some steps.
        """
        return [
            model
            for model in self.of_kind(*FINETUNED)
            if bool(self.lora(model)) == with_lora and bool(self.kept_steps(model)) == with_steps
        ]

    @cached_property
    def _kept(self) -> dict[str, dict[str, int]]:
        """For each training from which models are kept, their names and steps, in the order of the steps."""
        steps = [(self.block(model)["step"], model) for model in self.of_kind(KEPT)]
        kept: dict[str, dict[str, int]] = {}
        for step, model in sorted(steps):
            kept.setdefault(self.block(model)["of"], {})[model] = step
        return kept

    def kept_steps(self, model: str) -> list[int]:
        """The steps of a model's training at which others are kept, in order."""
        return list(self._kept.get(model, {}).values())

    def known_as(self, model: str) -> list[str]:
        """What others may call a model: its repository or folder, and its name in the run."""
        settings = self.settings(model)
        return [*(settings[key] for key in ("repo", "folder") if key in settings), model]

    def of_kind(self, *kinds: str) -> list[str]:
        """Names of the models made in one of these ways."""
        return [model for model in self._models if self.kind(model) in kinds]

    def parents(self, model: str) -> list[str]:
        """The models that a model descends from, in the config's order.

        The models of one training descend from each other, in the order of its steps.
        """
        of = self.block(model)["of"] if self.kind(model) == KEPT else model
        steps = [*self._kept.get(of, {}), of]
        before = steps[: steps.index(model)]
        return before[-1:] or self.made_from(model)

    def made_from(self, model: str) -> list[str]:
        """The models whose weights a model is made from, in the config's order."""
        settings = self.settings(model)
        return [settings["parent"]] if "parent" in settings else list(settings.get("parents", []))

    def needed(self, model: str) -> list[str]:
        """The models without which a model cannot be made: its parents, and the base of a merge."""
        base = self.merge_base(model) if self.kind(model) == "merge" else None
        return list(dict.fromkeys([*self.parents(model), *([base] if base else [])]))

    def like(self, model: str) -> str | None:
        """The model whose architecture and tokenizer a re-initialised model has."""
        return self.settings(model).get("like")

    def controls(self, child: str) -> list[str]:
        """Models that the child's parent is also compared with (`lineage.controls`)."""
        return list(self._controls.get(child, []))

    def twin_of(self, model: str) -> str | None:
        """The fine-tune that a twin repeats; None for other models."""
        return self.block(model)["of"] if self.kind(model) == TWIN else None

    def trained_controls(self, edge: Edge) -> dict[str, str]:
        """The twins of an edge's child and the continued models of its parent, each with its kind.

        A continued model that is the control of a revived one is that alone.
        """
        twins = [model for model in self.of_kind(TWIN) if self.twin_of(model) == edge.child]
        of_revived = {self.continued_like(model) for model in self.of_kind(REVIVED)}
        continued = [
            model
            for model in self.of_kind(CONTINUED)
            if self.parents(model) == [edge.parent] and model not in of_revived
        ]
        return dict.fromkeys(twins, TWIN) | dict.fromkeys(continued, CONTINUED)

    def revivals(self, edge: Edge) -> dict[str, str]:
        """The revived models of an edge's child, each with its control: the child continued for as many tokens."""
        return {
            model: control
            for model in self.of_kind(REVIVED)
            if self.parents(model) == [edge.child] and (control := self.continued_like(model))
        }

    def continued_like(self, revived: str) -> str | None:
        """The continued model that starts where a revived one does, with its settings and as many tokens, if any."""
        start, n_tokens = self.block(revived)["of"], self.block(revived)["n_tokens"]
        return next(
            (
                model
                for model in self.of_kind(CONTINUED)
                if self.block(model)["parent"] == self.block(model)["like"] == start
                and self.settings(model)["n_tokens"] == n_tokens
            ),
            None,
        )

    def siblings(self, edge: Edge) -> list[str]:
        """The other models that were trained from an edge's parent: its children, and continued models.

        Twins repeat the child's own training, and merges were not trained, so neither is a sibling.
        """
        children = [other.child for other in self.edges if other.parent == edge.parent and other.child != edge.child]
        trained = [child for child in children if self.kind(child) != "merge"]
        return [*trained, *(model for model, kind in self.trained_controls(edge).items() if kind == CONTINUED)]

    @property
    def beside_siblings(self) -> list[str]:
        """The models of every edge whose child has siblings, with these, in the order of `ordered`."""
        families = [{*edge, *siblings} for edge in self.edges if (siblings := self.siblings(edge))]
        return [model for model in self.ordered if any(model in family for family in families)]

    @cached_property
    def ordered(self) -> list[str]:
        """Models with every parent and the base of every merge before them, otherwise in the config's order.

        Raises:
            ValueError: if these form a cycle, naming its members.
        """
        ordered: list[str] = []
        left = list(self._models)
        while left:
            ready = [model for model in left if all(needed in ordered for needed in self.needed(model))]
            if not ready:
                raise ValueError(f"models {sorted(left)} are made from each other in a cycle")
            ordered.append(ready[0])
            left.remove(ready[0])
        return ordered

    @cached_property
    def outside(self) -> list[str]:
        """Models outside the lineage, and their descendants.

        These are re-initialised, twin, continued and revived models, and controls.
        """
        controls = {control for names in self._controls.values() for control in names}
        sources = controls | set(self.of_kind("reinitialise", TWIN, CONTINUED, REVIVED))
        return [model for model in self._models if sources & {model, *self.ancestors(model)}]

    @cached_property
    def lineage(self) -> list[str]:
        """The models of the lineage, parents before children."""
        return [model for model in self.ordered if model not in self.outside]

    @cached_property
    def edges(self) -> list[Edge]:
        """Every parent-child pair of the lineage, in the order of the children."""
        return [Edge(parent, child) for child in self.lineage for parent in self.parents(child)]

    @property
    def children(self) -> list[str]:
        """Models of the lineage with a parent."""
        return [model for model in self.lineage if self.parents(model)]

    def edges_of(self, model: str) -> list[Edge]:
        """Every edge from or to a model."""
        return [edge for edge in self.edges if model in edge]

    @cached_property
    def lines(self) -> list[list[str]]:
        """Every longest chain of at least three models of the lineage in which each has the one before as only parent.

        Chains that part have the models before in common.
        """
        follow: dict[str, list[str]] = {model: [] for model in self.lineage}
        for model in self.lineage:
            if len(parents := self.parents(model)) == 1:
                follow[parents[0]].append(model)
        lines = [[model] for model in self.lineage if len(self.parents(model)) != 1]
        for line in lines:  # the list grows in the loop where chains part
            while children := follow[line[-1]]:
                lines += [[*line, child] for child in children[1:]]
                line.append(children[0])
        return [line for line in lines if len(line) >= SHORTEST_LINE]

    @property
    def line_edges(self) -> list[Edge]:
        """Every edge of `lines`, once."""
        return list(dict.fromkeys(Edge(*pair) for line in self.lines for pair in pairwise(line)))

    @property
    def roots(self) -> list[str]:
        """Models of the lineage without parents."""
        return [model for model in self.lineage if not self.parents(model)]

    @property
    def connected(self) -> list[str]:
        """Models of the lineage with a parent or a child, whose features the page shows."""
        return [model for model in self.lineage if any(model in edge for edge in self.edges)]

    def ancestors(self, model: str) -> list[str]:
        """A model's parents, their parents and so on, nearest first."""
        return _line(model, self.parents)

    def common_ancestor(self, model: str) -> str | None:
        """The nearest model that every parent of a model is or descends from, if there is one."""
        lines = [[parent, *self.ancestors(parent)] for parent in self.parents(model)]
        return next((name for name in lines[0] if all(name in line for line in lines)), None) if lines else None

    def training_corpora(self, model: str) -> list[str]:
        """Corpora that a model was last trained on. A merge has those of its parents. Empty if unknown."""
        corpora: dict[str, None] = {}
        visited: set[str] = set()
        left = [model]
        while left:
            name = left.pop(0)
            if name not in visited:  # through merges of merges a model is reached on many paths
                visited.add(name)
                settings = self.settings(name)
                corpora |= dict.fromkeys(settings.get("corpora", []))
                left = ([] if "corpora" in settings else self.parents(name)) + left
        return list(corpora)

    def mixture(self, model: str) -> list[str]:
        """The corpora that a model and its ancestors were trained on, as in the study. All corpora if none is known."""
        line = [model, *self.ancestors(model)]
        trained_on = {corpus for name in line for corpus in self.training_corpora(name)}
        return [corpus for corpus in self._corpora if corpus in trained_on or not trained_on]


def _line(model: str, before: Callable[[str], list[str]]) -> list[str]:
    """The models before a model, those before them and so on, nearest first."""
    line: list[str] = []
    left = list(before(model))
    while left:
        nearest = left.pop(0)
        if nearest not in line:
            line.append(nearest)
            left.extend(before(nearest))
    return line


def _words(lora: Mapping) -> str:
    """A `lora` block in words."""
    targets = lora["target_modules"]
    layers = "all linear layers" if isinstance(targets, str) else ", ".join(targets)
    return f"{'rsLoRA' if lora['rslora'] else 'LoRA'} (r = {lora['r']}, alpha = {lora['alpha']}, {layers})"
