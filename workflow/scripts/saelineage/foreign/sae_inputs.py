"""The input of a third-party SAE as its files describe it, compared with the activations of a run."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.foreign.places import CENTRED, HEADS, RESIDUAL, Reading, read_hook_name

MODEL_ALIASES = {"gpt2small": "gpt2"}
"""TransformerLens's names of models that differ from those of the hub."""


class SaeInput(NamedTuple):
    """The input of an SAE, as its config describes it. None where it does not say."""

    where: str
    """The config, for messages."""
    readings: tuple[Reading, ...] = ()
    """The place, under each name that the config has for it."""
    d_in: int | None = None
    d_sae: int | None = None
    k: int | None = None
    model_name: str | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    hook_head_index: int | None = None
    seqpos_slice: tuple[int | None, ...] | None = None
    model_settings: Mapping[str, object] | None = None
    """Options with which TransformerLens loaded the model; None if the config has no such key."""
    is_transformer_lens: bool = False
    """True if TransformerLens computed the activations, as the names tell."""
    original: Mapping[str, object] = {}
    """The config's own keys about the input, under SAELens's names of version 6."""
    remarks: tuple[str, ...] = ()
    """Sentences on what the SAE is, which the user may not know."""


class Beside(NamedTuple):
    """The SAEs that are trained beside imported ones, from random weights."""

    names: tuple[str, ...]
    expansion_factor: float | int
    k: int | None
    """Latents that they keep per token; None if their architecture has no k."""


class RunInput(NamedTuple):
    """The activations of a run that an SAE is imported for."""

    hookpoint: str
    n_ctx: int
    model: str
    """The model's name in the run."""
    sources: tuple[str, ...] = ()
    """Repository or folder that the model comes from, if it was not made here."""
    d_in: int | None = None
    """Width at the hookpoint, if it is known yet."""
    norm: str | None = None
    """`layer` or `rms`, the kind of the model's norms, if it is known yet (`norm_kind`)."""
    norms_outputs: bool | None = None
    """True if the model normalises the outputs of attention and MLP (`norms_outputs`); None if it is not known."""
    parallel: bool | None = None
    """True if the model's attention and MLP both read the layer's input (`has_parallel_blocks`); None if not known."""
    beside: Beside | None = None
    """The SAEs that the imported one is compared with in size, if there are such and they are known."""
    revision: str | None = None
    """The revision of the repository that the model comes from, if any."""

    @property
    def reading(self) -> Reading:
        """The place of the hookpoint."""
        return read_hook_name(self.hookpoint).of_model(self.norms_outputs, self.parallel)

    @property
    def has_layout(self) -> bool:
        """True if something is known of the model's layout."""
        return self.norms_outputs is not None or self.parallel is not None

    @property
    def writes_residual(self) -> bool:
        """True at the residual stream and at what is added to it, where TransformerLens can centre activations."""
        return any(place.kind in CENTRED for place in self.reading.places)


def compare_with_run(sae: SaeInput, run: RunInput, key: str) -> list[str]:
    """Refuse an SAE whose input is not a run's, and say in sentences what cannot be told for sure.

    Raises:
        InputError: naming the key to change, if the place or its width is another, one head alone was read, or the SAE
            was not trained on positions that the run reads.
    """
    sentences = _compare_places(sae, run, key)
    _require_width(sae, run, key)
    _require_whole(sae, run, key)
    is_centred(sae, run, key)  # refuses what cannot be folded
    sentences += [*_compare_models(sae, run, key), *_compare_rows(sae, run, key), *_doubts(sae, run, key)]
    sentences += [f"{key}: {remark}" for remark in sae.remarks]
    return sentences + (_compare_sizes(sae, run.beside, key) if run.beside else [])


def _compare_places(sae: SaeInput, run: RunInput, key: str) -> list[str]:
    hookpoint = run.reading
    if not sae.readings:
        return [
            f"{key}: '{sae.where}' does not say at which hookpoint the SAE was trained; make sure that it is "
            f"'{run.hookpoint}' (activations.hookpoint)"
        ]
    sentences = []
    for reading in (reading.of_model(run.norms_outputs, run.parallel) for reading in sae.readings):
        if reading.name == run.hookpoint:
            continue
        known = bool(reading.places and hookpoint.places)
        # Before the model is known, the layout is left to the job.
        is_ambiguous = len({*reading.places, *hookpoint.places}) > 1 and run.has_layout
        same_place = bool(set(reading.places) & set(hookpoint.places))
        same_layer = bool(reading.layers & hookpoint.layers) or not (reading.layers and hookpoint.layers)
        if not (same_place if known else same_layer):
            raise InputError(
                f"{key}: '{sae.where}' says that the SAE was trained at {reading}, but activations.hookpoint is "
                f"{hookpoint}; {_remedy(reading, run.hookpoint)}"
            )
        if not known or (is_ambiguous and reading.places != hookpoint.places):
            sentences.append(
                f"{key}: '{sae.where}' says that the SAE was trained at {reading}, and it is unclear whether that is "
                f"{hookpoint} (activations.hookpoint); make sure that it is"
            )
    return sentences


