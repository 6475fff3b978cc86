"""What configs of third-party SAEs say of their input, compared with a run's activations."""

import json
from pathlib import Path

import pytest

from saelineage.errors import InputError
from saelineage.foreign.places import (
    ATTN_IN,
    ATTN_OUT,
    HEADS,
    MIDDLE,
    MLP_ACTS,
    MLP_IN,
    MLP_OUT,
    NORMED_ATTN_OUT,
    NORMED_MLP_OUT,
    RESIDUAL,
    Place,
    has_parallel_blocks,
    norm_kind,
    norms_outputs,
    read_hook_name,
)
from saelineage.foreign.sae_formats import saelens as saelens_format
from saelineage.foreign.sae_formats.registry import SaeSource, check_source
from saelineage.foreign.sae_inputs import Beside, RunInput, compare_with_run, is_centred

KEY = "saes.import (for base.seed0)"
RUN = RunInput(
    "model.layers.1.output", 128, "base", ("EleutherAI/pythia-70m",), d_in=8, norm="rms", norms_outputs=False
)


def saelens(**metadata: object) -> dict:
    config = {"architecture": "topk", "k": 2, "d_in": 8, "d_sae": 32}
    return config | {"metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post"} | metadata}


def warnings_of(tmp_path: Path, config: dict, run: RunInput = RUN, format: str = "saelens") -> list[str]:
    source = SaeSource(tmp_path, format, None)
    source.config.write_text(json.dumps(config))
    return check_source(source, run, KEY)


def error_of(tmp_path: Path, config: dict, run: RunInput = RUN, format: str = "saelens") -> str:
    with pytest.raises(InputError) as raised:
        warnings_of(tmp_path, config, run, format)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.3.hook_resid_pre", Place(RESIDUAL, 3)),
        ("blocks.3.hook_resid_post", Place(RESIDUAL, 4)),
        ("blocks.3.hook_resid_mid", Place(MIDDLE, 3)),
        ("blocks.3.mlp.hook_post", Place(MLP_ACTS, 3)),
        ("blocks.3.attn.hook_z", Place(HEADS, 3)),
        ("blocks.3.hook_mlp_out", Place(MLP_OUT, 3)),
        ("model.layers.3", Place(RESIDUAL, 4)),
        ("model.layers.3.output", Place(RESIDUAL, 4)),
        ("model.language_model.layers.3.input", Place(RESIDUAL, 3)),
        ("model.layers.3.input_layernorm.input", Place(RESIDUAL, 3)),
        ("model.layers.3.post_attention_layernorm.input", Place(MIDDLE, 3)),
        ("transformer.h.3.mlp.c_proj.input", Place(MLP_ACTS, 3)),
        ("gpt_neox.layers.3.mlp.dense_4h_to_h.input", Place(MLP_ACTS, 3)),
        ("model.layers.3.mlp", Place(MLP_OUT, 3)),
        ("model.layers.3.mlp.down_proj.output", Place(MLP_OUT, 3)),
        ("model.layers.3.self_attn.o_proj.input", Place(HEADS, 3)),
    ],
)
def test_libraries_names_of_one_place_are_one_place(name, place):
    assert read_hook_name(name).of_model(norms_outputs=False, parallel=False).places == (place,)


def test_gemma_2_s_mlp_output_is_hooked_after_its_norm():
    assert read_hook_name("blocks.3.hook_mlp_out").of_model(norms_outputs=True).places == (Place(NORMED_MLP_OUT, 3),)


@pytest.mark.parametrize(
    ("config", "name", "kinds"),
    [
        # in Pythia the MLP's norm reads the layer's input too
        ({"model_type": "gpt_neox"}, "post_attention_layernorm.input", {RESIDUAL}),
        ({"model_type": "gpt_neox", "use_parallel_residual": False}, "post_attention_layernorm.input", {MIDDLE}),
        ({"model_type": "strange"}, "post_attention_layernorm.input", {MIDDLE, RESIDUAL}),
        ({"model_type": "llama"}, "post_attention_layernorm.input", {MIDDLE}),
        ({"model_type": "gemma2"}, "post_attention_layernorm.input", {ATTN_OUT}),
        # in these one norm serves attention and MLP
        *(({"model_type": kind}, "input_layernorm.output", {ATTN_IN, MLP_IN}) for kind in ("phi", "cohere", "falcon")),
        ({"model_type": "gptj"}, "ln_1.output", {ATTN_IN, MLP_IN}),
        ({"model_type": "phi"}, "mlp.fc1.input", {ATTN_IN, MLP_IN}),
        ({"model_type": "llama"}, "input_layernorm.output", {ATTN_IN}),
        *(({"model_type": kind}, "post_attention_layernorm.output", {NORMED_ATTN_OUT}) for kind in ("olmo2", "olmo3")),
        ({"model_type": "exaone4"}, "post_attention_layernorm.output", {NORMED_ATTN_OUT}),
        # GLM-4 normalises outputs too, but by other names
        ({"model_type": "glm4"}, "post_attention_layernorm.output", {MLP_IN, NORMED_ATTN_OUT}),
        ({"model_type": "gpt_neox"}, "mlp.output", {MLP_OUT}),
    ],
)
def test_a_name_is_the_place_that_it_has_in_the_model_s_layout(config, name, kinds):
    reading = read_hook_name(f"model.layers.3.{name}").of_model(norms_outputs(config), has_parallel_blocks(config))
    assert {place.kind for place in reading.places} == kinds


