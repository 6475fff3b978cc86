# activations: what flows through the hookpoint. Config: activations, batch_rows, threads.activations.


rule dump_activations:
    """
    Read one shard of the train splits that SAEs are trained on.

    Output: a safetensors shard per corpus; BOS and EOS are left out. With activations.keep: false it is deleted when
    the last SAE is trained on it, and models have their turns.
    """
    input:
        model=run.paths.own_model,
        tokens=run.paths.sae_rows(),
    output:
        shards=kept_or_temp(
            run.paths.over(run.paths.dump, hookpoint=run.hookpoints, corpus=run.trained_corpora, split=["train"])
        ),
        manifests=kept_or_temp(
            run.paths.over(
                run.paths.manifest(run.paths.dump),
                hookpoint=run.hookpoints,
                corpus=run.trained_corpora,
                split=["train"],
            )
        ),
    log:
        run.paths.log("activations/{model}.train.{shard}"),
    priority: run.turns.dump_priority
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["activations"]
    resources:
        gpu=visible_gpus(),
        dumps=run.turns.of_dump,
        mem_mb=memory(run.needs.dumping(run.config["activations"]["n_shards"], run.config["activations"]["max_tokens"])),
        runtime=runtime(
            run.needs.dumping(run.config["activations"]["n_shards"], run.config["activations"]["max_tokens"])
        ),
    params:
        hookpoints=run.hookpoints,
        dtype=run.config["activations"]["dtype"],
        max_tokens=run.config["activations"]["max_tokens"],
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        code=code_digest("dump_activations"),
    script:
        "../workflow/scripts/dump_activations.py"


rule dump_probe:
    """
    Read one shard of the probe, all corpora side by side, for comparing features.

    Output: a safetensors shard per corpus; BOS and EOS are left out.
    """
    input:
        model=run.paths.own_model,
        tokens=run.paths.rows("probe"),
    output:
        shards=run.paths.over(run.paths.dump, hookpoint=run.hookpoints, corpus=run.paths.corpora, split=["probe"]),
        manifests=run.paths.over(
            run.paths.manifest(run.paths.dump), hookpoint=run.hookpoints, corpus=run.paths.corpora, split=["probe"]
        ),
    log:
        run.paths.log("activations/{model}.probe.{shard}"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["activations"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.dumping(run.config["activations"]["n_probe_shards"], None)),
        runtime=runtime(run.needs.dumping(run.config["activations"]["n_probe_shards"], None)),
    params:
        hookpoints=run.hookpoints,
        dtype=run.config["activations"]["dtype"],
        max_tokens=None,
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        code=code_digest("dump_activations"),
    script:
        "../workflow/scripts/dump_activations.py"
