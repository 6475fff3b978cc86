# labels: what each feature of the lineage follows, in words. Config: labels.


rule annotate_probe:
    """
    Annotate every token of the probe: its text and document, its shape, neighbours and place in the syntax.

    Output: the tokens' texts, and which of them have which properties.
    """
    input:
        rows=run.paths.rows("probe"),
        sidecars=run.paths.fill(run.paths.token_sidecar, corpus=run.paths.corpora, split="probe"),
        documents=run.paths.fill(run.paths.documents, corpus=run.paths.corpora, split="probe"),
        tokenizer=run.paths.tokenizer,
    output:
        annotations=run.paths.annotations,
        manifest=run.paths.manifest(run.paths.annotations),
    log:
        run.paths.log("labels/probe"),
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        corpora=run.paths.corpora,
        syntax=run.config["labels"]["syntax"],
        code=code_digest("annotate_probe"),
    script:
        "../workflow/scripts/annotate_probe.py"


rule label_features:
    """
    Find the property of tokens that each feature of one SAE follows best, on one half of the documents.

    Output: per feature the best property of every kind, with its score, precision and recall on the other half.
    """
    input:
        shards=run.paths.own_features,
        annotations=run.paths.annotations,
    output:
        labels=run.paths.labels,
        manifest=run.paths.manifest(run.paths.labels),
    log:
        run.paths.log("labels/{hookpoint}.{model}.{sae}"),
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        min_firings=run.config["labels"]["min_firings"],
        code=code_digest("label_features"),
    script:
        "../workflow/scripts/label_features.py"


rule explain_features:
    """
    Have a language-model service explain the features of one SAE, and score each explanation by simulation.

    Output: per feature the explanation, its score and what that rests on. Every answer is kept under
    results/{run}/checkpoints/explanations/, so that nothing is asked twice.
    """
    input:
        shards=run.paths.own_features,
        annotations=run.paths.annotations,
    output:
        explanations=run.paths.explanations,
        manifest=run.paths.manifest(run.paths.explanations),
    log:
        run.paths.log("labels/{hookpoint}.explanations.{model}.{sae}"),
    wildcard_constraints:
        model=any_of(run.graph.models if run.has_explanations else []),
    localrule: True  # where Snakemake was started there is a network, and the key in the environment
    conda:
        "../envs/analysis.yaml"
    params:
        settings=run.config["labels"].get("explanations"),
        min_firings=run.config["labels"]["min_firings"],
        answers=run.paths.answers,
        code=code_digest("explain_features"),
    script:
        "../workflow/scripts/explain_features.py"