def test_a_place_that_the_layout_leaves_open_is_warned_of_and_not_refused(tmp_path):
    config = saelens(hook_name="blocks.1.hook_resid_mid")
    run = RUN._replace(hookpoint="model.layers.1.post_attention_layernorm.input")
    (warning,) = warnings_of(tmp_path, config, run)
    assert "and it is unclear whether that is 'model.layers.1.post_attention_layernorm.input' (the residual" in warning
    assert warnings_of(tmp_path, config, run._replace(parallel=False)) == []
    assert "was trained at" in error_of(tmp_path, config, run._replace(parallel=True))
    assert warnings_of(tmp_path, config, run._replace(norms_outputs=None)) == []  # no model yet
    same = saelens(hook_name="model.language_model.layers.1.post_attention_layernorm.input")
    assert warnings_of(tmp_path, same, run) == []


def test_a_name_that_is_not_known_still_has_a_layer():
    assert (read_hook_name("blocks.3.hook_strange").places, read_hook_name("blocks.3.hook_strange").layer) == ((), 3)
    assert read_hook_name("somewhere").layers == set()


def test_an_sae_of_the_run_s_place_passes_under_any_of_its_names(tmp_path):
    for metadata in (
        {},
        {"hook_name": "blocks.2.hook_resid_pre"},
        {"hook_name": "model.layers.1"},
        {"hook_name": "model.layers.1.output", "hf_hook_name": "model.layers.1.output"},
    ):
        assert warnings_of(tmp_path, saelens(**metadata)) == []


def test_an_sae_of_another_layer_is_refused_with_the_hookpoint_that_it_needs(tmp_path):
    assert error_of(tmp_path, saelens(hook_name="blocks.0.hook_resid_post")) == (
        f"{KEY}: '{tmp_path}/cfg.json' says that the SAE was trained at 'blocks.0.hook_resid_post' (the residual "
        "stream before layer 1), but activations.hookpoint is 'model.layers.1.output' (the residual stream before "
        "layer 2); set it to 'model.layers.0.output', or import an SAE that was trained at this hookpoint"
    )


HEADS_CONFIG = saelens(hook_name="blocks.1.attn.hook_z") | {"reshape_activations": "hook_z"}


def test_an_sae_of_the_heads_is_read_at_the_input_of_the_output_projection(tmp_path):
    for prefix, projection in (
        ("model.layers", "self_attn.o_proj"),
        ("transformer.h", "attn.c_proj"),
        ("gpt_neox.layers", "attention.dense"),
    ):
        hookpoint = f"{prefix}.1.{projection}.input"
        for model_type in ("rms", "layer"):
            run = RUN._replace(hookpoint=hookpoint, norm=model_type)
            assert not [line for line in warnings_of(tmp_path, HEADS_CONFIG, run) if "unclear" in line]
        elsewhere = error_of(tmp_path, HEADS_CONFIG, RUN._replace(hookpoint=f"{prefix}.1.output"))
        assert f"'{hookpoint}'" in elsewhere
        other_layer = error_of(tmp_path, HEADS_CONFIG, RUN._replace(hookpoint=f"{prefix}.0.{projection}.input"))
        assert f"set it to '{hookpoint}'" in other_layer


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({"hf_hook_name": "model.layers.0.output"}, "'model.layers.0.output' (the residual stream before layer 1)"),
        ({"hook_name": "blocks.1.hook_resid_pre"}, "set it to 'model.layers.0.output'"),
        ({"hook_name": "blocks.1.hook_mlp_out"}, "the output of the MLP in layer 1"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, "set it to 'model.layers.0.input'"),
        ({"hook_name": "blocks.7.hook_strange"}, "'blocks.7.hook_strange', but activations.hookpoint is"),
        ({"hook_head_index": 3}, "was trained on head 3 alone (hook_head_index), but activations.hookpoint reads all"),
        (
            {"seqpos_slice": [5, -5], "context_size": 128},
            "seqpos_slice that holds all positions, but [5, -5] left 9 of the 127 that are read here",
        ),
    ],
    ids=range(7),
)
def test_what_contradicts_the_run_is_refused(tmp_path, metadata, part):
    assert part in error_of(tmp_path, saelens(**metadata))


