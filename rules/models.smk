# models: language models, however they are made; rules/saes.smk measures them together with their SAEs. Config: models, batch_rows, threads.models.


rule pretrain_model:
    """
    Train a Mistral model from random weights.

    Output: a Hugging Face folder. Checkpoints lie under results/{run}/checkpoints/ while it runs, for resuming.
    """
    input:
        tokens=run.paths.training_rows,
        tokenizer=run.paths.tokenizer,
        tokenizer_config=run.paths.tokenizer_config,
    output:
        **run.paths.model_output(),
    log:
        run.paths.log("models/{model}"),
    wildcard_constraints:
        model=any_of(run.graph.of_kind("pretrain")),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["models"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.pretraining),
        runtime=runtime(run.needs.pretraining),
    params:
        model=run.params.model,
        n_ctx=run.config["tokens"]["n_ctx"],
        code=code_digest("pretrain_model"),
    script:
        "../workflow/scripts/pretrain_model.py"


rule finetune_model:
    """
    Train another model of this run on from its weights, all of them or those that are not frozen.

    Output: a Hugging Face folder. Checkpoints lie under results/{run}/checkpoints/ while it runs, for resuming.
    """
    input:
        tokens=run.paths.training_rows,
        parent=run.paths.parents,
    output:
        **run.paths.model_output(),
    log:
        run.paths.log("models/{model}"),
    wildcard_constraints:
        model=any_of(run.graph.finetuned(with_lora=False)),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["models"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.finetuning),
        runtime=runtime(run.needs.finetuning),
    params:
        model=run.params.model,
        code=code_digest("finetune_model"),
    script:
        "../workflow/scripts/finetune_model.py"


rule finetune_in_steps:
    """
    Train another model of this run on from its weights, all of them, and keep it at some steps on the way.

    Output: a Hugging Face folder, and one archive of the models at the steps, because the jobs of a rule have equally
    many outputs; keep_step takes each out. Checkpoints as of finetune_model.
    """
    input:
        tokens=run.paths.training_rows,
        parent=run.paths.parents,
    output:
        **run.paths.model_output(),
        steps=temp(run.paths.kept_steps),
        steps_manifest=temp(run.paths.manifest(run.paths.kept_steps)),
    log:
        run.paths.log("models/{model}"),
    wildcard_constraints:
        model=any_of(run.graph.finetuned(with_lora=False, with_steps=True)),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["models"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.finetuning),
        runtime=runtime(run.needs.finetuning),
    params:
        model=run.params.model,
        code=code_digest("finetune_model"),
    script:
        "../workflow/scripts/finetune_model.py"


rule keep_step:
    """
    Take a model that was kept at a step of a training out of that training's archive.

    Output: a Hugging Face folder.
    """
    input:
        steps=run.paths.training_kept_from,
    output:
        **run.paths.model_output(),
    log:
        run.paths.log("models/{model}"),
    wildcard_constraints:
        model=any_of(run.graph.of_kind("kept")),
    conda:
        "../envs/analysis.yaml"
    params:
        step=run.params.kept_step,
        code=code_digest("keep_step"),
    script:
        "../workflow/scripts/keep_step.py"


rule train_adapter:
    """
    Fine-tune another model of this run by LoRA: train an adapter beside its weights, and merge it into them.

    Output: a Hugging Face folder, and the adapter as peft saves it. Checkpoints as of finetune_model.
    """
    input:
        tokens=run.paths.training_rows,
        parent=run.paths.parents,
    output:
        **run.paths.model_output(),
        adapter_config=run.paths.adapter_config,
        adapter_weights=run.paths.adapter_weights,
    log:
        run.paths.log("models/{model}"),
    wildcard_constraints:
        model=any_of(run.graph.finetuned(with_lora=True)),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["models"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.training_adapter),
        runtime=runtime(run.needs.training_adapter),
    params:
        model=run.params.model,
        base=run.params.adapter_base,
        code=code_digest("train_adapter"),
    script:
        "../workflow/scripts/train_adapter.py"


