"""saelineage: which features of a language model emerge, persist and disappear when it is fine-tuned and merged?"""

from snakemake.utils import min_version

min_version("9.27")


include: "rules/common.smk"


# The default is read only when no other config is given: Snakemake would merge the two lineages into one.
if not workflow.config_settings.configfiles:
    require_yaml("config/config.yaml")

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


resource_scopes:
    gpu="local",


config = checked_config(config)
enter_run()


onstart:
    hold_run()


wildcard_constraints:
    run=config["run"],
    corpus=any_of(config["corpora"]),
    split="train|validation|probe",
    model=any_of(config["models"]),
    sae=any_of(dict.fromkeys(sae.sae for sae in comparisons.all_saes(config))),
    a=any_of(map(str, comparisons.all_saes(config))),
    b=any_of(dict.fromkeys(str(b) for b in [*comparisons.all_saes(config), *compared_saes()])),
    shard="[0-9]{5}-of-[0-9]{5}",
    sweep=any_of(config["sweeps"]),


include: "rules/corpora.smk"
include: "rules/tokens.smk"
include: "rules/models.smk"
include: "rules/activations.smk"
include: "rules/saes.smk"
include: "rules/features.smk"
include: "rules/correlations.smk"
include: "rules/lineage.smk"
include: "rules/labels.smk"
include: "rules/sweeps.smk"
include: "rules/report.smk"
include: "rules/checks.smk"


rule all:
    default_target: True
    input:
        f"results/{config['run']}/report/index.html",
        f"results/{config['run']}/lineage/summary.json",
        expand("results/{run}/sweeps/{s}.parquet", run=config["run"], s=config["sweeps"]),
        expand("results/{run}/models/{s}/metrics.json", run=config["run"], s=config["models"]),
        expand(
            "results/{run}/saes/{s.model}/{s.sae}/metrics.json", run=config["run"], s=comparisons.measured_saes(config)
        ),
        manifests_of_whole_run,
