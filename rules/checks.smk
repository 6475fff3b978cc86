# checks: is everything that a run wrote still what its manifests say?


rule verify:
    """
    Compare every file of the run with its manifest; run as `snakemake --cores 1 verify`.
    """
    log:
        f"results/{config['run']}/logs/checks/verify.log",
    conda:
        "../envs/analysis.yaml"
    params:
        folder=f"results/{config['run']}",
    script:
        "../workflow/scripts/verify_run.py"
