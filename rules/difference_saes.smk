# difference SAEs: what each edge wrote. Config: difference_saes, saes, threads.saes, threads.features.


rule train_difference_sae:
    """
    Train one SAE on the child's activations minus the parent's of the same tokens of the train dumps.
    Its checkpoint lies under results/{run}/checkpoints/ while it runs, for resuming.

    Output: a folder that SAELens reads, and the training curve.
    """
    input:
        parent=run.placed(lambda plan: plan.paths.difference_dump("parent")),
        child=run.placed(lambda plan: plan.paths.difference_dump("child")),
    output:
        weights=run.paths.difference_weights,
        config=run.paths.difference_config,
        curve=run.paths.difference_curve,
        manifest=run.paths.folder_manifest(run.paths.difference_config),
    log:
        run.paths.log("difference_saes/{hookpoint}.{parent}__{child}.{seed}"),
    wildcard_constraints:
        parent=any_of(run.graph.models),
        child=any_of(run.graph.models),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["saes"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.placed(lambda plan: plan.needs.training_difference_sae)),
        runtime=runtime(run.placed(lambda plan: plan.needs.training_difference_sae)),
    params:
        settings=run.placed(lambda plan: plan.params.difference_sae),
        source=run.paths.child_opened_as,
        code=code_digest("train_difference_sae"),
    script:
        "../workflow/scripts/train_difference_sae.py"


rule measure_difference_sae:
    """
    Encode the probe's differences with a difference SAE, and compare its directions with those of both models' SAEs.

    Output: the firings and closest directions of each latent, and figures for each corpus.
    """
    input:
        weights=run.paths.difference_weights,
        config=run.paths.difference_config,
        parent=run.paths.edge_dump("parent"),
        child=run.paths.edge_dump("child"),
        parent_sae=run.paths.compared_with_difference("parent"),
        child_sae=run.paths.compared_with_difference("child"),
        unchanged_sae=run.paths.compared_with_difference("unchanged"),
    output:
        latents=run.paths.differences,
        summary=run.paths.difference_summary,
        manifest=run.paths.manifest(run.paths.differences),
    log:
        run.paths.log("lineage/{hookpoint}.{parent}__{child}.{seed}.difference"),
    wildcard_constraints:
        parent=any_of(run.graph.models),
        child=any_of(run.graph.models),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["features"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.measuring_difference_sae),
        runtime=runtime(run.needs.measuring_difference_sae),
    params:
        role=run.params.difference_role,
        corpora=run.paths.corpora,
        same_above=run.config["difference_saes"]["same_above"],
        min_firings=run.config["correlations"]["min_firings"],
        code=code_digest("measure_difference_sae"),
    script:
        "../workflow/scripts/measure_difference_sae.py"
