# checks: is everything that a run wrote still what its manifests say, and which jobs would run again?


rule verify:
    """
    Compare every file of the run with its manifest; run as `snakemake --cores 2 verify`.
    """
    log:
        f"{run.paths.folder}/logs/checks/verify.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    threads: 16  # or as many as --cores gives
    params:
        folder=run.paths.folder,
        kept=run.manifests(),
    script:
        "../workflow/scripts/verify_run.py"


rule jobs:
    """
    Show every job of the run, whether it is up to date and why not; run as `snakemake --cores 1 jobs`.

    Output: results/{run}/report/jobs.html, not declared, so that it is written anew each time and makes nothing stale.
    While a run is going on, add `--nolock`.
    """
    log:
        f"{run.paths.folder}/logs/checks/jobs.log",
    localrule: True  # it starts Snakemake, and takes seconds
    conda:
        "../envs/report.yaml"
    params:
        folder=run.paths.folder,
    script:
        "../workflow/scripts/show_jobs.py"
