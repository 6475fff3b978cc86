# lineage: verdicts per feature and edge, the evidence for them, and what removing features does. Config: lineage.


rule read_out_features:
    """
    Predict the features of an edge's parent linearly from the child's raw activations, and from the parent's own.

    Output: held-out R2 of each feature, to tell features that are gone from features that the child's SAE misses.
    """
    input:
        parent_acts=edge_dump("parent"),
        child_acts=edge_dump("child"),
        features=edge_features,
    output:
        readouts="results/{run}/lineage/readouts/{parent}__{child}.parquet",
        manifest="results/{run}/lineage/readouts/{parent}__{child}.manifest.json",
    log:
        "results/{run}/logs/lineage/readouts.{parent}__{child}.log",
    benchmark:
        "results/{run}/benchmarks/lineage/readouts.{parent}__{child}.tsv"
    wildcard_constraints:
        parent=any_of(config["models"]),
        child=any_of(config["models"]),
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["features"]
    resources:
        mem_mb=memory(reading_out),
        runtime=runtime(reading_out),
    params:
        code=code_digest("read_out_features"),
    script:
        "../workflow/scripts/read_out_features.py"


rule trace_lineage:
    """
    Say of every feature whether it persists, disappears, is inherited, emerges or is untestable, and weigh the shares.

    Output: a table per edge, trajectories through the whole graph, curves over all thresholds, the sources of merges,
    and the summary with all instruments beside their floors and nulls.
    """
    input:
        correlations=all_correlations,
        token_types=all_token_types,
        readouts=all_readouts,
    output:
        edges=expand("results/{{run}}/lineage/edges/{edge}.parquet", edge=edge_names()),
        features="results/{run}/lineage/features.parquet",
        curves="results/{run}/lineage/curves.parquet",
        sources="results/{run}/lineage/sources.parquet",
        summary="results/{run}/lineage/summary.json",
        manifest="results/{run}/lineage/manifest.json",
    log:
        "results/{run}/logs/lineage/lineage.log",
    benchmark:
        "results/{run}/benchmarks/lineage/lineage.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory(reading_all),
        runtime=runtime(reading_all),
    params:
        settings={name: config["lineage"][name] for name in ("threshold", "missed_above")},
        models=graph.lineage_models(config),
        plan=comparisons.plan(config),
        code=code_digest("trace_lineage"),
    script:
        "../workflow/scripts/trace_lineage.py"


rule ablate_groups:
    """
    Measure the loss of an edge's two models with their persisting, lost and new features taken out, beside random ones.

    Output: the change in loss per group and corpus; the same for single features that match, in both models.
    """
    input:
        parent_model=edge_model("parent"),
        child_model=edge_model("child"),
        parent_sae=edge_sae("parent"),
        child_sae=edge_sae("child"),
        edge="results/{run}/lineage/edges/{parent}__{child}.parquet",
        rows=all_token_rows("validation"),
    output:
        groups="results/{run}/lineage/ablations/{parent}__{child}.parquet",
        features="results/{run}/lineage/ablations/{parent}__{child}.features.parquet",
        agreement="results/{run}/lineage/ablations/{parent}__{child}.agreement.parquet",
        manifest="results/{run}/lineage/ablations/{parent}__{child}.manifest.json",
    log:
        "results/{run}/logs/lineage/ablations.{parent}__{child}.log",
    benchmark:
        "results/{run}/benchmarks/lineage/ablations.{parent}__{child}.tsv"
    wildcard_constraints:
        parent=any_of(config["models"]),
        child=any_of(config["models"]),
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(ablating),
        runtime=runtime(ablating),
    params:
        hookpoint=config["activations"]["hookpoint"],
        batch_rows=config["batch_rows"],
        settings={name: config["lineage"][name] for name in ("ablated_rows", "ablated_features", "seed")},
        code=code_digest("ablate_groups"),
    script:
        "../workflow/scripts/ablate_groups.py"
