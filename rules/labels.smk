# labels: what each feature of the lineage follows, in words. Config: labels.


rule annotate_probe:
    """
    Say of every token of the probe what it is: its text and document, its shape, neighbours and place in the syntax.

    Output: the tokens' texts, and which of them have which properties.
    """
    input:
        rows=all_token_rows("probe"),
        sidecars=expand("results/{{run}}/tokens/{corpus}/probe.json", corpus=config["corpora"]),
        documents=expand("results/{{run}}/corpora/{corpus}/probe.parquet", corpus=config["corpora"]),
        tokenizer="results/{run}/tokenizer/tokenizer.json",
    output:
        annotations="results/{run}/labels/probe.safetensors",
        manifest="results/{run}/labels/probe.manifest.json",
    log:
        "results/{run}/logs/labels/probe.log",
    benchmark:
        "results/{run}/benchmarks/labels/probe.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory(reading_all),
        runtime=runtime(reading_all),
    params:
        syntax=config["labels"]["syntax"],
        code=code_digest("annotate_probe"),
    script:
        "../workflow/scripts/annotate_probe.py"


rule label_features:
    """
    Find the property of tokens that each feature of one SAE follows best, on one half of the documents.

    Output: per feature the best property of every kind, with its score, precision and recall on the other half.
    """
    input:
        shards=own_features,
        annotations="results/{run}/labels/probe.safetensors",
    output:
        labels="results/{run}/labels/{model}/{sae}.parquet",
        manifest="results/{run}/labels/{model}/{sae}.manifest.json",
    log:
        "results/{run}/logs/labels/{model}.{sae}.log",
    benchmark:
        "results/{run}/benchmarks/labels/{model}.{sae}.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory(reading_all),
        runtime=runtime(reading_all),
    params:
        min_firings=config["labels"]["min_firings"],
        code=code_digest("label_features"),
    script:
        "../workflow/scripts/label_features.py"


rule explain_features:
    """
    Have a language-model service explain features of one SAE, and score each explanation by simulation.

    Output: per feature the explanation, its score and what that rests on. Every answer is kept under
    results/{run}/checkpoints/explanations/, so that nothing is asked twice.
    """
    input:
        shards=own_features,
        annotations="results/{run}/labels/probe.safetensors",
    output:
        explanations="results/{run}/labels/{model}/{sae}.explanations.parquet",
        manifest="results/{run}/labels/{model}/{sae}.explanations.manifest.json",
    log:
        "results/{run}/logs/labels/explanations.{model}.{sae}.log",
    benchmark:
        "results/{run}/benchmarks/labels/explanations.{model}.{sae}.tsv"
    wildcard_constraints:
        model=any_of(config["models"] if "explanations" in config["labels"] else []),
    localrule: True  # where Snakemake was started there is a network, and the key in the environment
    conda:
        "../envs/analysis.yaml"
    params:
        settings=config["labels"].get("explanations"),
        min_firings=config["labels"]["min_firings"],
        answers="results/{run}/checkpoints/explanations",
        code=code_digest("explain_features"),
    script:
        "../workflow/scripts/explain_features.py"
