# tokens: the tokenizer, and rows of token ids. Config: tokenizer, tokens.


rule make_tokenizer:
    """
    Train the run's tokenizer on train splits, or fetch it.

    Output: a folder that AutoTokenizer.from_pretrained loads.
    """
    input:
        corpora=run.paths.tokenizer_corpora(),
        files=run.paths.tokenizer_files(),
    output:
        tokenizer=run.paths.tokenizer,
        config=run.paths.tokenizer_config,
        manifest=run.paths.folder_manifest(run.paths.tokenizer),
    log:
        run.paths.log("tokens/tokenizer"),
    localrule: run.fetches_tokenizer()  # compute nodes often have no network
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=memory(run.needs.reading_all),
        runtime=runtime(run.needs.reading_all),
    params:
        tokenizer=run.config["tokenizer"],
        n_ctx=run.config["tokens"]["n_ctx"],
        code=code_digest("make_tokenizer"),
    script:
        "../workflow/scripts/make_tokenizer.py"


rule tokenize_split:
    """
    Cut one split of a corpus into rows of token ids.

    Output: a memory-mappable array [n_rows, n_ctx], and a sidecar that says how it was made.
    """
    input:
        documents=run.paths.documents,
        tokenizer=run.paths.tokenizer,
        tokenizer_config=run.paths.tokenizer_config,
    output:
        rows=run.paths.token_rows,
        sidecar=run.paths.token_sidecar,
        manifest=run.paths.manifest(run.paths.token_rows),
    log:
        run.paths.log("tokens/{corpus}.{split}"),
    wildcard_constraints:
        corpus=any_of(corpus for corpus in run.paths.corpora if corpus not in run.conversations),
    conda:
        "../envs/train.yaml"
    params:
        n_ctx=run.config["tokens"]["n_ctx"],
        max_tokens=run.params.max_tokens,
        max_document_share=run.params.max_document_share,
        special=run.config["tokens"]["special"],
        code=code_digest("tokenize_split"),
    script:
        "../workflow/scripts/tokenize_split.py"


use rule tokenize_split as tokenize_conversations with:
    output:
        rows=run.paths.token_rows,
        classes=run.paths.token_classes,
        sidecar=run.paths.token_sidecar,
        manifest=run.paths.manifest(run.paths.token_rows),
    wildcard_constraints:
        corpus=any_of(run.conversations),
