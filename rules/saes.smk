# saes: sparse autoencoders on the dumps, and how good models and SAEs are. Config: saes, threads.saes.


rule train_sae:
    """
    Train one SAE on one model's activations, from random weights or from the SAEs of its parents.
    Its checkpoint lies under results/{run}/checkpoints/ while it runs, for resuming.

    Output: a SAELens folder and the training curve.
    """
    input:
        shards=run.placed(lambda plan: plan.paths.sae_dump),
        manifests=run.placed(lambda plan: plan.paths.sae_dump_manifests),
        starts=run.paths.sae_starts,
    output:
        weights=[run.paths.sae_weights],
        config=[run.paths.sae_config],
        curve=[run.paths.sae_curve],
        manifest=[run.paths.folder_manifest(run.paths.sae_config)],
    log:
        run.paths.log("saes/{hookpoint}.{model}.{sae}"),
    wildcard_constraints:
        hookpoint=run.trained_alone(),
    priority: run.turns.training_priority
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["saes"]
    resources:
        gpu=visible_gpus(),
        dumps=run.turns.of_training,
        mem_mb=memory(run.placed(lambda plan: plan.needs.training_saes(plan.params.sae))),
        runtime=runtime(run.placed(lambda plan: plan.needs.training_saes(plan.params.sae))),
    params:
        saes=run.placed(lambda plan: plan.params.sae),
        source=run.paths.opened_as,
        code=code_digest("train_sae"),
    script:
        "../workflow/scripts/train_sae.py"


rule train_saes:
    """
    Train all SAEs of one model off one pass over its activations if saes.one_pass; otherwise as train_sae.

    Output: for each a SAELens folder and the training curve.
    """
    input:
        shards=run.placed(lambda plan: plan.paths.sae_dump),
        manifests=run.placed(lambda plan: plan.paths.sae_dump_manifests),
    output:
        weights=run.paths.over(run.paths.sae_weights, sae=run.saes.seed_names),
        config=run.paths.over(run.paths.sae_config, sae=run.saes.seed_names),
        curve=run.paths.over(run.paths.sae_curve, sae=run.saes.seed_names),
        manifest=run.paths.over(run.paths.folder_manifest(run.paths.sae_config), sae=run.saes.seed_names),
    log:
        run.paths.log("saes/{hookpoint}.{model}"),
    wildcard_constraints:
        model=run.trained_together(),
    priority: run.turns.training_priority
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["saes"]
    resources:
        gpu=visible_gpus(),
        dumps=run.turns.of_training,
        mem_mb=memory(run.placed(lambda plan: plan.needs.training_saes(plan.params.saes))),
        runtime=runtime(run.placed(lambda plan: plan.needs.training_saes(plan.params.saes))),
    params:
        saes=run.placed(lambda plan: plan.params.saes),
        source=run.paths.opened_as,
        code=code_digest("train_sae"),
    script:
        "../workflow/scripts/train_sae.py"


rule stream_saes:
    """
    With activations.keep: stream, train SAEs of one model at all hookpoints while the model is read, without a dump.
    SAEs that start from others of the same model are trained by another job, after these (plan/streams.py).

    Output: an archive of the SAEs' folders, which is deleted when they are taken out.
    """
    input:
        model=run.paths.own_model,
        tokens=run.stream_rows,
        starts=run.stream_starts,
    output:
        bundle=temp(run.paths.sae_bundle),
        manifest=temp(run.paths.manifest(run.paths.sae_bundle)),
    log:
        run.paths.log("streams/{model}.{part}"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["saes"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.streaming(run.parts.settings, run.parts.hookpoints)),
        runtime=runtime(run.needs.streaming(run.parts.settings, run.parts.hookpoints)),
    params:
        hookpoints=run.parts.hookpoints,
        saes=run.parts.settings,
        starts=run.stream_start_folders,
        reading=run.stream_reading,
        source=run.paths.opened_as,
        code=code_digest("stream_saes"),
    script:
        "../workflow/scripts/stream_saes.py"


rule unpack_sae:
    """
    Take one SAE out of the archive of all that stream_saes trained.

    Output: a SAELens folder and the training curve.
    """
    input:
        bundle=run.own_bundle,
        manifest=run.own_bundle_manifest,
    output:
        weights=run.paths.sae_weights,
        config=run.paths.sae_config,
        curve=run.paths.sae_curve,
        manifest=run.paths.folder_manifest(run.paths.sae_config),
    log:
        run.paths.log("saes/{hookpoint}.{model}.{sae}"),
    wildcard_constraints:
        hookpoint=run.streamed(),
    localrule: True  # it copies a file
    conda:
        "../envs/train.yaml"
    params:
        saes=run.placed(lambda plan: plan.params.sae),
        code=code_digest("unpack_sae"),
    script:
        "../workflow/scripts/unpack_sae.py"


rule import_sae:
    """
    Take over an SAE that somebody else trained, from a folder or the hub, if it fits the model's activations on the probe.

    Output: the same SAE as a SAELens folder of this run.
    """
    input:
        files=run.placed(lambda plan: plan.paths.imported_sae),
        activations=run.paths.own_probe_dump,
        model_config=run.paths.fix(run.paths.model_file, name="config.json"),
    output:
        weights=run.paths.sae_weights,
        config=run.paths.sae_config,
        manifest=run.paths.folder_manifest(run.paths.sae_config),
    log:
        run.paths.log("saes/{hookpoint}.{model}.{sae}"),
    wildcard_constraints:
        hookpoint=run.imported(),
    localrule: run.fetches_saes()  # compute nodes often have no network
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["saes"]
    resources:
        mem_mb=memory(run.placed(lambda plan: plan.needs.importing_sae)),
        runtime=runtime(run.placed(lambda plan: plan.needs.importing_sae)),
    params:
        source=run.placed(lambda plan: plan.params.sae_import),
        made_from=run.params.model,
        opened_as=run.paths.opened_as,
        max_norm_ratio=run.placed(lambda plan: plan.params.max_norm_ratio),
        code=code_digest("import_sae"),
    script:
        "../workflow/scripts/import_sae.py"


rule measure_model:
    """
    Measure a language model and its SAEs on every corpus's validation split, in one job that loads the model once.

    Output: the model's loss, accuracy and a unigram model's loss; and of each SAE fvu, l0, ce_recovered, dead_fraction
    and densities.
    """
    input:
        model=run.paths.own_model,
        saes=run.at_each(lambda plan: plan.paths.measured_saes),
        train=run.paths.rows("train"),
        validation=run.paths.rows("validation"),
    output:
        metrics=run.paths.model_metrics,
        sae_metrics=run.paths.over(run.paths.sae_metrics, hookpoint=run.hookpoints),
        manifests=[
            run.paths.manifest(run.paths.model_metrics),
            *run.paths.over(run.paths.manifest(run.paths.sae_metrics), hookpoint=run.hookpoints),
        ],
    log:
        run.paths.log("saes/metrics.{model}"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["saes"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.measuring),
        runtime=runtime(run.needs.measuring),
    params:
        saes=run.params.measured_saes,  # at every hookpoint
        corpora=run.paths.corpora,
        hookpoints=run.hookpoints,
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        code=code_digest("measure_model"),
    script:
        "../workflow/scripts/measure_model.py"
