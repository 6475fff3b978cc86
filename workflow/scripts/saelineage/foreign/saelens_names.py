"""The metadata by which SAELens finds an SAE's activations again: module, model, and tokens that are left out.

With `model_class_name: AutoModelForCausalLM`, SAELens's `hook_name` is a module whose output is read. The input of a
module has such a name only if another module's output is passed on unchanged; `activations.same_output` finds that one
by running the model. Some inputs have a name in TransformerLens. Others have none, and then the metadata names none.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from saelineage.foreign.places import TRANSFORMER_LENS, has_parallel_blocks, norms_outputs, read_hook_name

AUTO_MODEL, TRANSFORMER_LENS_MODEL = "AutoModelForCausalLM", "HookedTransformer"
UNNAMED = (
    "SAELens has no name for this place: it is the input of a module, no other module's output equals it, and "
    "TransformerLens has no hook for it"
)
"""The metadata's note where SAELens cannot read the activations by a name."""
LISTED = "a hook of TransformerLens, which by itself opens only models that it lists"
"""The metadata's note beside TransformerLens's names."""
SIDES = (".input", ".output")
KWARGS = "model_from_pretrained_kwargs"


def place_keys(hookpoint: str, same_output: str | None = None, config: Mapping = MappingProxyType({})) -> dict:
    """SAELens's keys for a hookpoint.

    Args:
        hookpoint: a module and a side of it.
        same_output: for an input, a module whose output it is (`activations.same_output`); None if there is none.
        config: the model's config.json, as far as it is known; without it places that depend on the model's layout
            have no name in TransformerLens.
    """
    module, _, side = hookpoint.rpartition(".")
    if side == "output":
        same_output = module
    if same_output is not None:
        return {"hook_name": same_output, "model_class_name": AUTO_MODEL}
    hook = _transformer_lens_hook(hookpoint, config)
    if hook is None:
        return {"hook_name": None, "hf_hook_name": hookpoint, "hook_name_note": UNNAMED}
    # No options of loading, because the activations are those of the model as it is.
    named = {"hook_name": hook, "hf_hook_name": hookpoint, "hook_name_note": LISTED}
    return named | {"model_class_name": TRANSFORMER_LENS_MODEL, KWARGS: {}}


def _transformer_lens_hook(hookpoint: str, config: Mapping) -> str | None:
    """TransformerLens's hook at a hookpoint; None if it has none, or the place is not certain."""
    layout = (norms_outputs(config), has_parallel_blocks(config)) if config else (None, None)
    places = read_hook_name(hookpoint).of_model(*layout).places
    if len(places) != 1:
        return None
    hooks = {name: kinds.of_model(*layout) for name, kinds in TRANSFORMER_LENS.items()}
    name = next((name for name, kinds in hooks.items() if kinds == (places[0].kind,)), None)
    return None if name is None else f"blocks.{places[0].layer}.{name}"


def model_keys(name: str, revision: str | None = None) -> dict:
    """SAELens's keys for a model that `from_pretrained` opens by this name, and the revision of a repository."""
    return {"model_name": name} | ({KWARGS: {"revision": revision}} if revision else {})


def input_keys(headers: Sequence[Mapping], model: Mapping) -> dict:
    """SAELens's keys for the input of an SAE that was trained on activation shards.

    Args:
        headers: of the shards.
        model: arguments of `model_keys`.
    """
    place = headers[0].get("saelens") or place_keys(headers[0]["hookpoint"])  # shards of older versions have no names
    of_model = model_keys(**model)
    kwargs = {KWARGS: place.get(KWARGS, {}) | of_model.get(KWARGS, {})} if KWARGS in place | of_model else {}
    return place | of_model | kwargs | token_keys(headers)


def difference_keys(headers: Sequence[Mapping], child: Mapping, parent: str) -> dict:
    """SAELens's keys for an SAE of the activations of a child minus those of its parent, which no one model has.

    Args:
        headers: of the child's activation shards.
        child: arguments of `model_keys`.
        parent: the name of the parent, for the note.
    """
    hookpoint = headers[0]["hookpoint"]
    note = (
        f"the input is a difference: the activations of {child['name']} at {hookpoint} minus those of {parent} on the "
        "same tokens; SAELens has no name for it"
    )
    place = {"hook_name": None, "hf_hook_name": hookpoint, "hook_name_note": note}
    return place | model_keys(**child) | token_keys(headers)


def token_keys(headers: Sequence[Mapping]) -> dict:
    """SAELens's keys for the tokens that an SAE was trained on, as far as it can express them.

    Rows of text begin with BOS; BOS and EOS are left out wherever they are. Of a conversation only the first token is.

    Args:
        headers: of the activation shards (`left_out_ids`: ids that are left out, None for conversations).
    """
    keys: dict[str, object] = {"context_size": headers[0]["n_ctx"]}
    left_out = [header.get("left_out_ids", "unknown") for header in headers]
    if any(ids != left_out[0] for ids in left_out) or left_out[0] == "unknown":
        return keys
    if left_out[0] is None:
        return keys | {"exclude_special_tokens": False, "seqpos_slice": [1, None]}
    return keys | {"prepend_bos": True, "exclude_special_tokens": left_out[0]}


def resolves(hook_name: object) -> bool:
    """True for a name that SAELens may resolve: older versions of this project wrote the module's side with it."""
    return isinstance(hook_name, str) and not hook_name.endswith(SIDES)
