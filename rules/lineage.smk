# lineage: verdicts per feature and edge, beside the seed floor. Config: lineage.


rule trace_lineage:
    """
    Say of every feature whether it persists, disappears, is inherited, emerges or is untestable.

    Output: a table per edge, trajectories through the whole graph, and the summary.
    """
    input:
        correlations=all_correlations,
    output:
        edges=expand("results/{{run}}/lineage/edges/{edge}.parquet", edge=edge_names()),
        features="results/{run}/lineage/features.parquet",
        summary="results/{run}/lineage/summary.json",
        manifest="results/{run}/lineage/manifest.json",
    log:
        "results/{run}/logs/lineage/lineage.log",
    benchmark:
        "results/{run}/benchmarks/lineage/lineage.tsv"
    conda:
        "../envs/analysis.yaml"
    params:
        threshold=config["lineage"]["threshold"],
        models=graph.ordered_models(config),
        edge_pairs=edge_pairs(),
        seed_pairs=seed_pairs(),
        null_pairs=null_pairs(),
        code=code_digest("trace_lineage"),
    script:
        "../workflow/scripts/trace_lineage.py"
