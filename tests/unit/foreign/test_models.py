"""Models as their folders and config.json describe them, before anything large is read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.foreign.models import (
    causal_problem,
    check_folder,
    compare_configs,
    context_problem,
    d_mlp,
    d_model,
    equal_sources,
    known_d_mlp,
    n_layers,
    n_positions,
    require_same_function,
    text_config,
    vocab_size,
)

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
GEMMA3 = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240}
    | {"num_hidden_layers": 34},
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
}
"""The keys of a published one, which leaves the vocabulary to the default of its class."""
MPT = {"model_type": "mpt", "d_model": 64, "n_layers": 3, "n_heads": 4, "expansion_ratio": 4, "vocab_size": 300}
XGLM = {"model_type": "xglm", "d_model": 48, "num_layers": 5, "ffn_dim": 100, "vocab_size": 300}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 24,
    "n_layer": 6,
    "n_head": 4,
    "n_positions": 64,
    "n_ctx": 64,
    "vocab_size": 300,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config and weights that are never read."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "theirs" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "theirs"


def refused(folder: Path, n_ctx: int | None = None) -> str:
    with pytest.raises(InputError) as raised:
        check_folder(folder, n_ctx)
    assert str(raised.value).startswith(f"'{folder}")
    assert str(raised.value).isprintable()
    return str(raised.value)


def only(folder: Path, *names: str) -> Path:
    """The folder with these files instead of its weights."""
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(b"{}")
    return folder


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (LLAMA, (300, 2, 32, 48)),
        (GEMMA3, (None, 34, 2560, 10240)),
        (GEMMA3 | {"text_config": LLAMA}, (300, 2, 32, 48)),
        (MPT, (300, 3, 64, 256)),
        (XGLM, (300, 5, 48, 100)),
        (GPT2 | {"n_inner": None}, (300, 6, 24, 96)),
        ({"thinker_config": {"text_config": LLAMA}}, (300, 2, 32, 48)),
        ({"hidden_size": "32", "vocab_size": True, "num_hidden_layers": -1}, (None, None, None, None)),
    ],
    ids=["llama", "gemma3", "llama in gemma3", "mpt", "xglm", "gpt2", "two levels", "no counts"],
)
def test_the_sizes_of_a_model_are_those_of_its_text_part(config: dict, sizes: tuple):
    assert (vocab_size(config), n_layers(config), d_model(config), d_mlp(config)) == sizes


def test_a_config_without_parts_describes_the_text_model_itself():
    assert text_config(LLAMA) is LLAMA
    assert text_config(GEMMA3) is GEMMA3["text_config"]
    assert text_config({"text_config": None, "hidden_size": 3}) == {"text_config": None, "hidden_size": 3}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (GPT2, 64),
        (LLAMA, 64),
        (MPT | {"max_seq_len": 2048}, 2048),
        ({"text_config": LLAMA}, 64),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        # Qwen2.5: 32,768 positions, and four times as many with YaRN.
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, 256),
        # Llama 3.1 states the extended length.
        (
            LLAMA
            | {"max_position_embeddings": 512}
            | {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 64}},
            512,
        ),
        (LLAMA | {"rope_parameters": {"full_attention": {"factor": 8.0}, "sliding_attention": {}}}, 512),
        (LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 64),
        ({"model_type": "bloom", "n_layer": 2, "seq_length": 64}, None),
        ({"model_type": "falcon", "alibi": True, "max_position_embeddings": 64}, None),
        ({"model_type": "mamba", "hidden_size": 32}, None),
    ],
    ids=[
        "gpt2",
        "llama",
        "mpt",
        "nested",
        "linear",
        "yarn",
        "llama3",
        "by layer",
        "default",
        "bloom",
        "falcon",
        "mamba",
    ],
)
def test_the_positions_of_a_model(config: dict, limit: int | None):
    assert n_positions(config) == limit
    if limit is None:
        assert context_problem(config, 10**6) is None
    else:
        assert context_problem(config, limit) is None
        assert f"must be at most {limit}" in (context_problem(config, limit + 1) or "")


def test_rows_longer_than_a_model_s_positions_are_refused_in_one_sentence(folder: Path):
    assert check_folder(folder, 64) == []
    assert refused(folder, 65) == (
        f"'{folder}': tokens.n_ctx must be at most 64, the positions that this model was made for "
        "(max_position_embeddings in config.json), not 65, because it predicts nothing sensible beyond them; lower "
        "tokens.n_ctx, or take another model"
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            "model_type 'bert' is an encoder, in which each",
        ),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "model_type 'bert' is an encoder"),
        ({"model_type": "xlm-roberta"}, "is an encoder"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5' is an encoder with a decoder"),
        (
            LLAMA | {"architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification, has another head",
        ),
    ],
    ids=["masked", "bert", "roberta", "t5", "classifier"],
)
def test_a_model_that_is_not_causal_is_refused(folder: Path, config: dict, said: str):
    (folder / "config.json").write_text(json.dumps(config))
    assert said in refused(folder)


@pytest.mark.parametrize(
    "config",
    [
        *(LLAMA, GEMMA3, GPT2, LLAMA | {"architectures": ["LlamaModel"]}, LLAMA | {"architectures": [7]}),
        {"model_type": "bert", "is_decoder": True, "architectures": ["BertLMHeadModel"]},
        *({"model_type": ["a"]}, {}),
    ],
)
def test_causal_models_and_what_cannot_be_told_pass(config: dict):
    assert causal_problem(config) is None


def test_gguf_is_named_with_the_way_to_convert_it(folder: Path):
    message = refused(only(folder, "smol-Q4_1.gguf"))
    assert "but GGUF ('smol-Q4_1.gguf'), a format of llama.cpp" in message
    assert "say in its `path` block that the rounded ones will do (gguf: smol-Q4_1.gguf, dequantise: true)" in message


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["pytorch_model.bin"], "(pickles, as in .bin files"),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "but an adapter to another model (adapter_config.json); name that model as its parent",
        ),
        (
            ["tokenizer.model"],
            "safetensors.index.json, and no weights at all, only config.json, tokenizer.model; name the folder",
        ),
        (["consolidated.safetensors"], "under other names (consolidated.safetensors)"),
    ],
    ids=["pickles", "adapter", "tokenizer", "names"],
)
def test_what_lies_in_place_of_the_weights_is_named_with_the_way_round(folder: Path, names: list[str], said: str):
    assert said in refused(only(folder, *names))


def test_an_adapter_s_config_beside_full_weights_is_a_note(folder: Path):
    (folder / "adapter_config.json").write_text("{}")
    (note,) = check_folder(folder)
    assert note.startswith(f"'{folder}' holds adapter_config.json beside full weights; the full weights are taken")


def test_damaged_or_unfit_folders_are_refused(folder: Path):
    for text, said in (("{", "must be JSON"), ('{"quantization_config": {"bits": 4}}', "quantised")):
        (folder / "config.json").write_text(text)
        assert said in refused(folder)
    (folder / "config.json").unlink()
    assert "config.json' cannot be opened" in refused(folder)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}')
    with pytest.raises(InputError, match=r"b\.safetensors' cannot be opened"):
        check_folder(folder)
    with pytest.raises(InputError, match="is not a folder"):
        check_folder(folder / "nowhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_theta": 1000000.0}, "rope_parameters.rope_theta (10000.0 and 1000000.0)"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps (1e-06 and 1e-05)"),
        ({"num_attention_heads": 2}, "num_attention_heads (4 and 2)"),
        ({"model_type": "mistral"}, "model_type ('llama' and 'mistral')"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters.rope_theta (3.0 and 5.0)"),
        ({"sliding_window": None}, "sliding_window (16 and None)"),
        ({"head_dim": 16}, "head_dim (8 and 16)"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_parameters.rope_type (None and 'yarn')"),
    ],
)
def test_models_whose_configs_compute_something_else_are_not_merged(change: dict, said: str):
    config = LLAMA | {"sliding_window": 16}
    if "rope_parameters" in change:
        config = config | {"rope_parameters": {"rope_theta": 3.0}}
    with pytest.raises(InputError) as raised:
        require_same_function(config, config | change, ("lua", "stories"))
    start = (
        "models 'lua' and 'stories' cannot be merged, because a merged model has one config.json and theirs differ in"
    )
    assert str(raised.value).startswith(f"{start} {said}; merge models of one base")


def test_many_differences_are_counted():
    others = {key: 7 for key in LLAMA if key not in ("architectures", "max_position_embeddings")}
    with pytest.raises(InputError, match=r"model_type .* and 2 more; merge"):
        require_same_function(LLAMA, LLAMA | others, ("lua", "stories"))


def test_keys_that_leave_the_logits_as_they_are_may_differ():
    change = {"torch_dtype": "bfloat16", "use_cache": False, "eos_token_id": [1, 2], "attention_dropout": 0.1}
    change |= {"tie_word_embeddings": True, "max_position_embeddings": 128, "architectures": None, "_name_or_path": "x"}
    assert require_same_function(LLAMA, LLAMA | change, ("lua", "stories")) == []
    assert compare_configs(LLAMA, LLAMA | change) == ({}, [])


def test_positions_that_scale_the_rotation_are_compared():
    scaled = LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    assert compare_configs(scaled, scaled | {"max_position_embeddings": 128}).different == {
        "max_position_embeddings": (64, 128)
    }


def test_a_key_of_one_config_alone_is_warned_of():
    (warning,) = require_same_function(LLAMA, LLAMA | {"query_scale": 8}, ("lua", "stories"))
    assert warning.startswith("only one of the models 'lua' and 'stories' has query_scale in its config.json; the merg")
    assert require_same_function(LLAMA, LLAMA | {"query_scale": None}, ("lua", "stories")) == []


def test_in_files_null_against_a_value_is_warned_of_because_null_is_what_the_class_makes_of_it():
    a, b = LLAMA | {"sliding_window": None}, LLAMA | {"sliding_window": 16}
    (warning,) = require_same_function(a, b, ("lua", "stories"), complete=False)
    assert "has sliding_window in its config.json" in warning


QWEN = LLAMA | {"model_type": "qwen2", "use_sliding_window": False, "rope_theta": 1e6, "eos_token_id": 151643}
GEMMA = LLAMA | {"model_type": "gemma", "hidden_act": "gelu", "head_dim": 256}


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        # Qwen2.5 0.5B and its Instruct; the window is off, so that its keys do nothing
        (
            QWEN | {"max_window_layers": 24, "sliding_window": 32768},
            QWEN | {"max_window_layers": 21, "sliding_window": 131072, "eos_token_id": 151645},
        ),
        (GPT2, GPT2 | {"n_inner": 96, "summary_type": "cls_index", "reorder_and_upcast_attn": False}),
        (GPT2 | {"summary_activation": None, "n_inner": None}, GPT2 | {"summary_activation": "tanh"}),
        (LLAMA | {"head_dim": None}, LLAMA | {"head_dim": 8}),
        (LLAMA, LLAMA | {"head_dim": 8}),
        (GEMMA, GEMMA | {"hidden_activation": "gelu_pytorch_tanh"}),
        (GEMMA | {"hidden_activation": None}, GEMMA | {"hidden_act": "gelu_pytorch_tanh"}),
        (LLAMA | {"max_length": 20, "top_k": 50}, LLAMA | {"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
        # transformers 5 writes a RoPE into one part
        (
            LLAMA | {"rope_scaling": None},
            {key: value for key, value in LLAMA.items() if key != "rope_theta"}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        ),
        (
            LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}},
            LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            GPT2 | {"rotary_pct": 0.25, "rotary_emb_base": 10000},
            GPT2 | {"rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000, "rope_type": "default"}},
        ),
    ],
    ids=[
        *("qwen2.5", "gpt2", "gpt2 with nulls", "null head_dim", "no head_dim", "gemma 1", "gemma 1 with null"),
        *("generation", "rope in one place", "rope_type", "neox"),
    ],
)
@pytest.mark.parametrize("complete", [True, False], ids=["complete", "files"])
def test_configs_in_two_spellings_are_of_one_function(base: dict, tuned: dict, complete: bool):
    assert compare_configs(base, tuned, complete=complete) == ({}, [])
    assert compare_configs(tuned, base, complete=complete) == ({}, [])


def test_a_rope_of_another_kind_on_one_side_alone_is_refused_also_from_files():
    for scaling in ({"rope_type": "llama3", "factor": 8.0}, {"type": "yarn", "factor": 4.0}):
        for config in (LLAMA, LLAMA | {"rope_scaling": None}, LLAMA | {"rope_scaling": {"rope_type": "default"}}):
            with pytest.raises(InputError, match=r"rope_parameters\.rope_type \(None and '(llama3|yarn)'\)"):
                require_same_function(config, LLAMA | {"rope_scaling": scaling}, ("a", "b"), complete=False)


def test_a_window_that_is_used_is_compared():
    used = QWEN | {"use_sliding_window": True, "sliding_window": 16}
    assert compare_configs(used, used | {"sliding_window": 32}).different == {"sliding_window": (16, 32)}


def test_the_width_of_the_mlps_is_known_only_where_the_config_or_the_type_says_it():
    assert known_d_mlp({"model_type": "strange", "hidden_size": 8}) is None
    assert d_mlp({"model_type": "strange", "hidden_size": 8}) == 32  # an estimate, for memory
    assert known_d_mlp({"model_type": "strange", "hidden_size": 8, "n_inner": None}) == 32
    assert known_d_mlp({"model_type": "strange", "hidden_size": 8, "intermediate_size": 20}) == 20
    assert known_d_mlp({"model_type": "bloom", "hidden_size": 8}) == 32
    assert known_d_mlp(MPT | {"expansion_ratio": 2}) == 128
    assert known_d_mlp({"model_type": "gpt2"}) is None


@pytest.mark.parametrize("factor", [1e308, 10**400, float("inf"), float("nan"), True, -3, "4"])
def test_impossible_numbers_count_as_not_given(factor: object):
    assert n_positions(LLAMA | {"rope_scaling": {"type": "linear", "factor": factor}}) == 64
    assert n_positions(LLAMA | {"max_position_embeddings": 10**400}) is None


def test_two_models_from_one_place_are_warned_of(tmp_path: Path):
    here, again = str(tmp_path), f"{tmp_path}/../{tmp_path.name}"
    hub = {"repo": "own/model", "revision": "main"}
    warnings = equal_sources(
        {"a": {"folder": here}, "b": {"folder": again}, "c": {"folder": "elsewhere"}, "d": hub, "e": dict(hub)}
        | {"f": hub | {"revision": "v2"}}
    )
    assert warnings == [
        f"models 'a', 'b' are taken from the same place ({tmp_path}), so they are one model; correct one of them",
        "models 'd', 'e' are taken from the same place (own/model at main), so they are one model; correct one of them",
    ]


def test_these_checks_load_no_heavy_library():
    code = (
        "import sys, saelineage.foreign.models\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    scripts = Path(__file__).resolve().parents[3] / "workflow" / "scripts"
    result = subprocess.run([sys.executable, "-c", code], cwd=scripts, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
