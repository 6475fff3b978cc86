# sweeps: merge coefficients beside the one chosen. Config: sweeps, batch_rows, threads.models.


rule sweep_merge:
    """
    Measure merges of two models over a grid of coefficients, and the model both descend from.

    Output: one row per coefficient and corpus; the base's rows have no coefficient.
    """
    input:
        parents=run.paths.swept_parents,
        base=run.paths.swept_base,
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
        t=run.params.sweep_coefficients,
        corpora=run.params.sweep_corpora,
        dtype=run.params.sweep_dtype,
        method=run.params.sweep_method,
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        code=code_digest("sweep_merge"),
    script:
        "../workflow/scripts/sweep_merge.py"
