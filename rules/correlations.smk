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
    resources:
        mem_mb=memory(correlating),
        runtime=runtime(correlating),
    params:
        shift=is_shifted,
        block_features=config["correlations"]["block_features"],
        code=code_digest("sum_products"),
    script:
        "../workflow/scripts/sum_products.py"


rule correlate_features:
    """
    Add the shards' sums, correlate all pairs of features, and draw the probe's documents again for intervals.

    Output: best matches on both sides, every similarity above a floor and the histogram of all, per corpus and pooled,
    and what is split or merged; each feature's best r in every replicate of the documents.
    """
    input:
        sums=pair_sums,
        a=all_pair_features("a"),
        b=all_pair_features("b"),
        probe=all_token_rows("probe"),
    output:
        correlation="results/{run}/correlations/{a}__{b}/correlation.safetensors",
        replicates="results/{run}/correlations/{a}__{b}/replicates.safetensors",
        manifest="results/{run}/correlations/{a}__{b}/manifest.json",
    log:
        "results/{run}/logs/correlations/{a}__{b}.log",
    benchmark:
        "results/{run}/benchmarks/correlations/{a}__{b}.tsv"
    conda:
        "../envs/analysis.yaml"
    threads: config["threads"]["correlations"]
    resources:
        mem_mb=memory(correlating),
        runtime=runtime(correlating),
    params:
        settings={name: config["correlations"][name] for name in ("min_firings", "top_matches", "keep_above", "n_bins")},
        shift=is_shifted,
        draws={name: config["lineage"][name] for name in ("n_replicates", "seed")},
        code=code_digest("correlate_features"),
    script:
        "../workflow/scripts/correlate_features.py"


rule match_token_types:
    """
    Match the features of a pair as the original study did: r over decoded tokens on which both features fire.

    Output: matches, and on how many tokens the best of them rest.
    """
    input:
        a=all_pair_features("a"),
        b=all_pair_features("b"),
        tokens=all_token_rows("probe"),
        tokenizer="results/{run}/tokenizer/tokenizer.json",
    output:
        matches="results/{run}/correlations/{a}__{b}/token_types.safetensors",
        manifest="results/{run}/correlations/{a}__{b}/token_types.manifest.json",
    log:
        "results/{run}/logs/correlations/{a}__{b}.token_types.log",
    benchmark:
        "results/{run}/benchmarks/correlations/{a}__{b}.token_types.tsv"
    wildcard_constraints:
        b=any_of(map(str, comparisons.all_saes(config))),
    conda:
        "../envs/analysis.yaml"
    threads: config["threads"]["correlations"]
    resources:
        mem_mb=memory(correlating),
        runtime=runtime(correlating),
    params:
        settings={name: config["correlations"][name] for name in ("top_matches", "n_bins", "block_features")},
        threshold=config["lineage"]["threshold"],
        code=code_digest("match_token_types"),
    script:
        "../workflow/scripts/match_token_types.py"


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
    resources:
        mem_mb=memory(reading_all),
        runtime=runtime(reading_all),
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
        sae_a=any_of(dict.fromkeys(sae.sae for sae in comparisons.all_saes(config))),
        sae_b=any_of(dict.fromkeys(sae.sae for sae in comparisons.all_saes(config))),
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["correlations"]
    resources:
        mem_mb=memory(reading_all),
        runtime=runtime(reading_all),
    params:
        hookpoint=config["activations"]["hookpoint"],
        settings={
            name: config["correlations"][name] for name in ("top_matches", "keep_above", "n_bins", "block_features")
        },
        code=code_digest("compare_weights"),
    script:
        "../workflow/scripts/compare_weights.py"
