# lineage: verdicts per feature and edge, the evidence for them, and what removing features does. Config: lineage.


rule read_out_features:
    """
    Predict the features of both ends of an edge linearly from the other end's raw activations, and from their own.

    Output: held-out R2 of each feature, to tell features that are gone or new from features that an SAE misses.
    """
    input:
        parent_acts=run.paths.edge_dump("parent"),
        child_acts=run.paths.edge_dump("child"),
        parent_features=run.paths.edge_features("parent"),
        child_features=run.paths.edge_features("child"),
    output:
        readouts=run.paths.readouts,
        manifest=run.paths.manifest(run.paths.readouts),
    log:
        run.paths.log("lineage/{hookpoint}.readouts.{parent}__{child}"),
    wildcard_constraints:
        parent=any_of(run.graph.models),
        child=any_of(run.graph.models),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.reading_out),
        runtime=runtime(run.needs.reading_out),
    params:
        code=code_digest("read_out_features"),
    script:
        "../workflow/scripts/read_out_features.py"


rule trace_lineage:
    """
    Give every feature a verdict (persists, drifted, gone; inherited, new; untestable), and every share its controls.

    Output: a table per edge, trajectories through the whole graph, curves over all thresholds, the sources of merges,
    and the summary with all instruments beside their controls.
    """
    input:
        correlations=run.paths.all_correlations(run.paths.correlations),
        replicates=run.paths.all_correlations(run.paths.replicates),
        token_types=run.paths.all_token_types(),
        readouts=run.paths.all_readouts(),
        weights=run.paths.traced_weights(),
        exclusivity=run.paths.verdicts_of_crosscoders(run.paths.exclusivity),
        matches=run.paths.verdicts_of_crosscoders(run.paths.crosscoder_matches),
    output:
        edges=run.paths.over(run.paths.edge_table, edge=run.paths.edges),
        features=run.paths.lineage_features,
        curves=run.paths.share_curves,
        sources=run.paths.sources,
        summary=run.paths.summary,
        manifest=run.paths.folder_manifest(run.paths.summary),
    log:
        run.paths.log("lineage/{hookpoint}.lineage"),
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory(run.needs.tracing),
        runtime=runtime(run.needs.tracing),
    params:
        rules=run.subset("lineage", "threshold", "drifted_from", "readout_from", "relocated_below", "identified_from"),
        models=run.graph.lineage,
        comparisons=run.comparisons.as_data(),
        sides=list(run.comparisons.partners),
        typed_pairs=list(map(pair_name, run.token_type_pairs)),
        read_out=run.paths.edges if run.config["lineage"]["readouts"] else [],
        saes=[str(sae) for sae in run.traced_saes],
        in_crosscoders=list(run.crosscoders.first_of_edges),
        code=code_digest("trace_lineage"),
    script:
        "../workflow/scripts/trace_lineage.py"