rule choose_merge:
    """
    Choose the settings of a merge that depend on what merged models do: the models of a greedy soup, or a divisor.

    Output: the settings, and what they were chosen by.
    """
    input:
        parents=run.paths.parents,
        base=run.paths.merge_base,
        validation=run.paths.chosen_on,
    output:
        choice=run.paths.choice,
        manifest=run.paths.manifest(run.paths.choice),
    log:
        run.paths.log("models/{model}.choice"),
    wildcard_constraints:
        model=any_of(run.graph.of_kind("merge")),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["activations"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(run.needs.choosing),
        runtime=runtime(run.needs.choosing),
    params:
        merge=run.params.merge,
        corpora=run.params.chosen_on,
        batch_rows=run.config["batch_rows"],
        unshared=run.config["tokens"]["unshared"],
        model_dtype=run.config["model_dtype"],
        code=code_digest("choose_merge"),
    script:
        "../workflow/scripts/choose_merge.py"


rule merge_models:
    """
    Merge models tensor by tensor.

    Output: a Hugging Face folder, and how each tensor was merged.
    """
    input:
        parents=run.paths.parents,
        base=run.paths.merge_base,
        sweeps=run.paths.sweeps_behind,
        choice=run.paths.merge_choice,
    output:
        **run.paths.model_output(),
        merge=run.paths.merge,
    log:
        run.paths.log("models/{model}"),
    wildcard_constraints:
        model=any_of(run.graph.of_kind("merge")),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["activations"]
    resources:
        mem_mb=memory(run.needs.merging),
        runtime=runtime(run.needs.merging),
    params:
        merge=run.params.merge,
        code=code_digest("merge_models"),
    script:
        "../workflow/scripts/merge_models.py"


rule apply_adapter:
    """
    Merge an adapter from the hub or a folder into the weights of another model of this run.

    Output: a Hugging Face folder.
    """
    input:
        files=run.paths.imported_model,
        parent=run.paths.parents,
    output:
        **run.paths.model_output(),
    log:
        run.paths.log("models/{model}"),
    wildcard_constraints:
        model=any_of(run.graph.of_kind("adapter")),
    localrule: run.fetches_adapters()  # compute nodes often have no network
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(run.needs.adapting),
        runtime=runtime(run.needs.adapting),
    params:
        model=run.params.model,
        parent_names=run.params.parent_names,
        code=code_digest("apply_adapter"),
    script:
        "../workflow/scripts/apply_adapter.py"


rule import_model:
    """
    Take over a model from the hub or a folder.

    Output: the same model as a Hugging Face folder of this run, in safetensors.
    """
    input:
        files=run.paths.imported_model,
        tokenizer=run.paths.tokenizer,
        tokenizer_config=run.paths.tokenizer_config,
    output:
        **run.paths.model_output(),
    log:
        run.paths.log("models/{model}"),
    wildcard_constraints:
        model=any_of(run.graph.of_kind("hub", "path")),
    localrule: run.fetches_models()  # compute nodes often have no network
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["activations"]
    resources:
        mem_mb=memory(run.needs.merging),
        runtime=runtime(run.needs.merging),
    params:
        model=run.params.model,
        n_ctx=run.config["tokens"]["n_ctx"],
        unshared=run.config["tokens"]["unshared"],
        has_conversations=bool(run.conversations),
        code=code_digest("import_model"),
    script:
        "../workflow/scripts/import_model.py"


rule reinitialise_model:
    """
    Make a model like another one, with fresh random weights: a random control.

    Output: a Hugging Face folder.
    """
    input:
        like=run.paths.parents,
    output:
        **run.paths.model_output(),
    log:
        run.paths.log("models/{model}"),
    wildcard_constraints:
        model=any_of(run.graph.of_kind("reinitialise")),
    conda:
        "../envs/train.yaml"
    threads: run.config["threads"]["activations"]
    resources:
        mem_mb=memory(run.needs.merging),
        runtime=runtime(run.needs.merging),
    params:
        seed=run.params.model_seed,
        code=code_digest("reinitialise_model"),
    script:
        "../workflow/scripts/reinitialise_model.py"
