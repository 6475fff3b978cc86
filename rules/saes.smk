# saes: sparse autoencoders on the dumps, and how good they are. Config: saes, threads.saes.


rule train_sae:
    """
    Train one SAE on one model's activations, from random weights or from the SAEs of its parents.
    Its checkpoint lies under results/{run}/checkpoints/ while it runs, for resuming.

    Output: a SAELens folder and the training curve.
    """
    input:
        shards=sae_dump,
        starts=sae_starts,
    output:
        weights=["results/{run}/saes/{model}/{sae}/sae_weights.safetensors"],
        config=["results/{run}/saes/{model}/{sae}/cfg.json"],
        curve=["results/{run}/saes/{model}/{sae}/training.csv"],
        manifest=["results/{run}/saes/{model}/{sae}/manifest.json"],
    log:
        "results/{run}/logs/saes/{model}.{sae}.log",
    benchmark:
        "results/{run}/benchmarks/saes/{model}.{sae}.tsv"
    wildcard_constraints:
        model=trained_alone(),
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["saes"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(training_saes(own_sae_settings)),
        runtime=runtime(training_saes(own_sae_settings)),
    params:
        saes=own_sae_settings,
        code=code_digest("train_sae"),
    script:
        "../workflow/scripts/train_sae.py"


rule train_saes:
    """
    Train all SAEs of one model off one pass over its activations if saes.one_pass; otherwise as train_sae.

    Output: for each a SAELens folder and the training curve.
    """
    input:
        shards=sae_dump,
    output:
        weights=expand("results/{{run}}/saes/{{model}}/{sae}/sae_weights.safetensors", sae=graph.sae_names(config)),
        config=expand("results/{{run}}/saes/{{model}}/{sae}/cfg.json", sae=graph.sae_names(config)),
        curve=expand("results/{{run}}/saes/{{model}}/{sae}/training.csv", sae=graph.sae_names(config)),
        manifest=expand("results/{{run}}/saes/{{model}}/{sae}/manifest.json", sae=graph.sae_names(config)),
    log:
        "results/{run}/logs/saes/{model}.log",
    benchmark:
        "results/{run}/benchmarks/saes/{model}.tsv"
    wildcard_constraints:
        model=trained_together(),
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["saes"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(training_saes(all_sae_settings)),
        runtime=runtime(training_saes(all_sae_settings)),
    params:
        saes=all_sae_settings,
        code=code_digest("train_sae"),
    script:
        "../workflow/scripts/train_sae.py"


rule import_sae:
    """
    Take over an SAE that somebody else trained, from a folder or the hub, if it fits the model's activations on the probe.

    Output: the same SAE as a SAELens folder of this run.
    """
    input:
        files=sae_files,
        activations=probe_dump,
    output:
        weights="results/{run}/saes/{model}/{sae}/sae_weights.safetensors",
        config="results/{run}/saes/{model}/{sae}/cfg.json",
        manifest="results/{run}/saes/{model}/{sae}/manifest.json",
    log:
        "results/{run}/logs/saes/{model}.{sae}.log",
    benchmark:
        "results/{run}/benchmarks/saes/{model}.{sae}.tsv"
    wildcard_constraints:
        model=models_followed_by(graph.imported_saes(config)),
    localrule: needs_hub(sae_imports())  # compute nodes often have no network
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["saes"]
    resources:
        mem_mb=memory(reading_all),
        runtime=runtime(reading_all),
    params:
        source=import_settings,
        max_norm_ratio=max_norm_ratio,
        code=code_digest("import_sae"),
    script:
        "../workflow/scripts/import_sae.py"


rule evaluate_sae:
    """
    Measure an SAE on every corpus's validation split: fvu, l0, ce_recovered, dead_fraction, densities.

    Output: metrics.json in the SAE's folder.
    """
    input:
        model=own_model_files,
        weights="results/{run}/saes/{model}/{sae}/sae_weights.safetensors",
        config="results/{run}/saes/{model}/{sae}/cfg.json",
        validation=all_token_rows("validation"),
    output:
        metrics="results/{run}/saes/{model}/{sae}/metrics.json",
        manifest="results/{run}/saes/{model}/{sae}/metrics.manifest.json",
    log:
        "results/{run}/logs/saes/evaluate.{model}.{sae}.log",
    benchmark:
        "results/{run}/benchmarks/saes/evaluate.{model}.{sae}.tsv"
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["saes"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(measuring_sae),
        runtime=runtime(measuring_sae),
    params:
        hookpoint=config["activations"]["hookpoint"],
        batch_rows=config["batch_rows"],
        code=code_digest("evaluate_sae"),
    script:
        "../workflow/scripts/evaluate_sae.py"
