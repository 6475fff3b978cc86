# behaviour: what the features that a child has alone make it and its parent do. Config: behaviour, and report.act.


rule act_on_features:
    """
    Take an edge's most important new features out of the child, hold them there, and add them to the parent.

    Output: what both models write on passages where these features fire, and how close the parent comes to the child;
    and the loss recovered by patching all new features of the child into the parent.
    """
    input:
        parent=run.paths.edge_model("parent"),
        child=run.paths.edge_model("child"),
        sae=run.paths.child_sae,
        features=run.paths.edge_features("child"),
        verdicts=run.paths.fix(run.paths.edge_table, edge="{parent}__{child}"),
        importance=run.paths.fix(run.paths.importance, edge="{parent}__{child}"),
        annotations=run.paths.annotations,
        tokenizer=run.paths.tokenizer,
        rows=run.paths.rows("probe"),
    output:
        acts=run.paths.acts,
        summary=run.paths.act_summary,
        patches=run.paths.patches,
        manifest=run.paths.manifest(run.paths.acts),
    log:
        run.paths.log("behaviour/{hookpoint}.acts.{parent}__{child}"),
    wildcard_constraints:
        parent=any_of(run.graph.models),
        child=any_of(run.graph.models),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.acting),
        runtime=runtime(run.needs.acting),
    params:
        n_features=run.config["report"]["act"],
        corpora=run.paths.corpora,
        hookpoint=run.params.hookpoint,
        max_rows=run.config["behaviour"]["patched_rows"],
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        replicates=run.subset("lineage", "n_replicates", "seed"),
        code=code_digest("act_on_features"),
    script:
        "../workflow/scripts/act_on_features.py"


rule contrast_models:
    """
    Sample from the child of an edge where it differs from its parent, and count its features in the samples.

    Output: the samples as text, beside as many of the child alone and of the child contrasted with itself; and how much
    more often each of the child's features fires in the contrast's.
    """
    input:
        parent=run.paths.edge_model("parent"),
        child=run.paths.edge_model("child"),
        sae=run.paths.child_sae,
        verdicts=run.paths.fix(run.paths.edge_table, edge="{parent}__{child}"),
        tokenizer=run.paths.tokenizer,
        rows=run.paths.rows("probe"),
    output:
        samples=run.paths.samples,
        enriched=run.paths.enriched,
        manifest=run.paths.manifest(run.paths.samples),
    log:
        run.paths.log("behaviour/{hookpoint}.contrast.{parent}__{child}"),
    wildcard_constraints:
        parent=any_of(run.graph.models),
        child=any_of(run.graph.models),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.contrasting),
        runtime=runtime(run.needs.contrasting),
    params:
        settings=run.subset("behaviour", "samples", "sample_tokens"),
        corpora=run.paths.corpora,
        hookpoint=run.params.hookpoint,
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        seed=run.config["lineage"]["seed"],
        code=code_digest("contrast_models"),
    script:
        "../workflow/scripts/contrast_models.py"
