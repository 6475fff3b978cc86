# crosscoders: one dictionary for several models. Config: crosscoder, lineage.instruments, threads.saes.


rule train_crosscoder:
    """
    Train one crosscoder on the train dumps of several models, read in step.
    Its checkpoint lies under results/{run}/checkpoints/ while it runs, for resuming.

    Output: the crosscoder's folder and the training curve.
    """
    input:
        shards=run.placed(lambda plan: plan.paths.crosscoder_dumps),
    output:
        weights=run.paths.crosscoder_weights,
        config=run.paths.crosscoder_config,
        curve=run.paths.crosscoder_curve,
        manifest=run.paths.folder_manifest(run.paths.crosscoder_config),
    log:
        run.paths.log("crosscoders/{hookpoint}.{group}.{seed}"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["saes"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.placed(lambda plan: plan.needs.training_crosscoder)),
        runtime=runtime(run.placed(lambda plan: plan.needs.training_crosscoder)),
    params:
        crosscoder=run.placed(lambda plan: plan.params.crosscoder),
        code=code_digest("train_crosscoder"),
    script:
        "../workflow/scripts/train_crosscoder.py"


rule encode_crosscoder:
    """
    Encode one shard of the probe, all corpora side by side, with one crosscoder.

    Output: a shard of sparse rows per corpus.
    """
    input:
        activations=run.paths.crosscoder_acts,
        weights=run.paths.crosscoder_weights,
        config=run.paths.crosscoder_config,
    output:
        shards=run.paths.over(run.paths.crosscoder_latents, corpus=run.paths.corpora),
        manifests=run.paths.over(run.paths.manifest(run.paths.crosscoder_latents), corpus=run.paths.corpora),
    log:
        run.paths.log("crosscoders/{hookpoint}.{group}.{seed}.{shard}"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.placed(lambda plan: plan.needs.encoding_crosscoder)),
        runtime=runtime(run.placed(lambda plan: plan.needs.encoding_crosscoder)),
    params:
        models=run.params.crosscoder_models,
        corpora=run.paths.corpora,
        code=code_digest("encode_crosscoder"),
    script:
        "../workflow/scripts/encode_crosscoder.py"


rule match_crosscoder:
    """
    Find the latent of a crosscoder that each feature of the SAEs that verdicts rest on fires with, and, from another
    seed than the first, the latent that each latent of the first crosscoder fires with.

    Output: the best match of each among the crosscoder's latents.
    """
    input:
        a=run.paths.own_crosscoder_latents,
        b=run.paths.matched_features,
    output:
        matches=run.paths.crosscoder_matches,
        manifest=run.paths.manifest(run.paths.crosscoder_matches),
    log:
        run.paths.log("lineage/{hookpoint}.{group}.{seed}.matches"),
    conda:
        "../envs/analysis.yaml"
    threads: run.config["threads"]["correlations"]
    resources:
        mem_mb=memory(run.needs.correlating),
        runtime=runtime(run.needs.correlating),
    params:
        partners=run.params.matched,
        settings=run.subset(
            "correlations",
            *("min_firings", "top_matches", "keep_above", "n_bins", "block_features"),
        ),
        code=code_digest("match_crosscoder"),
    script:
        "../workflow/scripts/match_crosscoder.py"


rule measure_crosscoder:
    """
    Ask a crosscoder which of its latents each model of an edge writes, by latent scaling on the probe.

    Output: the verdict of each latent on each edge and under each control; the shares with their floor and nulls, and
    their curves over thresholds; and the norm of each latent's decoder direction in each model.
    """
    input:
        weights=run.paths.crosscoder_weights,
        config=run.paths.crosscoder_config,
        shards=run.paths.crosscoder_probes,
        encoded=run.paths.own_crosscoder_latents,
        rows=run.paths.rows("probe"),
    output:
        latents=run.paths.exclusivity,
        shares=run.paths.exclusivity_shares,
        curves=run.paths.exclusivity_curves,
        norms=run.paths.decoder_norms,
        manifest=run.paths.manifest(run.paths.exclusivity),
    log:
        run.paths.log("lineage/{hookpoint}.{group}.{seed}.crosscoder"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.placed(lambda plan: plan.needs.measuring_crosscoder)),
        runtime=runtime(run.placed(lambda plan: plan.needs.measuring_crosscoder)),
    params:
        models=run.params.crosscoder_models,
        pairs=run.params.crosscoder_pairs,
        corpora=run.paths.corpora,
        rules=run.params.exclusivity_rules,
        n_groups=run.config["crosscoder"]["n_document_groups"],
        replicates=run.subset("lineage", "n_replicates", "seed"),
        code=code_digest("measure_crosscoder"),
    script:
        "../workflow/scripts/measure_crosscoder.py"


rule ablate_crosscoder:
    """
    Measure every model of an edge with its activations replaced by a crosscoder's reconstruction: whole, without the
    latents that one of the edge's models writes alone, and without random latents.

    Output: the losses by edge, model, verdict and corpus.
    """
    input:
        weights=run.paths.crosscoder_weights,
        config=run.paths.crosscoder_config,
        verdicts=run.paths.exclusivity,
        latents=run.paths.own_crosscoder_latents,
        models=run.paths.ablated_models,
        rows=run.paths.rows("probe"),
    output:
        ablations=run.paths.crosscoder_ablations,
        manifest=run.paths.manifest(run.paths.crosscoder_ablations),
    log:
        run.paths.log("lineage/{hookpoint}.{group}.{seed}.ablations"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.placed(lambda plan: plan.needs.ablating_crosscoder)),
        runtime=runtime(run.placed(lambda plan: plan.needs.ablating_crosscoder)),
    params:
        models=run.params.ablated_models,
        corpora=run.paths.corpora,
        hookpoint=run.params.hookpoint,
        max_rows=run.config["crosscoder"]["ablated_rows"],
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        replicates=run.subset("lineage", "n_replicates", "seed"),
        code=code_digest("ablate_crosscoder"),
    script:
        "../workflow/scripts/ablate_crosscoder.py"
