# report: the page of a run, and the pictures of the workflow. Config: report.


rule collect_examples:
    """
    Choose features that persist and features that disappear, with text on which they fire.

    Output: a JSON file that the page draws.
    """
    input:
        features=run.paths.lineage_features,
        edges=run.paths.root_edges(),
        seed_correlations=run.paths.root_seed_correlations(),
        shards=run.paths.shown_features(),
        labels=run.paths.root_labels(),
        annotations=run.paths.annotations,
    output:
        examples=run.paths.examples,
        manifest=run.paths.manifest(run.paths.examples),
    log:
        run.paths.log("report/examples"),
    benchmark:
        run.paths.benchmark("report/examples")
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        models=run.graph.ordered,
        roots=run.graph.roots,
        threshold=run.config["lineage"]["threshold"],
        report=run.subset("report", "concepts", "n_features", "n_examples"),
        code=code_digest("collect_examples"),
    script:
        "../workflow/scripts/collect_examples.py"


rule write_dashboards:
    """
    Put together what the page shows of every feature of a model, beside those that it is matched to in other models.

    Output: the searchable table and a dashboard of each feature, in chunks that the page loads when they are needed.
    """
    input:
        features=run.paths.lineage_features,
        edges=run.paths.own_edges,
        shards=run.paths.leading_features(),
        annotations=run.paths.annotations,
        labels=run.paths.own_labels,
        explanations=run.paths.own_explanations,
        floors=run.paths.own_floors,
        model=run.paths.own_model,
        sae=run.paths.own_leading_sae,
    output:
        data=directory(run.paths.dashboards),
        manifest=run.paths.manifest(run.paths.dashboards + "."),
    log:
        run.paths.log("report/dashboards.{model}"),
    benchmark:
        run.paths.benchmark("report/dashboards.{model}")
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        hookpoint=run.config["activations"]["hookpoint"],
        report=run.subset("report", "n_top", "quantiles"),
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
            run.paths.dag,
            caption="../workflow/report/dag.rst",
            category="Graphs",
            labels={"picture": "jobs"},
        ),
        rulegraph=report(
            run.paths.rulegraph,
            caption="../workflow/report/rulegraph.rst",
            category="Graphs",
            labels={"picture": "rules"},
        ),
        manifest=run.paths.manifest(run.paths.dag),
    log:
        run.paths.log("report/dag"),
    benchmark:
        run.paths.benchmark("report/dag")
    localrule: True  # it starts Snakemake, and takes seconds
    conda:
        "../envs/report.yaml"
    params:
        shape=run.job_shape(),
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
        summary=run.paths.summary,
        model_metrics=run.paths.fill(run.paths.model_metrics, model=run.graph.models),
        sae_metrics=run.paths.of_saes(run.paths.sae_metrics, run.comparisons.measured_saes),
        curves=run.paths.of_saes(run.paths.sae_curve, run.comparisons.trained_saes),
        sweeps=run.paths.fill(run.paths.sweep, sweep=run.config["sweeps"]),
        merges=run.paths.fill(run.paths.merge, model=run.graph.of_kind("merge")),
        correlations=run.paths.edge_correlations(),
        share_curves=run.paths.share_curves,
        ablations=run.paths.all_ablations(),
        effects=run.paths.all_ablations(".agreement"),
        examples=run.paths.examples,
        rulegraph=run.paths.rulegraph,
        manifests=[
            run.paths.folder_manifest(run.paths.summary),
            run.paths.fill(run.paths.folder_manifest(run.paths.model_metrics), model=run.graph.models),
            run.paths.of_saes(run.paths.folder_manifest(run.paths.sae_config), run.comparisons.saes),
        ],
        data=run.paths.fill(run.paths.manifest(run.paths.dashboards + "."), model=run.graph.connected),
        labels=run.paths.all_labels(),
        explanations=run.paths.all_explanations(),
        sources=run.paths.page_sources(workflow.basedir),
    output:
        page=report(
            run.paths.page,
            caption="../workflow/report/index.rst",
            category="Report",
            labels={"run": "{run}"},
        ),
        jobs=run.paths.job_data,
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
        manifest=run.paths.folder_manifest(run.paths.page),
    log:
        run.paths.log("report/page"),
    benchmark:
        run.paths.benchmark("report/page")
    localrule: True  # it starts Snakemake, and takes seconds
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        config=run.config,
        edges=run.paths.edges,
        code=code_digest("write_report"),
    script:
        "../workflow/scripts/write_report.py"
