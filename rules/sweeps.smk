# sweeps: settings of merges beside those chosen. Config: sweeps, batch_rows, threads.models.


rule sweep_merge:
    """
    Measure merges over a grid of one or two settings, without writing them.

    Output: one row per merge and corpus, and the rows of the models that they are shown beside.
    """
    input:
        parents=run.paths.swept_parents,
        base=run.paths.swept_base,
        beside=run.paths.swept_beside,
        validation=run.paths.swept_rows,
    output:
        sweep=run.paths.sweep,
        manifest=run.paths.manifest(run.paths.sweep),
    log:
        run.paths.log("sweeps/{sweep}"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["activations"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.sweeping),
        runtime=runtime(run.needs.sweeping),
    params:
        merges=run.params.swept_merges,
        over=run.params.sweep_over,
        best_by=run.params.sweep_criterion,
        corpora=run.params.sweep_corpora,
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        code=code_digest("sweep_merge"),
    script:
        "../workflow/scripts/sweep_merge.py"
