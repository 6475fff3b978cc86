# corpora: documents from their sources, in three splits. Config: corpora, corpora_dir, splits.


rule prepare_corpus:
    """
    Read a corpus, drop exact duplicates, deal documents to splits by their hash.

    Input: the user's own files, for a `files` corpus. Output: a parquet file per split, counts, a manifest.
    """
    input:
        files=corpus_files,
    output:
        train="results/{run}/corpora/{corpus}/train.parquet",
        validation="results/{run}/corpora/{corpus}/validation.parquet",
        probe="results/{run}/corpora/{corpus}/probe.parquet",
        counts="results/{run}/corpora/{corpus}/counts.json",
        manifest="results/{run}/corpora/{corpus}/manifest.json",
    log:
        "results/{run}/logs/corpora/{corpus}.log",
    benchmark:
        "results/{run}/benchmarks/corpora/{corpus}.tsv"
    localrule: needs_hub(config["corpora"].values())  # compute nodes often have no network
    conda:
        "../envs/analysis.yaml"
    params:
        corpus=corpus_settings,
        splits=config["splits"],
        code=code_digest("prepare_corpus"),
    script:
        "../workflow/scripts/prepare_corpus.py"
