"""Fine-tuning by LoRA: the layers that a `lora` block adapts, told from the names and shapes of a model's layers.

The plan asks before the first job, of parents whose layers are known. The job asks again of the model that it opens.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.foreign.models import LAYERS, named

ALL_LINEAR = "all-linear"
HEADS = ("embed_out", "lm_head")
"""Names of output embeddings in files."""
EMBEDDINGS = ("embed_in", "embed_positions", "embed_tokens", "embeddings", "word_embeddings", "wpe", "wte")
PARTS_OF_EXPERTS = ("down_proj", "gate", "gate_proj", "up_proj", "w1", "w2", "w3")
"""Names that peft takes for parts of experts in a mixture of experts, whichever layer has them."""

NO_EMBEDDING = "is an embedding, not a linear layer"
TIED = "is the input embedding too (tied), so that merging would change both ends"
EXPERTS = "is a part of experts, or has the name of one, and experts are not adapted here"
NO_TEXT = "works on images or sound, which no text reaches"


class Layers(NamedTuple):
    """The layers of a model."""

    linear: Mapping[str, Sequence[int]]
    """Shapes of those that LoRA can adapt, by name."""
    others: Mapping[str, str]
    """Why others cannot be adapted, by name."""


class Choice(NamedTuple):
    """The layers that a `lora` block adapts."""

    modules: list[str]
    """Their names, sorted."""
    warnings: list[str]
    """Sentences to warn with."""


def choose_layers(lora: Mapping, layers: Layers, key: str) -> Choice:
    """Find the layers that a `lora` block adapts, as peft finds them: by their names, or the ends of these.

    Args:
        lora: the block.
        layers: of the parent.
        key: the block's place in the config, for messages.

    Raises:
        InputError: if a name matches nothing that can be adapted, or the rank is above the width of every layer.
    """
    targets, warnings = lora["target_modules"], []
    if targets == ALL_LINEAR:
        modules = sorted(name for name in layers.linear if not _ends_in(name, HEADS))
        if experts := [name for name, reason in layers.others.items() if reason == EXPERTS]:
            warnings.append(f"{key}: {ALL_LINEAR} leaves out {named(experts)}, because experts are not adapted here")
    else:
        for target in targets:
            _require_match(target, layers, key)
        modules = sorted(name for name in layers.linear if _ends_in(name, targets))
    return Choice(modules, warnings + _rank_notes(lora["r"], {name: layers.linear[name] for name in modules}, key))


def pretrained_layers(settings: Mapping) -> Layers:
    """The layers of the Mistral that a config's `pretrain` block makes."""
    d_model, d_mlp = settings["d_model"], settings["d_mlp"]
    d_keys = d_model * settings["n_kv_heads"] // settings["n_heads"]
    block = {
        **{f"self_attn.{name}": (d_model, d_model) for name in ("q_proj", "o_proj")},
        **{f"self_attn.{name}": (d_keys, d_model) for name in ("k_proj", "v_proj")},
        **{f"mlp.{name}": (d_mlp, d_model) for name in ("gate_proj", "up_proj")},
        "mlp.down_proj": (d_model, d_mlp),
    }
    blocks = [f"model.layers.{number}" for number in range(settings["n_layers"])]
    linear = {f"{start}.{name}": shape for start in blocks for name, shape in block.items()}
    others = {"model.embed_tokens": NO_EMBEDDING}
    if settings["tie_embeddings"]:
        return Layers(linear, others | {"lm_head": TIED})
    return Layers(linear | {"lm_head": (d_model, d_model)}, others)  # as wide as the residual stream, at least


def filed_layers(config: Mapping, shapes: Mapping[str, Sequence[int]]) -> Layers | None:
    """The layers of a model whose weights lie on disk; None for a type whose names may be others in memory.

    None too where no weights can be read, which the job that imports the model reports.

    Args:
        config: its config.json.
        shapes: of its tensors, by name.
    """
    if not shapes or not any(config.get("model_type") in kinds for kinds in LAYERS.values()):
        return None
    matrices = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) >= 2}
    others = {name: NO_EMBEDDING for name in matrices if _ends_in(name, EMBEDDINGS)}
    is_mixture = any(".experts." in name for name in matrices)
    others |= {name: EXPERTS for name in matrices if is_mixture and is_part_of_experts(name)}
    if not any(_ends_in(name, HEADS) for name in matrices):
        others |= dict.fromkeys(HEADS, TIED)
    return Layers({name: shape for name, shape in matrices.items() if name not in others}, others)


def is_part_of_experts(name: str) -> bool:
    """True of a layer of a mixture of experts that is part of an expert, or that peft takes for one."""
    return ".experts." in name or _ends_in(name, PARTS_OF_EXPERTS)


def ends_of(modules: Iterable[str], names: Iterable[str]) -> list[str]:
    """The shortest list of names under `target_modules` that adapts these modules of a model and no others.

    Args:
        modules: some of the model's modules.
        names: those of all its modules.
    """
    modules = sorted(modules)
    ends = sorted({name.rpartition(".")[2] for name in modules})
    return ends if sorted(name for name in names if _ends_in(name, ends)) == modules else modules


def _require_match(target: str, layers: Layers, key: str) -> None:
    """Refuse a name under `target_modules` that matches no linear layer, with the reason or with near names."""
    if any(_ends_in(name, [target]) for name in layers.linear):
        return
    start = f"{key}.target_modules: '{target}' must be a linear layer's name, or the end of one after a dot, but"
    known = sorted({name.rpartition(".")[2] for name in layers.linear})
    for name, reason in layers.others.items():
        if _ends_in(name, [target]):
            raise InputError(f"{start} {name} {reason}; choose among {', '.join(known)}")
    near = get_close_matches(target.rpartition(".")[2], known, n=3)
    remedy = f"did you mean {' or '.join(near)}?" if near else "correct it"
    raise InputError(f"{start} the parent has none of that name; {remedy} (its linear layers: {', '.join(known)})")


def _rank_notes(r: int, shapes: Mapping[str, Sequence[int]], key: str) -> list[str]:
    """Refuse a rank above the smaller side of every layer, and warn of one above that of some."""
    sides = {name: min(shape[-2:]) for name, shape in shapes.items()}
    if not sides:
        raise InputError(f"{key}.target_modules: the parent must have linear layers, but has none; train all weights")
    if r > (largest := max(sides.values())):
        raise InputError(
            f"{key}.r: must be at most {largest}, the largest smaller side of a layer that it adapts, not {r}, because "
            "the adapter would hold more numbers than the weights that it spares; lower it, or leave out lora"
        )
    above = [f"{name} ({side})" for name, side in sides.items() if r > side]
    if not above:
        return []
    return [
        f"{key}.r: {r} is above the smaller side of some layers, where a smaller rank does the same: {named(above)}"
    ]


def _ends_in(name: str, ends: Iterable[str]) -> bool:
    """True if a name is one of these, or ends in one after a dot."""
    return any(name == end or name.endswith(f".{end}") for end in ends)
