# corpora: documents from their sources, in three splits. Config: corpora, corpora_dir, splits.


rule prepare_corpus:
    """
    Read a corpus, drop exact duplicates, and assign documents to splits by their hash.

    Input: the user's own files, for a `files` corpus. Output: a parquet file per split, counts, a manifest.
    """
    input:
        files=run.paths.corpus_files,
    output:
        train=run.paths.fix(run.paths.documents, split="train"),
        validation=run.paths.fix(run.paths.documents, split="validation"),
        probe=run.paths.fix(run.paths.documents, split="probe"),
        counts=run.paths.corpus_counts,
        manifest=run.paths.folder_manifest(run.paths.corpus_counts),
    log:
        run.paths.log("corpora/{corpus}"),
    localrule: run.fetches_corpora()  # compute nodes often have no network
    conda:
        "../envs/analysis.yaml"
    params:
        corpus=run.params.corpus,
        splits=run.config["splits"],
        code=code_digest("prepare_corpus"),
    script:
        "../workflow/scripts/prepare_corpus.py"
