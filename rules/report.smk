# report: the page of a run, and the pictures of the workflow. Config: report.


rule collect_examples:
    """
    Choose features that persist and features that disappear, with text on which they fire.

    Output: a JSON file that the page draws.
    """
    input:
        features="results/{run}/lineage/features.parquet",
        edges=root_edge_tables,
        seed_correlations=root_seed_correlations,
        shards=shown_features,
        labels=root_labels,
        annotations="results/{run}/labels/probe.safetensors",
    output:
        examples="results/{run}/report/examples.json",
        manifest="results/{run}/report/examples.manifest.json",
    log:
        "results/{run}/logs/report/examples.log",
    benchmark:
        "results/{run}/benchmarks/report/examples.tsv"
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=memory(reading_all),
        runtime=runtime(reading_all),
    params:
        models=graph.ordered_models(config),
        roots=root_models(),
        threshold=config["lineage"]["threshold"],
        report={name: config["report"][name] for name in ("concepts", "n_features", "n_examples")},
        code=code_digest("collect_examples"),
    script:
        "../workflow/scripts/collect_examples.py"


rule write_dashboards:
    """
    Put together what the page shows of every feature of a model, beside those that it is matched to in other models.

    Output: the searchable table and a dashboard of each feature, in chunks that the page loads when they are needed.
    """
    input:
        features="results/{run}/lineage/features.parquet",
        edges=own_edge_tables,
        shards=lineage_features,
        annotations="results/{run}/labels/probe.safetensors",
        labels=own_labels,
        explanations=own_explanations,
        floors=own_floors,
        model=own_model_files,
        sae=own_leading_sae,
    output:
        data=directory("results/{run}/report/data/{model}"),
        manifest="results/{run}/report/data/{model}.manifest.json",
    log:
        "results/{run}/logs/report/dashboards.{model}.log",
    benchmark:
        "results/{run}/benchmarks/report/dashboards.{model}.tsv"
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(reading_all),
        runtime=runtime(reading_all),
    params:
        hookpoint=config["activations"]["hookpoint"],
        report={name: config["report"][name] for name in ("n_top", "quantiles")},
        code=code_digest("write_dashboards"),
    script:
        "../workflow/scripts/write_dashboards.py"


rule draw_dag:
    """
    Draw the graph of all jobs and the graph of all rules, as Snakemake plans them.

    Output: two SVG files. No graphviz is needed.
    """
    output:
        dag=report(
            "results/{run}/report/dag.svg",
            caption="../workflow/report/dag.rst",
            category="Graphs",
            labels={"picture": "jobs"},
        ),
        rulegraph=report(
            "results/{run}/report/rulegraph.svg",
            caption="../workflow/report/rulegraph.rst",
            category="Graphs",
            labels={"picture": "rules"},
        ),
        manifest="results/{run}/report/dag.manifest.json",
    log:
        "results/{run}/logs/report/dag.log",
    benchmark:
        "results/{run}/benchmarks/report/dag.tsv"
    localrule: True  # it starts Snakemake, and takes seconds
    conda:
        "../envs/report.yaml"
    params:
        shape=comparisons.job_shape(config),
        rules=rules_digest(),
        code=code_digest("draw_dag"),
    script:
        "../workflow/scripts/draw_dag.py"


