# activations: what flows through the hookpoint. Config: activations, batch_rows, threads.activations.


rule dump_activations:
    """
    Read one shard of the train splits that SAEs are trained on.

    Output: a safetensors shard per corpus; BOS and EOS are left out.
    """
    input:
        model=own_model_files,
        tokens=sae_token_rows,
    output:
        shards=expand(
            "results/{{run}}/activations/{{model}}/{corpus}/train/shard-{{shard}}.safetensors",
            corpus=sae_corpora(),
        ),
        manifests=expand(
            "results/{{run}}/activations/{{model}}/{corpus}/train/shard-{{shard}}.manifest.json",
            corpus=sae_corpora(),
        ),
    log:
        "results/{run}/logs/activations/{model}.train.{shard}.log",
    benchmark:
        "results/{run}/benchmarks/activations/{model}.train.{shard}.tsv"
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["activations"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(dumping(config["activations"]["n_shards"], config["activations"]["max_tokens"])),
        runtime=runtime(dumping(config["activations"]["n_shards"], config["activations"]["max_tokens"])),
    params:
        hookpoint=config["activations"]["hookpoint"],
        dtype=config["activations"]["dtype"],
        max_tokens=config["activations"]["max_tokens"],
        batch_rows=config["batch_rows"],
        code=code_digest("dump_activations"),
    script:
        "../workflow/scripts/dump_activations.py"


rule dump_probe:
    """
    Read one shard of the probe, all corpora side by side, for comparing features.

    Output: a safetensors shard per corpus; BOS and EOS are left out.
    """
    input:
        model=own_model_files,
        tokens=all_token_rows("probe"),
    output:
        shards=expand(
            "results/{{run}}/activations/{{model}}/{corpus}/probe/shard-{{shard}}.safetensors",
            corpus=config["corpora"],
        ),
        manifests=expand(
            "results/{{run}}/activations/{{model}}/{corpus}/probe/shard-{{shard}}.manifest.json",
            corpus=config["corpora"],
        ),
    log:
        "results/{run}/logs/activations/{model}.probe.{shard}.log",
    benchmark:
        "results/{run}/benchmarks/activations/{model}.probe.{shard}.tsv"
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["activations"]
    resources:
        gpu=visible_gpus(),
        mem_mb=memory(dumping(config["activations"]["n_probe_shards"], None)),
        runtime=runtime(dumping(config["activations"]["n_probe_shards"], None)),
    params:
        hookpoint=config["activations"]["hookpoint"],
        dtype=config["activations"]["dtype"],
        max_tokens=None,
        batch_rows=config["batch_rows"],
        code=code_digest("dump_activations"),
    script:
        "../workflow/scripts/dump_activations.py"
