"""Language models as their config.json describes them: sizes, the text part of a multimodal one."""

from collections.abc import Iterable, Mapping

TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Keys under which the config of a multimodal model holds that of its text model."""
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
MLP_KEYS = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "ffn_hidden_dim", "d_ff")
DEFAULT_MLP_RATIO = 4


def text_config(config: Mapping) -> Mapping:
    """The part of a model's config that describes its text model: a nested part, or the config itself."""
    for key in TEXT_PARTS:
        part = config.get(key)
        if isinstance(part, Mapping):
            return text_config(part)
    return config


def vocab_size(config: Mapping) -> int | None:
    """Number of token ids, also of a multimodal model; None where the config leaves it to its class's default."""
    return _first_count(text_config(config), ("vocab_size",)) or _first_count(config, ("vocab_size",))


def n_layers(config: Mapping) -> int | None:
    """Number of layers of the text model; None where the config does not say."""
    return _first_count(text_config(config), LAYER_KEYS)


def d_model(config: Mapping) -> int | None:
    """Width of the residual stream of the text model; None where the config does not say."""
    return _first_count(text_config(config), WIDTH_KEYS)


def d_mlp(config: Mapping) -> int | None:
    """Width of the text model's MLPs, 4 x d_model where only that is given; None where the config says neither."""
    width = d_model(config)
    return _first_count(text_config(config), MLP_KEYS) or (DEFAULT_MLP_RATIO * width if width else None)


def _first_count(config: Mapping, keys: Iterable[str]) -> int | None:
    counts = (config.get(key) for key in keys)
    return next((count for count in counts if type(count) is int and count > 0), None)
