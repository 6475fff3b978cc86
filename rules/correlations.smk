# correlations: Pearson r between the features of two SAEs, by sums that add. Config: correlations, threads.correlations.


rule sum_products:
    """
    Sum activations, squares and products of a pair over one shard of the probe.

    Output: raw float64 sums per corpus. Where b ends in _shifted, its documents are shifted against a's: a null.
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
        shift=is_shifted,
        block_features=config["correlations"]["block_features"],
        code=code_digest("sum_products"),
    script:
        "../workflow/scripts/sum_products.py"


rule correlate_features:
    """
    Add the shards' sums and correlate all pairs of features.

    Output: best matches on both sides, every similarity above a floor and the histogram of all, per corpus and pooled.
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
        settings={name: config["correlations"][name] for name in ("min_firings", "top_matches", "keep_above", "n_bins")},
        code=code_digest("correlate_features"),
    script:
        "../workflow/scripts/correlate_features.py"


rule write_dense_correlation:
    """
    Write Pearson r of every pair of features, over all corpora; made only when asked for.

    Output: a NumPy file [d_sae of a, d_sae of b] in float32.
    """
    input:
        sums=pair_sums,
    output:
        r="results/{run}/correlations/{a}__{b}/dense.npy",
        manifest="results/{run}/correlations/{a}__{b}/dense.manifest.json",
    log:
        "results/{run}/logs/correlations/{a}__{b}.dense.log",
    benchmark:
        "results/{run}/benchmarks/correlations/{a}__{b}.dense.tsv"
    conda:
        "../envs/analysis.yaml"
    threads: config["threads"]["correlations"]
    params:
        min_firings=config["correlations"]["min_firings"],
        code=code_digest("write_dense_correlation"),
    script:
        "../workflow/scripts/write_dense_correlation.py"


rule compare_weights:
    """
    Compare the features of two SAEs by their weights, and by what the models make of those; made only when asked for.

    Output: best matches, every similarity above a floor and the histogram of all, by measure; a summary of the best.
    """
    input:
        sae_a=expand("results/{{run}}/saes/{{model_a}}/{{sae_a}}/{name}", name=["cfg.json", "sae_weights.safetensors"]),
        sae_b=expand("results/{{run}}/saes/{{model_b}}/{{sae_b}}/{name}", name=["cfg.json", "sae_weights.safetensors"]),
        model_a=expand("results/{{run}}/models/{{model_a}}/{name}", name=["config.json", "model.safetensors"]),
        model_b=expand("results/{{run}}/models/{{model_b}}/{name}", name=["config.json", "model.safetensors"]),
    output:
        similarities="results/{run}/correlations/{model_a}.{sae_a}__{model_b}.{sae_b}/similarities.safetensors",
        summary="results/{run}/correlations/{model_a}.{sae_a}__{model_b}.{sae_b}/similarities.json",
        manifest="results/{run}/correlations/{model_a}.{sae_a}__{model_b}.{sae_b}/similarities.manifest.json",
    log:
        "results/{run}/logs/correlations/{model_a}.{sae_a}__{model_b}.{sae_b}.similarities.log",
    benchmark:
        "results/{run}/benchmarks/correlations/{model_a}.{sae_a}__{model_b}.{sae_b}.similarities.tsv"
    wildcard_constraints:
        model_a=any_of(config["models"]),
        model_b=any_of(config["models"]),
        sae_a=any_of(graph.sae_names(config)),
        sae_b=any_of(graph.sae_names(config)),
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["correlations"]
    params:
        hookpoint=config["activations"]["hookpoint"],
        settings={
            name: config["correlations"][name] for name in ("top_matches", "keep_above", "n_bins", "block_features")
        },
        code=code_digest("compare_weights"),
    script:
        "../workflow/scripts/compare_weights.py"
