# models: language models, however they are made, and how well they predict. Config: models, batch_rows, threads.models.


rule pretrain_model:
    """
    Train a Mistral model from random weights.

    Output: a Hugging Face folder. Checkpoints lie under results/{run}/checkpoints/ while it runs, for resuming.
    """
    input:
        tokens=training_tokens,
        tokenizer="results/{run}/tokenizer/tokenizer.json",
        tokenizer_config="results/{run}/tokenizer/tokenizer_config.json",
    output:
        config="results/{run}/models/{model}/config.json",
        weights="results/{run}/models/{model}/model.safetensors",
        tokenizer="results/{run}/models/{model}/tokenizer.json",
        tokenizer_config="results/{run}/models/{model}/tokenizer_config.json",
        manifest="results/{run}/models/{model}/manifest.json",
    log:
        "results/{run}/logs/models/{model}.log",
    benchmark:
        "results/{run}/benchmarks/models/{model}.tsv"
    wildcard_constraints:
        model=any_of(graph.models_of_kind(config, "pretrain")),
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["models"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(pretraining),
        runtime=runtime(pretraining),
    params:
        model=model_settings,
        n_ctx=config["tokens"]["n_ctx"],
        code=code_digest("pretrain_model"),
    script:
        "../workflow/scripts/pretrain_model.py"


rule finetune_model:
    """
    Train another model of this run on from its weights.

    Output: a Hugging Face folder. Checkpoints lie under results/{run}/checkpoints/ while it runs, for resuming.
    """
    input:
        tokens=training_tokens,
        parent=parent_files,
    output:
        config="results/{run}/models/{model}/config.json",
        weights="results/{run}/models/{model}/model.safetensors",
        tokenizer="results/{run}/models/{model}/tokenizer.json",
        tokenizer_config="results/{run}/models/{model}/tokenizer_config.json",
        manifest="results/{run}/models/{model}/manifest.json",
    log:
        "results/{run}/logs/models/{model}.log",
    benchmark:
        "results/{run}/benchmarks/models/{model}.tsv"
    wildcard_constraints:
        model=any_of(graph.models_of_kind(config, "finetune")),
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["models"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(finetuning),
        runtime=runtime(finetuning),
    params:
        model=model_settings,
        code=code_digest("finetune_model"),
    script:
        "../workflow/scripts/finetune_model.py"


rule merge_models:
    """
    Merge two models tensor by tensor.

    Output: a Hugging Face folder, and the cosine and branch (slerp, lerp, parent) of each tensor.
    """
    input:
        parents=merged_parent_files,
    output:
        config="results/{run}/models/{model}/config.json",
        weights="results/{run}/models/{model}/model.safetensors",
        tokenizer="results/{run}/models/{model}/tokenizer.json",
        tokenizer_config="results/{run}/models/{model}/tokenizer_config.json",
        merge="results/{run}/models/{model}/merge.json",
        manifest="results/{run}/models/{model}/manifest.json",
    log:
        "results/{run}/logs/models/{model}.log",
    benchmark:
        "results/{run}/benchmarks/models/{model}.tsv"
    wildcard_constraints:
        model=any_of(graph.models_of_kind(config, "merge")),
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(merging),
        runtime=runtime(merging),
    params:
        model=model_settings,
        code=code_digest("merge_models"),
    script:
        "../workflow/scripts/merge_models.py"


rule import_model:
    """
    Take over a model from the hub or a folder.

    Output: the same model as a Hugging Face folder of this run, in safetensors.
    """
    input:
        files=imported_files,
        tokenizer="results/{run}/tokenizer/tokenizer.json",
        tokenizer_config="results/{run}/tokenizer/tokenizer_config.json",
    output:
        config="results/{run}/models/{model}/config.json",
        weights="results/{run}/models/{model}/model.safetensors",
        tokenizer="results/{run}/models/{model}/tokenizer.json",
        tokenizer_config="results/{run}/models/{model}/tokenizer_config.json",
        manifest="results/{run}/models/{model}/manifest.json",
    log:
        "results/{run}/logs/models/{model}.log",
    benchmark:
        "results/{run}/benchmarks/models/{model}.tsv"
    wildcard_constraints:
        model=any_of(graph.models_of_kind(config, "hub", "path")),
    localrule: needs_hub(config["models"].values())  # compute nodes often have no network
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(merging),
        runtime=runtime(merging),
    params:
        model=model_settings,
        code=code_digest("import_model"),
    script:
        "../workflow/scripts/import_model.py"


rule reinitialise_model:
    """
    Make a model like another one, with fresh random weights: a null.

    Output: a Hugging Face folder.
    """
    input:
        like=like_files,
    output:
        config="results/{run}/models/{model}/config.json",
        weights="results/{run}/models/{model}/model.safetensors",
        tokenizer="results/{run}/models/{model}/tokenizer.json",
        tokenizer_config="results/{run}/models/{model}/tokenizer_config.json",
        manifest="results/{run}/models/{model}/manifest.json",
    log:
        "results/{run}/logs/models/{model}.log",
    benchmark:
        "results/{run}/benchmarks/models/{model}.tsv"
    wildcard_constraints:
        model=any_of(graph.models_of_kind(config, "reinitialise")),
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(merging),
        runtime=runtime(merging),
    params:
        seed=lambda wildcards: model_settings(wildcards)["seed"],
        code=code_digest("reinitialise_model"),
    script:
        "../workflow/scripts/reinitialise_model.py"


rule evaluate_model:
    """
    Measure loss and next-token accuracy on every corpus's validation split, beside a unigram model's loss.

    Output: metrics.json in the model's folder.
    """
    input:
        model=own_model_files,
        train=all_token_rows("train"),
        validation=all_token_rows("validation"),
    output:
        metrics="results/{run}/models/{model}/metrics.json",
        manifest="results/{run}/models/{model}/metrics.manifest.json",
    log:
        "results/{run}/logs/models/evaluate.{model}.log",
    benchmark:
        "results/{run}/benchmarks/models/evaluate.{model}.tsv"
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["activations"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(measuring_model),
        runtime=runtime(measuring_model),
    params:
        batch_rows=config["batch_rows"],
        code=code_digest("evaluate_model"),
    script:
        "../workflow/scripts/evaluate_model.py"