rule measure_drift:
    """
    Measure how much changed from parent to child on every edge, before any verdict on features.

    One job for all edges, with two models in memory at a time. Output: the divergence of predictions and the drift of
    activations per corpus, beside the fvu of both SAEs, and the relative change of the weights per layer.
    """
    input:
        models=run.paths.connected_models(),
        saes=run.paths.connected_saes(),
        sae_metrics=run.paths.fill(run.paths.sae_metrics, model=run.graph.connected),
        dumps=run.paths.connected_dumps(),
        rows=run.paths.rows("validation"),
    output:
        drift=run.paths.drift,
        manifest=run.paths.manifest(run.paths.drift),
    log:
        run.paths.log("lineage/{hookpoint}.drift"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.measuring_drift),
        runtime=runtime(run.needs.measuring_drift),
    params:
        edges=[list(edge) for edge in run.graph.edges],
        models=run.graph.connected,
        corpora=run.paths.corpora,
        batch_rows=run.config["batch_rows"],
        max_rows=run.config["lineage"]["drift_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        code=code_digest("measure_drift"),
    script:
        "../workflow/scripts/measure_drift.py"


rule decompose_changes:
    """
    Decompose the change of each matrix of a model from each of its parents into its singular values and vectors.

    Once for all hookpoints. Output: for each matrix its size, effective rank, energy among the parent's leading
    directions, and new leading directions (intruders); and the same over all matrices of an edge.
    """
    input:
        config=run.paths.fix(run.paths.model_file, name="config.json"),
        weights=run.paths.changed_weights,
    output:
        matrices=run.paths.fix(run.paths.matrix_changes, ending="parquet"),
        edges=run.paths.fix(run.paths.matrix_changes, ending="json"),
        manifest=run.paths.manifest(run.paths.matrix_changes),
    log:
        run.paths.log("models/{model}.changes"),
    wildcard_constraints:
        model=any_of(run.graph.children),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["activations"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.decomposing),
        runtime=runtime(run.needs.decomposing),
    params:
        code=code_digest("decompose_changes"),
    script:
        "../workflow/scripts/decompose_changes.py"


rule ablate_groups:
    """
    Measure the loss of every model with an edge's persisting, lost or new features ablated, compared with random ones.

    One job, because each model is loaded once for all its edges. Output: for each edge, the change in loss per group
    and corpus; the same for single features that match, in both models; and how well these agree.
    """
    input:
        models=run.paths.connected_models(),
        saes=run.paths.connected_saes(),
        edges=run.paths.fill(run.paths.edge_table, edge=run.paths.edges),
        rows=run.paths.rows("validation"),
    output:
        groups=run.paths.over(run.paths.ablations, edge=run.paths.edges, kind=[""]),
        features=run.paths.over(run.paths.ablations, edge=run.paths.edges, kind=[".features"]),
        agreement=run.paths.over(run.paths.ablations, edge=run.paths.edges, kind=[".agreement"]),
        manifest=run.paths.ablations_manifest,
    log:
        run.paths.log("lineage/{hookpoint}.ablations"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.ablating),
        runtime=runtime(run.needs.ablating),
    params:
        edges=[list(edge) for edge in run.graph.edges],
        models=run.graph.connected,
        corpora=run.paths.corpora,
        hookpoint=run.params.hookpoint,
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        settings=run.subset("lineage", "ablated_rows", "ablated_features", "seed"),
        code=code_digest("ablate_groups"),
    script:
        "../workflow/scripts/ablate_groups.py"


rule rank_features:
    """
    Rank the features of every edge by importance: their effect on their model's loss x the share that is its own.

    One job, because each model is loaded once for all its edges. Output: for each edge the importance of every testable
    feature of both sides, with its effect and density per corpus; and how far estimated and measured effects agree.
    """
    input:
        models=run.paths.connected_models(),
        saes=run.paths.connected_saes(),
        edges=run.paths.fill(run.paths.edge_table, edge=run.paths.edges),
        correlations=run.paths.edge_correlations(),
        rows=run.paths.rows("validation"),
    output:
        importance=run.paths.over(run.paths.importance, edge=run.paths.edges),
        agreement=run.paths.importance_agreement,
        manifest=run.paths.folder_manifest(run.paths.importance_agreement),
    log:
        run.paths.log("lineage/{hookpoint}.importance"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.ranking),
        runtime=runtime(run.needs.ranking),
    params:
        edges=[list(edge) for edge in run.graph.edges],
        partners=partner_names(run.edge_pairs),
        models=run.graph.connected,
        corpora=run.paths.corpora,
        hookpoint=run.params.hookpoint,
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        settings=run.subset("lineage", "ablated_rows", "exact_features"),
        code=code_digest("rank_features"),
    script:
        "../workflow/scripts/rank_features.py"


rule measure_losses:
    """
    Measure a model's loss on every token of the probe, once for all its edges and all hookpoints.

    Output: a loss per token.
    """
    input:
        model=run.paths.own_model,
        rows=run.paths.rows("probe"),
    output:
        losses=run.paths.token_losses,
        manifest=run.paths.manifest(run.paths.token_losses),
    log:
        run.paths.log("models/{model}.losses"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["activations"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.measuring_losses),
        runtime=runtime(run.needs.measuring_losses),
    params:
        corpora=run.paths.corpora,
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        code=code_digest("measure_losses"),
    script:
        "../workflow/scripts/measure_losses.py"


rule compare_losses:
    """
    Find the passages of the probe on which each child's loss fell most beside its parent and its siblings.

    Output: for each edge the passages, with the losses of the models and the child's features that fire there; and how
    often each feature does so, beside how often it fires elsewhere.
    """
    input:
        losses=run.paths.losses_with_siblings(),
        edges=run.paths.fill(run.paths.edge_table, edge=run.paths.edges),
        features=run.paths.connected_features(),
        annotations=run.paths.annotations,
    output:
        passages=run.paths.over(run.paths.passages, edge=run.paths.edges, kind=[""]),
        features=run.paths.over(run.paths.passages, edge=run.paths.edges, kind=[".features"]),
        manifest=run.paths.passages_manifest,
    log:
        run.paths.log("lineage/{hookpoint}.passages"),
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=memory(run.needs.comparing_losses),
        runtime=runtime(run.needs.comparing_losses),
    params:
        edges=[list(edge) for edge in run.graph.edges],
        siblings=[run.graph.siblings(edge) for edge in run.graph.edges],
        models=run.graph.beside_siblings,
        saes=[list(run.comparisons.leading_sae(model)) for model in run.graph.connected],
        n_passages=run.config["lineage"]["passages"],
        code=code_digest("compare_losses"),
    script:
        "../workflow/scripts/compare_losses.py"


rule compare_seeds:
    """
    Measure how far the SAEs of different seeds of each model agree; made only when asked for.

    Output: PW-MCC and the share of features that recur, per pair of seeds and per model, with definitions and digests.
    """
    input:
        saes=run.paths.seed_saes(),
        correlations=run.paths.seed_correlations(),
    output:
        seeds=run.paths.seeds,
        manifest=run.paths.manifest(run.paths.seeds),
    log:
        run.paths.log("lineage/{hookpoint}.seeds"),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["correlations"]
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        pairs=run.comparisons.seed_pair_names,
        threshold=run.config["lineage"]["threshold"],
        config=run.deciding("corpora", "splits", "tokenizer", "tokens", "models", "activations", "saes", "correlations"),
        code=code_digest("compare_seeds"),
    script:
        "../workflow/scripts/compare_seeds.py"
