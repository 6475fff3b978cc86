# features: sparse latents over the probe. Config: threads.features.


rule encode_features:
    """
    Encode one shard of the probe, all corpora side by side, with one SAE.

    Output: a shard of sparse rows per corpus.
    """
    input:
        activations=expand(
            "results/{{run}}/activations/{{model}}/{corpus}/probe/shard-{{shard}}.safetensors",
            corpus=config["corpora"],
        ),
        weights="results/{run}/saes/{model}/{sae}/sae_weights.safetensors",
        config="results/{run}/saes/{model}/{sae}/cfg.json",
    output:
        shards=expand(
            "results/{{run}}/features/{{model}}/{{sae}}/{corpus}/shard-{{shard}}.safetensors",
            corpus=config["corpora"],
        ),
        manifests=expand(
            "results/{{run}}/features/{{model}}/{{sae}}/{corpus}/shard-{{shard}}.manifest.json",
            corpus=config["corpora"],
        ),
    log:
        "results/{run}/logs/features/{model}.{sae}.{shard}.log",
    benchmark:
        "results/{run}/benchmarks/features/{model}.{sae}.{shard}.tsv"
    conda:
        "../envs/train.yaml"
    threads: config["threads"]["features"]
    params:
        code=code_digest("encode_features"),
    script:
        "../workflow/scripts/encode_features.py"