def _remedy(reading: Reading, hookpoint: str) -> str:
    """The next step for an SAE of another place: the hookpoint that it needs, if its name in this model can be told."""
    layer = re.fullmatch(r"(.*\.(?:layers|h|blocks|layer))\.\d+\.(.+)", hookpoint)
    needed = None
    if layer and len(reading.places) == 1:
        (place,) = reading.places
        if place.kind == RESIDUAL:
            needed = f"{place.layer - 1}.output" if place.layer else "0.input"
        elif place.kind == HEADS and HEADS not in [of_run.kind for of_run in read_hook_name(hookpoint).places]:
            return f"{_heads_input(place.layer)}, or import an SAE that was trained at this hookpoint"
        elif place.kind in [of_run.kind for of_run in read_hook_name(hookpoint).places]:
            needed = f"{place.layer}.{layer[2]}"
    change = f"set it to '{layer[1]}.{needed}'" if layer and needed else "set it to that place"
    return f"{change}, or import an SAE that was trained at this hookpoint"


def _heads_input(layer: int) -> str:
    """The step to the hookpoint of the concatenated heads, whose module has another name in every kind of model."""
    return (
        f"set it to the input of the output projection of attention: 'transformer.h.{layer}.attn.c_proj.input' in "
        f"GPT-2, 'gpt_neox.layers.{layer}.attention.dense.input' in Pythia, "
        f"'model.layers.{layer}.self_attn.o_proj.input' in Llama, Gemma and Qwen"
    )


def _require_width(sae: SaeInput, run: RunInput, key: str) -> None:
    if sae.d_in is not None and run.d_in is not None and sae.d_in != run.d_in:
        raise InputError(
            f"{key}: an SAE for '{run.hookpoint}' must have d_in {run.d_in}, but '{sae.where}' says {sae.d_in}; "
            "set activations.hookpoint to the place it was trained at, or import another SAE"
        )


def _require_whole(sae: SaeInput, run: RunInput, key: str) -> None:
    """Refuse an SAE of one head, or of a part of the positions that the run reads."""
    if sae.hook_head_index is not None:
        raise InputError(
            f"{key}: the SAE of '{sae.where}' was trained on head {sae.hook_head_index} alone (hook_head_index), but "
            "activations.hookpoint reads all heads; import another SAE"
        )
    if sae.seqpos_slice is None:
        return
    positions = range(sae.context_size or run.n_ctx)
    trained = positions[slice(*sae.seqpos_slice)]
    read = positions[1 : run.n_ctx]  # position 0 is BOS, which is not read
    unseen = [position for position in read if position not in trained]
    if unseen:
        raise InputError(
            f"{key}: '{sae.where}' must have a seqpos_slice that holds all positions, but {list(sae.seqpos_slice)} "
            f"left {len(unseen)} of the {len(read)} that are read here out of the SAE's training, from position "
            f"{unseen[0]}; import another SAE"
        )


def _compare_models(sae: SaeInput, run: RunInput, key: str) -> list[str]:
    names = [run.model, *run.sources]
    if sae.model_name is None or _plain_name(sae.model_name) in map(_plain_name, names):
        return []
    source = f", which comes from {' and '.join(map(repr, run.sources))}" if run.sources else ""
    return [
        f"{key}: '{sae.where}' says that the SAE was trained on the model '{sae.model_name[:80]}', but it is imported "
        f"for '{run.model}'{source}; make sure that these are the same model, or one whose features you want to see "
        "through the other's SAE"
    ]


def _plain_name(name: str) -> str:
    """A model's name without its owner, punctuation and case."""
    plain = re.sub(r"[^a-z0-9]", "", name.rstrip("/").rsplit("/", 1)[-1].lower())
    return MODEL_ALIASES.get(plain, plain)


