# correlations: Pearson r between the features of two SAEs, by sums that add. Config: correlations, threads.correlations.


rule correlate_features:
    """
    Correlate the features of one SAE with those of all partners, and draw the probe's documents again for intervals.

    Output: per partner, best matches on both sides, every similarity above a bound, the histogram of all, and parts;
    for edges and their no-change controls, each feature's best r in every replicate of the documents.
    """
    input:
        a=run.paths.side_features("a"),
        b=run.paths.partner_features,
        probe=run.paths.rows("probe"),
    output:
        correlations=run.paths.correlations,
        replicates=run.paths.replicates,
        manifest=run.paths.folder_manifest(run.paths.correlations),
    log:
        run.paths.log("correlations/{hookpoint}.{a}"),
    wildcard_constraints:
        a=any_of(run.comparisons.partners),
    conda:
        "../envs/analysis.yaml"
    threads: run.config["threads"]["correlations"]
    resources:
        mem_mb=memory(run.needs.correlating),
        runtime=runtime(run.needs.correlating),
    params:
        partners=run.params.partners,
        corpora=run.paths.corpora,
        settings=run.subset(
            "correlations",
            *("min_firings", "top_matches", "keep_above", "n_bins", "block_features", "by_corpus", "jaccard"),
        ),
        resampled=run.params.resampled_partners,
        draws=run.subset("lineage", "n_replicates", "seed"),
        code=code_digest("correlate_features"),
    script:
        "../workflow/scripts/correlate_features.py"


rule match_token_types:
    """
    Match the features of a pair as the original study did: r over decoded tokens on which both features fire.

    Output: matches, and on how many tokens the best of them rest.
    """
    input:
        a=run.paths.side_features("a"),
        b=run.paths.side_features("b"),
        tokens=run.paths.rows("probe"),
        tokenizer=run.paths.tokenizer,
    output:
        matches=run.paths.token_types,
        manifest=run.paths.manifest(run.paths.token_types),
    log:
        run.paths.log("correlations/{hookpoint}.{a}__{b}.token_types"),
    wildcard_constraints:
        b=any_of(run.comparisons.saes),
    conda:
        "../envs/analysis.yaml"
    threads: run.config["threads"]["correlations"]
    resources:
        mem_mb=memory(run.needs.correlating),
        runtime=runtime(run.needs.correlating),
    params:
        corpora=run.paths.corpora,
        settings=run.subset("correlations", "top_matches", "n_bins", "block_features"),
        threshold=run.config["lineage"]["threshold"],
        code=code_digest("match_token_types"),
    script:
        "../workflow/scripts/match_token_types.py"


rule write_dense_correlation:
    """
    Write Pearson r of every pair of features, over all corpora; made only when asked for.

    Output: a NumPy file [d_sae of a, d_sae of b] in float32.
    """
    input:
        a=run.paths.side_features("a"),
        b=run.paths.side_features("b"),
    output:
        r=run.paths.dense,
        manifest=run.paths.manifest(run.paths.dense),
    log:
        run.paths.log("correlations/{hookpoint}.{a}__{b}.dense"),
    conda:
        "../envs/analysis.yaml"
    threads: run.config["threads"]["correlations"]
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        shift=run.params.shift,
        block_features=run.config["correlations"]["block_features"],
        min_firings=run.config["correlations"]["min_firings"],
        code=code_digest("write_dense_correlation"),
    script:
        "../workflow/scripts/write_dense_correlation.py"


rule compare_weights:
    """
    Compare the features of two SAEs by their weights, and by what the models make of those; made only when asked for.

    Output: best matches, every similarity above a bound and the histogram of all, by measure; a summary of the best.
    """
    input:
        sae_a=run.paths.over(run.paths.side(run.paths.sae_file, "a"), name=SAE_FILES),
        sae_b=run.paths.over(run.paths.side(run.paths.sae_file, "b"), name=SAE_FILES),
        model_a=run.paths.over(run.paths.side(run.paths.model_file, "a"), name=MODEL_FILES[:2]),
        model_b=run.paths.over(run.paths.side(run.paths.model_file, "b"), name=MODEL_FILES[:2]),
    output:
        similarities=run.paths.fix(run.paths.similarities, ending="safetensors"),
        summary=run.paths.fix(run.paths.similarities, ending="json"),
        manifest=run.paths.fix(run.paths.similarities, ending="manifest.json"),
    log:
        run.paths.log("correlations/{hookpoint}.{model_a}.{sae_a}__{model_b}.{sae_b}.similarities"),
    wildcard_constraints:
        model_a=any_of(run.graph.models),
        model_b=any_of(run.graph.models),
        sae_a=any_of(sae.sae for sae in run.comparisons.saes),
        sae_b=any_of(sae.sae for sae in run.comparisons.saes),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["correlations"]
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        hookpoint=run.params.hookpoint,
        settings=run.subset("correlations", "top_matches", "keep_above", "n_bins", "block_features"),
        code=code_digest("compare_weights"),
    script:
        "../workflow/scripts/compare_weights.py"
