# report: the page of a run, and the pictures of the workflow. Config: report.

from saelineage.report.registry import TABLES


rule collect_examples:
    """
    Choose features that persist, are gone or are new, with text on which they fire.

    Output: a JSON file that the page shows.
    """
    input:
        features=run.paths.lineage_features,
        edges=run.paths.all_verdicts(),
        importance=run.paths.all_importance(),
        shards=run.paths.leading_features(),
        labels=run.paths.all_labels(),
        annotations=run.paths.annotations,
    output:
        examples=run.paths.examples,
        manifest=run.paths.manifest(run.paths.examples),
    log:
        run.paths.log("report/{hookpoint}.examples"),
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        models=run.graph.lineage,
        roots=run.graph.roots,
        edges=[list(edge) for edge in run.graph.edges],
        saes=[list(sae) for sae in run.leading_saes],
        shares_numbers=run.comparisons.shares_numbers,
        threshold=run.config["lineage"]["threshold"],
        report=run.subset("report", "concepts", "n_features", "n_changed", "n_examples"),
        code=code_digest("collect_examples"),
    script:
        "../workflow/scripts/collect_examples.py"


rule describe_changes:
    """
    Have a language-model service tell from the page's cards what training changed on each edge.

    Output: claims, each with the features that it rests on. Answers are kept as those of explain_features are.
    """
    input:
        examples=run.paths.examples,
    output:
        words=run.paths.words,
        manifest=run.paths.manifest(run.paths.words),
    log:
        run.paths.log("report/{hookpoint}.words"),
    wildcard_constraints:
        hookpoint=any_of(run.hookpoints if run.has_explanations else []),
    localrule: True  # where Snakemake was started there is a network, and the key in the environment
    conda:
        "../envs/analysis.yaml"
    params:
        settings=run.config["labels"].get("explanations"),
        answers=run.paths.answers,
        code=code_digest("describe_changes"),
    script:
        "../workflow/scripts/describe_changes.py"


rule write_dashboards:
    """
    Write what the page shows of every feature of a model, with the features of other models that match it.

    Output: the searchable table and a dashboard of each feature, in chunks that the page loads on demand.
    """
    input:
        features=run.paths.lineage_features,
        edges=run.paths.own_edges,
        importance=run.paths.own_importance,
        shards=run.paths.leading_features(),
        annotations=run.paths.annotations,
        labels=run.paths.own_labels,
        explanations=run.paths.own_explanations,
        no_change=run.paths.own_no_change,
        model=run.paths.own_model,
        sae=run.paths.own_leading_sae,
    output:
        data=directory(run.paths.dashboards),
        manifest=run.paths.dashboards_manifest,
    log:
        run.paths.log("report/{hookpoint}.dashboards.{model}"),
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        edges=run.params.edges_of_model,
        saes=[list(sae) for sae in run.leading_saes],
        no_change=run.params.no_change_partners,
        hookpoint=run.params.hookpoint,
        report=run.subset("report", "n_top", "quantiles"),
        code=code_digest("write_dashboards"),
    script:
        "../workflow/scripts/write_dashboards.py"


rule draw_dag:
    """
    Draw the graph of all jobs and the graph of all rules, as Snakemake plans them. Needs no graphviz.

    Output: two SVG files.
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
    localrule: True  # it starts Snakemake, and takes seconds
    conda:
        "../envs/report.yaml"
    params:
        shape=run.job_shape(),
        rules=rules_digest(),
        code=code_digest("draw_dag", "saelineage.plan.plan", "saelineage.jobs.snakemake_plan"),
    script:
        "../workflow/scripts/draw_dag.py"


rule write_report:
    """
    Put tables, figures, examples, jobs and provenance on one page.

    Output: an HTML file that opens without a network, the answer as text, each table as CSV
    (saelineage.report.registry lists them), and a page of how the run was made.
    """
    input:
        pages=run.page_files(),
        sources=run.paths.page_sources(workflow.basedir),
    output:
        tables=[
            report(
                run.paths.fix(run.paths.report_table, hookpoint=hookpoint, table=name),
                category="Tables",
                labels={"hookpoint": hookpoint, "table": name, "contents": table.caption},
            )
            for hookpoint in run.hookpoints
            for name, table in TABLES.items()
        ],
        pages=[
            report(
                page["page"],
                caption="../workflow/report/index.rst",
                category="Report",
                labels={"run": run.name, "hookpoint": hookpoint},
            )
            for hookpoint, page in run.pages().items()
        ],
        making=run.paths.making,
        answers=[page["answer"] for page in run.pages().values()],
        manifest=run.paths.folder_manifest(run.paths.page),
    log:
        run.paths.log("report/page"),
    localrule: True  # it starts Snakemake, and takes seconds
    conda:
        "../envs/report.yaml"
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        config=run.config,
        described=run.described(),
        assumptions=assumptions,
        pages=run.pages(),
        leading=[list(sae) for sae in run.leading_saes],
        edges=dict(zip(run.paths.edges, partner_names(run.edge_pairs))),
        code=code_digest("write_report", "saelineage.jobs.snakemake_plan"),
    script:
        "../workflow/scripts/write_report.py"