rule write_report:
    """
    Put tables, figures, examples, jobs and provenance on one page.

    Output: an HTML file that opens without a network, the table behind each figure as CSV, and what the page loads of jobs.
    """
    input:
        summary="results/{run}/lineage/summary.json",
        model_metrics=expand("results/{{run}}/models/{model}/metrics.json", model=config["models"]),
        sae_metrics=expand("results/{{run}}/saes/{s.model}/{s.sae}/metrics.json", s=comparisons.measured_saes(config)),
        curves=expand("results/{{run}}/saes/{s.model}/{s.sae}/training.csv", s=comparisons.trained_saes(config)),
        sweeps=expand("results/{{run}}/sweeps/{sweep}.parquet", sweep=config["sweeps"]),
        merges=expand("results/{{run}}/models/{model}/merge.json", model=graph.models_of_kind(config, "merge")),
        correlations=edge_correlations,
        share_curves="results/{run}/lineage/curves.parquet",
        ablations=all_ablations(),
        effects=all_ablations(".agreement"),
        examples="results/{run}/report/examples.json",
        rulegraph="results/{run}/report/rulegraph.svg",
        manifests=[
            "results/{run}/lineage/manifest.json",
            expand("results/{{run}}/models/{model}/manifest.json", model=config["models"]),
            expand("results/{{run}}/saes/{s.model}/{s.sae}/manifest.json", s=comparisons.all_saes(config)),
        ],
        data=expand("results/{{run}}/report/data/{model}.manifest.json", model=compared_models()),
        labels=all_labels,
        explanations=all_explanations,
        sources=page_sources(),
    output:
        page=report(
            "results/{run}/report/index.html",
            caption="../workflow/report/index.rst",
            category="Report",
            labels={"run": "{run}"},
        ),
        jobs="results/{run}/report/data/jobs.js",
        edges=report(
            "results/{run}/report/tables/edges.csv",
            caption="../workflow/report/edges.rst",
            category="Tables",
            labels={"table": "edges"},
        ),
        instruments=report(
            "results/{run}/report/tables/instruments.csv",
            caption="../workflow/report/instruments.rst",
            category="Tables",
            labels={"table": "instruments"},
        ),
        nulls=report(
            "results/{run}/report/tables/nulls.csv",
            caption="../workflow/report/nulls.rst",
            category="Tables",
            labels={"table": "nulls"},
        ),
        matchings=report(
            "results/{run}/report/tables/matchings.csv",
            caption="../workflow/report/matchings.rst",
            category="Tables",
            labels={"table": "matchings"},
        ),
        curves=report(
            "results/{run}/report/tables/curves.csv",
            caption="../workflow/report/curves.rst",
            category="Tables",
            labels={"table": "curves"},
        ),
        agreements=report(
            "results/{run}/report/tables/agreements.csv",
            caption="../workflow/report/agreements.rst",
            category="Tables",
            labels={"table": "agreements"},
        ),
        sources=report(
            "results/{run}/report/tables/sources.csv",
            caption="../workflow/report/sources.rst",
            category="Tables",
            labels={"table": "sources"},
        ),
        absences=report(
            "results/{run}/report/tables/absences.csv",
            caption="../workflow/report/absences.rst",
            category="Tables",
            labels={"table": "absences"},
        ),
        effects=report(
            "results/{run}/report/tables/effects.csv",
            caption="../workflow/report/effects.rst",
            category="Tables",
            labels={"table": "effects"},
        ),
        ablations=report(
            "results/{run}/report/tables/ablations.csv",
            caption="../workflow/report/ablations.rst",
            category="Tables",
            labels={"table": "ablations"},
        ),
        flows=report(
            "results/{run}/report/tables/flows.csv",
            caption="../workflow/report/flows.rst",
            category="Tables",
            labels={"table": "flows"},
        ),
        models=report(
            "results/{run}/report/tables/models.csv",
            caption="../workflow/report/models.rst",
            category="Tables",
            labels={"table": "models"},
        ),
        sweeps=report(
            "results/{run}/report/tables/sweeps.csv",
            caption="../workflow/report/sweeps.rst",
            category="Tables",
            labels={"table": "sweeps"},
        ),
        saes=report(
            "results/{run}/report/tables/saes.csv",
            caption="../workflow/report/saes.rst",
            category="Tables",
            labels={"table": "saes"},
        ),
        densities=report(
            "results/{run}/report/tables/densities.csv",
            caption="../workflow/report/densities.rst",
            category="Tables",
            labels={"table": "densities"},
        ),
        training=report(
            "results/{run}/report/tables/training.csv",
            caption="../workflow/report/training.rst",
            category="Tables",
            labels={"table": "training"},
        ),
        merges=report(
            "results/{run}/report/tables/merges.csv",
            caption="../workflow/report/merges.rst",
            category="Tables",
            labels={"table": "merges"},
        ),
        correlations=report(
            "results/{run}/report/tables/correlations.csv",
            caption="../workflow/report/correlations.rst",
            category="Tables",
            labels={"table": "correlations"},
        ),
        scores=report(
            "results/{run}/report/tables/scores.csv",
            caption="../workflow/report/scores.rst",
            category="Tables",
            labels={"table": "scores"},
        ),
        manifest="results/{run}/report/manifest.json",
    log:
        "results/{run}/logs/report/page.log",
    benchmark:
        "results/{run}/benchmarks/report/page.tsv"
    localrule: True  # it starts Snakemake, and takes seconds
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=memory(reading_all),
        runtime=runtime(reading_all),
    params:
        config=config,
        edges=edge_names(),
        code=code_digest("write_report"),
    script:
        "../workflow/scripts/write_report.py"