def test_another_width_is_refused_from_the_config_alone(tmp_path):
    assert "must have d_in 8, but" in error_of(tmp_path, saelens() | {"d_in": 16})


def test_a_long_context_costs_no_memory(tmp_path):
    """Its positions are counted, not listed."""
    for positions, n_unseen in (([None], 0), ([2, None, 2], 64), ([-5, None], 127)):
        config = saelens(seqpos_slice=positions, context_size=2**40)
        if n_unseen:
            assert f"left {n_unseen} of the 127 that are read here" in error_of(tmp_path, config)
        else:
            assert len(warnings_of(tmp_path, config)) == 1  # about the context


def test_a_slice_that_leaves_out_only_bos_changes_nothing(tmp_path):
    for positions in ([1, None], [None], [0, 128, 1]):
        assert warnings_of(tmp_path, saelens(seqpos_slice=positions, context_size=128)) == []


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({"hook_name": None}, "does not say at which hookpoint"),
        ({"hook_name": "blocks.1.hook_strange"}, "and it is unclear whether that is 'model.layers.1.output'"),
        ({"model_name": "pythia-160m"}, "was trained on the model 'pythia-160m', but it is imported for 'base', which"),
        ({"context_size": 1024}, "contexts of 1024 tokens, but rows here have 128 (tokens.n_ctx)"),
        ({"prepend_bos": False}, "contexts without BOS (prepend_bos)"),
        ({"model_from_pretrained_kwargs": {"revision": "step1000"}}, "trained on revision 'step1000' of the model"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": True}}, "TransformerLens ignores for models with"),
    ],
    ids=range(7),
)
def test_what_cannot_be_told_is_said(tmp_path, metadata, part):
    (warning,) = warnings_of(tmp_path, saelens(**metadata))
    assert warning.startswith(f"{KEY}: '{tmp_path}/cfg.json' ")
    assert part in warning


def test_the_same_model_under_a_library_s_name_is_not_remarked_on(tmp_path):
    for name in ("pythia-70m", "EleutherAI/pythia-70m", "base"):
        assert warnings_of(tmp_path, saelens(model_name=name)) == []


def test_versions_1_to_5_of_saelens_keep_the_keys_at_the_top(tmp_path):
    old = {"d_in": 8, "d_sae": 32, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}
    assert "'blocks.0.hook_resid_pre'" in error_of(tmp_path, old | {"hook_name": "blocks.0.hook_resid_pre"})
    first = old | {"hook_point": "blocks.{layer}.hook_resid_pre", "hook_point_layer": 2, "hook_point_head_index": None}
    assert warnings_of(tmp_path, first) == []
    assert "'blocks.3.hook_resid_pre'" in error_of(tmp_path, first | {"hook_point_layer": 3})


def dictionary(trainer: dict, **buffer: object) -> dict:
    return {"trainer": {"dict_class": "AutoEncoder", "activation_dim": 8} | trainer, "buffer": buffer}


def test_dictionary_learning_gives_a_layer_a_name_and_a_side(tmp_path):
    format = "dictionary_learning"
    assert warnings_of(tmp_path, dictionary({"layer": 1, "submodule_name": "resid_post_layer_1"}), format=format) == []
    assert warnings_of(tmp_path, dictionary({"submodule_name": "model.layers.2"}, io="in"), format=format) == []
    for trainer, part in (
        (
            {"layer": 0, "submodule_name": "resid_post_layer_0"},
            "'resid_post_layer_0' (the residual stream before layer",
        ),
        ({"layer": 1, "submodule_name": "mlp_out_layer_1"}, "(the output of the MLP in layer 1)"),
        ({"layer": 5}, "was trained at 'layer 5', but"),
    ):
        assert part in error_of(tmp_path, dictionary(trainer), format=format)
    (warning,) = warnings_of(tmp_path, dictionary({"layer": 1, "submodule_name": None}), format=format)
    assert "was trained at 'layer 1', and it is unclear whether" in warning
    (warning,) = warnings_of(tmp_path, dictionary({"submodule_name": "resid_post_layer_1"}, ctx_len=64), format=format)
    assert "contexts of 64 tokens" in warning


def test_sparsify_names_the_folder_after_the_module(tmp_path):
    config = {"activation": "topk", "k": 2, "d_in": 8, "num_latents": 32}
    for name in ("layers.1", "layers.0.mlp", "layers.1/seed0"):
        (tmp_path / name).mkdir(parents=True)
    assert warnings_of(tmp_path / "layers.1", config, format="sparsify") == []
    assert warnings_of(tmp_path / "layers.1" / "seed0", config, format="sparsify") == []
    assert "'layers.0.mlp' (the output of the MLP in layer 0)" in error_of(
        tmp_path / "layers.0.mlp", config, format="sparsify"
    )


