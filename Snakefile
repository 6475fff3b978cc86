"""saelineage: which features of a language model emerge, persist and disappear when it is fine-tuned and merged?"""

from snakemake.utils import min_version, update_config

min_version("9.27")


include: "rules/common.smk"


# The default is read only when no other config is given: Snakemake would merge the two lineages into one.
if not workflow.config_settings.configfiles:
    or_end(read_yaml, session.default_config(workflow.basedir))

    configfile: session.default_config(workflow.basedir)


report: "workflow/report/workflow.rst"


resource_scopes:
    gpu="local",


schema = os.path.join(workflow.basedir, "config", "config.schema.yaml")
update_config(config, or_end(read_entries, workflow.config_settings.config_args or []))
config, assumptions = or_end(expand, config)  # of config/compare.yaml; an ordinary config stays as it is
run = or_end(load_plan, config, workflow.configfiles, schema)
config = run.config  # what scripts see
or_end(session.enter, workflow, run, assumptions)


onstart:
    if launching := or_end(session.begin, workflow, run):
        shell.prefix(launching)


onsuccess:
    session.succeed(workflow, run)


wildcard_constraints:
    corpus=any_of(run.paths.corpora),
    split="train|validation|probe",
    hookpoint=any_of(run.hookpoints),
    model=any_of(run.graph.models),
    sae=any_of(sae.sae for sae in run.comparisons.saes),
    a=any_of(run.comparisons.saes),
    b=any_of(dict.fromkeys([*run.comparisons.saes, *run.comparisons.compared_saes])),
    shard="[0-9]{5}-of-[0-9]{5}",
    sweep=any_of(run.config["sweeps"]),
    part=run.part_names(),
    group=any_of(run.crosscoders.groups),
    seed=any_of(dict.fromkeys([*run.crosscoders.seeds, *run.difference_saes.seeds])),


include: "rules/corpora.smk"
include: "rules/tokens.smk"
include: "rules/models.smk"
include: "rules/activations.smk"
include: "rules/saes.smk"
include: "rules/crosscoders.smk"
include: "rules/difference_saes.smk"
include: "rules/features.smk"
include: "rules/correlations.smk"
include: "rules/lineage.smk"
include: "rules/labels.smk"
include: "rules/behaviour.smk"
include: "rules/sweeps.smk"
include: "rules/report.smk"
include: "rules/checks.smk"


or_end(targets.require_makeable, workflow, run)


rule all:
    default_target: True
    input:
        run.everything(),
        lambda wildcards: session.manifests(workflow, run),
