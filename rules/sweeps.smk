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


rule follow_features:
    """
    Follow the features of the parents through a sweep: r of each with itself on each merge.

    The parents' SAEs are read on the merges as they are. Output: r by feature and merge.
    """
    input:
        parents=run.paths.swept_parents,
        base=run.paths.swept_base,
        saes=run.paths.followed_saes,
        features=run.paths.followed_features,
        rows=run.paths.rows("probe"),
    output:
        features=run.paths.followed,
        manifest=run.paths.manifest(run.paths.followed),
    log:
        run.paths.log("lineage/{hookpoint}.{sweep}"),
    wildcard_constraints:
        sweep=any_of(run.config["sweeps"]),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.following),
        runtime=runtime(run.needs.following),
    params:
        merges=run.params.swept_merges,
        over=run.params.sweep_over,
        parents=run.params.followed_parents,
        corpora=run.paths.corpora,
        hookpoint=run.params.hookpoint,
        dtype=run.config["activations"]["dtype"],
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        code=code_digest("follow_features"),
    script:
        "../workflow/scripts/follow_features.py"


rule count_followed:
    """
    Count the features of the parents that are found on each merge of a sweep.

    Output: their share by merge, verdict, corpus, kind of label and origin; and between which settings each is found.
    """
    input:
        followed=run.paths.followed,
        shards=run.paths.followed_features,
        edges=run.paths.followed_edges,
        origins=run.paths.followed_origins,
        labels=run.paths.followed_labels,
    output:
        curves=run.paths.followed_curves,
        found=run.paths.found,
        manifest=run.paths.manifest(run.paths.followed_curves),
    log:
        run.paths.log("lineage/{hookpoint}.{sweep}.curves"),
    wildcard_constraints:
        sweep=any_of(run.config["sweeps"]),
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        parents=run.params.followed_parents,
        with_edges=run.params.parents_with_edges,
        origins=run.params.followed_origins,
        over=run.params.sweep_over,
        threshold=run.config["lineage"]["threshold"],
        code=code_digest("count_followed"),
    script:
        "../workflow/scripts/count_followed.py"