def _compare_rows(sae: SaeInput, run: RunInput, key: str) -> list[str]:
    sentences = []
    if sae.context_size is not None and sae.context_size != run.n_ctx:
        sentences.append(
            f"{key}: '{sae.where}' says that the SAE was trained on contexts of {sae.context_size} tokens, but rows "
            f"here have {run.n_ctx} (tokens.n_ctx); activations depend on the position, so set n_ctx to "
            f"{sae.context_size} if you can"
        )
    if sae.prepend_bos is False:
        sentences.append(
            f"{key}: '{sae.where}' says that the SAE was trained on contexts without BOS (prepend_bos), but rows here "
            "begin with it, which changes the activations after it; look at the SAE's fvu"
        )
    return sentences


def _doubts(sae: SaeInput, run: RunInput, key: str) -> list[str]:
    """Say which options of loading the model may matter."""
    settings, sentences = sae.model_settings or {}, []
    if sae.model_settings is None and sae.is_transformer_lens and run.norm == "layer" and run.writes_residual:
        sentences.append(
            f"{key}: '{sae.where}' does not say whether TransformerLens centred the activations "
            "(model_from_pretrained_kwargs), which fvu hardly shows; if it did, add "
            '{"center_writing_weights": true} there in a copy'
        )
    if settings.get("center_writing_weights") and run.norm == "rms":
        sentences.append(
            f"{key}: '{sae.where}' has center_writing_weights, which TransformerLens ignores for models with RMSNorm; "
            "so it is ignored here"
        )
    if settings.get("center_writing_weights") and run.norm is None and run.writes_residual:
        sentences.append(
            f"{key}: '{sae.where}' has center_writing_weights, so the activations are centred for this SAE; "
            "this is right if the model has LayerNorm, which could not be told from its config"
        )
    moved = {"revision", "checkpoint_index", "checkpoint_value", "checkpoint_label"} & settings.keys()
    return sentences + [
        f"{key}: '{sae.where}' says that the SAE was trained on {name} {settings[name]!r:.80} of the model; make sure "
        f"that '{run.model}' is the same"
        for name in sorted(moved)
        if settings[name] != run.revision
    ]


def is_centred(sae: SaeInput, run: RunInput, key: str) -> bool:
    """True if an SAE was trained on activations minus their mean over dimensions, as TransformerLens can make them.

    `center_writing_weights` removes the mean from all that is written to the residual stream of a model with LayerNorm,
    which changes no logit. Other places keep their values.

    Raises:
        InputError: if TransformerLens changed the activations in a way that cannot be folded into the SAE.
    """
    settings = sae.model_settings or {}
    for option in ("fold_value_biases", "refactor_factored_attn_matrices"):
        if settings.get(option) and HEADS in [place.kind for place in run.reading.places]:
            raise InputError(
                f"{key}: '{sae.where}' must not have {option} in model_from_pretrained_kwargs, because the heads of "
                "such a model are not those of the model on the hub; import another SAE"
            )
    if not settings.get("center_writing_weights") or run.norm == "rms":
        return False
    if not run.reading.places:
        raise InputError(
            f"{key}: '{sae.where}' has center_writing_weights, but whether it changes activations at "
            f"'{run.hookpoint}' (activations.hookpoint) cannot be told; name the input or output of a layer, or of its "
            "attention or MLP"
        )
    return run.writes_residual


def _expansion_factor(d_in: int, d_sae: int) -> str:
    """The shortest number that gives d_sae latents."""
    texts = (f"{d_sae / d_in:.{n_digits}g}" for n_digits in range(1, 18))
    return next((text for text in texts if round(d_in * float(text)) == d_sae), repr(d_sae / d_in))


def _compare_sizes(sae: SaeInput, beside: Beside, key: str) -> list[str]:
    """Say that an imported SAE differs in size or k from SAEs that are trained beside it."""
    sentences, names = [], ", ".join(beside.names[:5]) + (" ..." if len(beside.names) > 5 else "")
    trained = round(sae.d_in * beside.expansion_factor) if sae.d_in else None
    if sae.d_in and sae.d_sae and sae.d_sae != trained:
        sentences.append(
            f"{key}: '{sae.where}' has {sae.d_sae} latents, but SAEs that are trained beside it ({names}) have "
            f"{trained}; for SAEs of one size set saes.expansion_factor to {_expansion_factor(sae.d_in, sae.d_sae)}"
        )
    if sae.k is not None and beside.k is not None and sae.k != beside.k:
        sentences.append(
            f"{key}: '{sae.where}' keeps {sae.k} latents per token, but SAEs that are trained beside it ({names}) "
            f"keep {beside.k}; for SAEs of one sparsity set saes.k to {sae.k}"
        )
    return sentences
