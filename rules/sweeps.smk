# sweeps: merge coefficients beside the one chosen. Config: sweeps, batch_rows, threads.models.


rule sweep_merge:
    """
    Measure merges of two models over a grid of coefficients, and the model both descend from.

    Output: one row per coefficient and corpus; the base's rows have no coefficient.
    """
    input:
        parents=swept_parent_files,
        base=swept_base_metrics,
        validation=swept_token_rows,
    output:
        sweep="results/{run}/sweeps/{sweep}.parquet",
        manifest="results/{run}/sweeps/{sweep}.manifest.json",
    log:
        "results/{run}/logs/sweeps/{sweep}.log",
    benchmark:
        "results/{run}/benchmarks/sweeps/{sweep}.tsv"
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["activations"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(sweeping),
        runtime=runtime(sweeping),
    params:
        t=swept_coefficients,
        dtype=swept_setting("dtype"),
        method=swept_setting("method"),
        batch_rows=config["batch_rows"],
        code=code_digest("sweep_merge"),
    script:
        "../workflow/scripts/sweep_merge.py"