def test_activations_are_centred_at_the_residual_stream_of_models_with_layer_norm():
    config = saelens(model_from_pretrained_kwargs={"center_writing_weights": True})
    sae = saelens_format.describe(config, "cfg.json")
    for hookpoint, norm, expected in (
        ("transformer.h.1.output", "layer", True),
        ("transformer.h.1.mlp.output", "layer", True),
        ("transformer.h.1.mlp.c_proj.input", "layer", False),
        ("model.layers.1.output", "rms", False),
    ):
        assert is_centred(sae, RUN._replace(hookpoint=hookpoint, norm=norm), KEY) == expected
    with pytest.raises(InputError, match="has center_writing_weights, but whether it changes activations at"):
        is_centred(sae, RUN._replace(hookpoint="transformer.h.1.strange.output", norm="layer"), KEY)
    unknown = RUN._replace(norm=None)
    assert is_centred(sae, unknown, KEY)
    assert "so the activations are centred for this SAE" in compare_with_run(sae, unknown, KEY)[0]


def test_heads_that_were_changed_cannot_be_imported():
    kwargs = {"model_from_pretrained_kwargs": {"fold_value_biases": True}}
    sae = saelens_format.describe(saelens(hook_name="blocks.1.attn.hook_z", **kwargs), "cfg.json")
    with pytest.raises(InputError, match="must not have fold_value_biases"):
        compare_with_run(sae, RUN._replace(hookpoint="model.layers.1.self_attn.o_proj.input"), KEY)


def test_an_old_sae_of_a_layer_norm_model_may_have_been_centred(tmp_path):
    run = RUN._replace(hookpoint="transformer.h.1.output", norm="layer")
    (warning,) = warnings_of(tmp_path, saelens(), run)
    assert "does not say whether TransformerLens centred the activations" in warning
    assert warnings_of(tmp_path, saelens(model_from_pretrained_kwargs={}), run) == []


def test_the_kind_of_norm_follows_from_the_names_in_the_model_s_config():
    assert norm_kind({"model_type": "llama", "rms_norm_eps": 1e-5}) == "rms"
    assert norm_kind({"model_type": "gpt2", "layer_norm_epsilon": 1e-5}) == "layer"
    assert norm_kind({"text_config": {"rms_norm_eps": 1e-5}, "vision_config": {"layer_norm_eps": 1e-5}}) == "rms"
    assert norm_kind({"model_type": "strange"}) is None


def test_an_sae_of_another_size_or_sparsity_than_those_beside_it_is_remarked_on(tmp_path):
    names = ("lua.seed0", "lua.seed1")
    where = f"{KEY}: '{tmp_path}/cfg.json'"
    assert warnings_of(tmp_path, saelens(), RUN._replace(beside=Beside(names, 4, 2))) == []
    assert warnings_of(tmp_path, saelens(), RUN._replace(beside=Beside(names, 4.0, None))) == []
    assert warnings_of(tmp_path, saelens(), RUN._replace(beside=Beside(names, 8, 3))) == [
        f"{where} has 32 latents, but SAEs that are trained beside it (lua.seed0, lua.seed1) have 64; for SAEs of one "
        "size set saes.expansion_factor to 4",
        f"{where} keeps 2 latents per token, but SAEs that are trained beside it (lua.seed0, lua.seed1) keep 3; for "
        "SAEs of one sparsity set saes.k to 2",
    ]


def test_the_expansion_factor_that_is_named_gives_the_sae_s_latents(tmp_path):
    for d_in, d_sae in ((896, 14337), (768, 24576), (2304, 16384), (4096, 131071)):
        config = saelens() | {"d_in": d_in, "d_sae": d_sae}
        run = RUN._replace(d_in=d_in, beside=Beside(("lua.seed0",), 8.5, None))
        (warning,) = warnings_of(tmp_path, config, run)
        assert round(d_in * float(warning.rpartition(" ")[2])) == d_sae


def test_what_is_kept_of_a_config_can_be_written_and_logged():
    text = '{"metadata": {"hook_name": "a\\ud800\\n\\u001b[2J", "dataset_path": {"x": [NaN, -Infinity, 1.5]}}}'
    sae = saelens_format.describe(json.loads(text), "cfg.json")
    assert sae.original == {"hook_name": "a??" + "?[2J", "dataset_path": {"x": ["nan", "-inf", 1.5]}}
    assert sae.readings[0].name == "a???[2J"


def test_values_of_unexpected_types_count_as_not_given(tmp_path):
    odd = {"hook_name": ["x"], "context_size": "many", "hook_head_index": "0", "seqpos_slice": "all", "model_name": 1}
    (warning,) = warnings_of(tmp_path, saelens(**odd, prepend_bos="no", model_from_pretrained_kwargs=[1]))
    assert "does not say at which hookpoint" in warning
