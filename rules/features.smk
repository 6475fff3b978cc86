# features: sparse latents over the probe, and their export to delphi. Config: threads.features.


rule encode_features:
    """
    Encode one shard of the probe, all corpora side by side, with one SAE.

    Output: a shard of sparse rows per corpus.
    """
    input:
        activations=expand(
            "results/{{run}}/activations/{{model}}/{corpus}/probe/shard-{{shard}}.safetensors",
            corpus=config["corpora"],
        ),
        weights="results/{run}/saes/{model}/{sae}/sae_weights.safetensors",
        config="results/{run}/saes/{model}/{sae}/cfg.json",
    output:
        shards=expand(
            "results/{{run}}/features/{{model}}/{{sae}}/{corpus}/shard-{{shard}}.safetensors",
            corpus=config["corpora"],
        ),
        manifests=expand(
            "results/{{run}}/features/{{model}}/{{sae}}/{corpus}/shard-{{shard}}.manifest.json",
            corpus=config["corpora"],
        ),
    log:
        "results/{run}/logs/features/{model}.{sae}.{shard}.log",
    benchmark:
        "results/{run}/benchmarks/features/{model}.{sae}.{shard}.tsv"
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["features"]
    resources:
        mem_mb=memory(encoding),
        runtime=runtime(encoding),
    params:
        rotation_seed=None,
        code=code_digest("encode_features"),
    script:
        "../workflow/scripts/encode_features.py"


rule encode_rotated:
    """
    Encode one shard of the probe with one SAE after rotating the activations at random, for a null.

    Output: a shard of sparse rows per corpus.
    """
    input:
        activations=rules.encode_features.input.activations,
        weights=rules.encode_features.input.weights,
        config=rules.encode_features.input.config,
    output:
        shards=expand(
            "results/{{run}}/features/{{model}}/{{sae}}_rotated/{corpus}/shard-{{shard}}.safetensors",
            corpus=config["corpora"],
        ),
        manifests=expand(
            "results/{{run}}/features/{{model}}/{{sae}}_rotated/{corpus}/shard-{{shard}}.manifest.json",
            corpus=config["corpora"],
        ),
    log:
        "results/{run}/logs/features/{model}.{sae}_rotated.{shard}.log",
    benchmark:
        "results/{run}/benchmarks/features/{model}.{sae}_rotated.{shard}.tsv"
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["features"]
    resources:
        mem_mb=memory(encoding),
        runtime=runtime(encoding),
    params:
        rotation_seed=0,
        code=code_digest("encode_features"),
    script:
        "../workflow/scripts/encode_features.py"


rule export_latents:
    """
    Write one SAE's latents on the probe as delphi caches latents, for explaining them with it; made only when asked for.

    Output: config.json, and beside it a file per range of latents.
    """
    input:
        shards=own_features,
        probe=all_token_rows("probe"),
        model=own_model_files,
    output:
        config="results/{run}/delphi/{model}/{sae}/{module}/config.json",
        manifest="results/{run}/delphi/{model}/{sae}/{module}/manifest.json",
    log:
        "results/{run}/logs/delphi/{model}.{sae}.{module}.log",
    benchmark:
        "results/{run}/benchmarks/delphi/{model}.{sae}.{module}.tsv"
    wildcard_constraints:
        module=re.escape(hooked_module()),
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(reading_all),
        runtime=runtime(reading_all),
    params:
        code=code_digest("export_latents"),
    script:
        "../workflow/scripts/export_latents.py"
