# tokens: the tokenizer, and rows of token ids. Config: tokenizer, tokens.


rule make_tokenizer:
    """
    Train the run's tokenizer on train splits, or fetch it.

    Output: a folder that AutoTokenizer.from_pretrained loads.
    """
    input:
        corpora=tokenizer_corpora,
        files=tokenizer_files,
    output:
        tokenizer="results/{run}/tokenizer/tokenizer.json",
        config="results/{run}/tokenizer/tokenizer_config.json",
        manifest="results/{run}/tokenizer/manifest.json",
    log:
        "results/{run}/logs/tokens/tokenizer.log",
    benchmark:
        "results/{run}/benchmarks/tokens/tokenizer.tsv"
    localrule: needs_hub([config["tokenizer"]])  # compute nodes often have no network
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(reading_all),
        runtime=runtime(reading_all),
    params:
        tokenizer=config["tokenizer"],
        n_ctx=config["tokens"]["n_ctx"],
        code=code_digest("make_tokenizer"),
    script:
        "../workflow/scripts/make_tokenizer.py"


rule tokenize_split:
    """
    Cut one split of a corpus into rows of token ids.

    Output: a memory-mappable array [n_rows, n_ctx], and what it was made with.
    """
    input:
        documents="results/{run}/corpora/{corpus}/{split}.parquet",
        tokenizer="results/{run}/tokenizer/tokenizer.json",
        tokenizer_config="results/{run}/tokenizer/tokenizer_config.json",
    output:
        rows="results/{run}/tokens/{corpus}/{split}.npy",
        sidecar="results/{run}/tokens/{corpus}/{split}.json",
        manifest="results/{run}/tokens/{corpus}/{split}.manifest.json",
    log:
        "results/{run}/logs/tokens/{corpus}.{split}.log",
    benchmark:
        "results/{run}/benchmarks/tokens/{corpus}.{split}.tsv"
    conda:
        "../envs/train.yaml"
    params:
        n_ctx=config["tokens"]["n_ctx"],
        max_tokens=most_tokens,
        code=code_digest("tokenize_split"),
    script:
        "../workflow/scripts/tokenize_split.py"
