# correlations: Pearson r between the features of two SAEs, by sums that add. Config: correlations, threads.correlations.


rule sum_products:
    """
    Sum activations, squares and products of a pair over one shard of the probe.

    Output: raw float64 sums per corpus.
    """
    input:
        a=pair_features("a"),
        b=pair_features("b"),
    output:
        sums=temp("results/{run}/correlations/{a}__{b}/sums-{shard}.safetensors"),
        manifest=temp("results/{run}/correlations/{a}__{b}/sums-{shard}.manifest.json"),
    log:
        "results/{run}/logs/correlations/{a}__{b}.{shard}.log",
    benchmark:
        "results/{run}/benchmarks/correlations/{a}__{b}.{shard}.tsv"
    conda:
        "../envs/analysis.yaml"
    threads: config["threads"]["correlations"]
    params:
        code=code_digest("sum_products"),
    script:
        "../workflow/scripts/sum_products.py"


rule correlate_features:
    """
    Add the shards' sums and correlate all pairs of features.

    Output: best matches on both sides, every r above a floor, the histogram of all r.
    """
    input:
        sums=pair_sums,
    output:
        correlation="results/{run}/correlations/{a}__{b}/correlation.safetensors",
        manifest="results/{run}/correlations/{a}__{b}/manifest.json",
    log:
        "results/{run}/logs/correlations/{a}__{b}.log",
    benchmark:
        "results/{run}/benchmarks/correlations/{a}__{b}.tsv"
    conda:
        "../envs/analysis.yaml"
    threads: config["threads"]["correlations"]
    params:
        correlations=config["correlations"],
        code=code_digest("correlate_features"),
    script:
        "../workflow/scripts/correlate_features.py"
