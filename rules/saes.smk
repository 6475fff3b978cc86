# saes: sparse autoencoders on the dumps, and how good they are. Config: saes, threads.saes.


rule train_sae:
    """
    Train one SAE on one model's activations.

    Output: a SAELens folder and the training curve.
    """
    input:
        shards=sae_dump,
    output:
        weights="results/{run}/saes/{model}/{sae}/sae_weights.safetensors",
        config="results/{run}/saes/{model}/{sae}/cfg.json",
        curve="results/{run}/saes/{model}/{sae}/training.csv",
        manifest="results/{run}/saes/{model}/{sae}/manifest.json",
    log:
        "results/{run}/logs/saes/{model}.{sae}.log",
    benchmark:
        "results/{run}/benchmarks/saes/{model}.{sae}.tsv"
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["saes"]
    resources:
        gpu=visible_gpus(),
    params:
        sae=sae_settings,
        code=code_digest("train_sae"),
    script:
        "../workflow/scripts/train_sae.py"


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
    params:
        hookpoint=config["activations"]["hookpoint"],
        batch_rows=config["batch_rows"],
        code=code_digest("evaluate_sae"),
    script:
        "../workflow/scripts/evaluate_sae.py"
