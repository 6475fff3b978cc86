# features: sparse latents over the probe, and their export to delphi. Config: threads.features.


rule encode_features:
    """
    Encode one shard of the probe, all corpora side by side, with one SAE.

    Output: a shard of sparse rows per corpus.
    """
    input:
        activations=run.paths.over(run.paths.dump, corpus=run.paths.corpora, split=["probe"]),
        weights=run.paths.sae_weights,
        config=run.paths.sae_config,
    output:
        shards=run.paths.over(run.paths.features, corpus=run.paths.corpora),
        manifests=run.paths.over(run.paths.manifest(run.paths.features), corpus=run.paths.corpora),
    log:
        run.paths.log("features/{hookpoint}.{model}.{sae}.{shard}"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.encoding),
        runtime=runtime(run.needs.encoding),
    params:
        corpora=run.paths.corpora,
        rotation_seed=None,
        code=code_digest("encode_features"),
    script:
        "../workflow/scripts/encode_features.py"


rule encode_rotated:
    """
    Encode one shard of the probe with one SAE after rotating the activations at random, for a random control.

    Output: a shard of sparse rows per corpus.
    """
    input:
        activations=rules.encode_features.input.activations,
        weights=rules.encode_features.input.weights,
        config=rules.encode_features.input.config,
    output:
        shards=run.paths.over(run.paths.rotated_features, corpus=run.paths.corpora),
        manifests=run.paths.over(run.paths.manifest(run.paths.rotated_features), corpus=run.paths.corpora),
    log:
        run.paths.log("features/{hookpoint}.{model}.{sae}_rotated.{shard}"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.encoding_rotated),
        runtime=runtime(run.needs.encoding_rotated),
    params:
        corpora=run.paths.corpora,
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
        shards=run.paths.own_features,
        probe=run.paths.rows("probe"),
        model=run.paths.own_model,
    output:
        config=run.paths.delphi,
        manifest=run.paths.folder_manifest(run.paths.delphi),
    log:
        run.paths.log("delphi/{hookpoint}.{model}.{sae}.{module}"),
    wildcard_constraints:
        hookpoint=run.exported(),
        module=any_of(run.modules),
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        corpora=run.paths.corpora,
        code=code_digest("export_latents"),
    script:
        "../workflow/scripts/export_latents.py"
