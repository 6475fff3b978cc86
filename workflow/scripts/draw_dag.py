"""Draw the graph of jobs and the graph of rules, as Snakemake plans them."""

from typing import TYPE_CHECKING

from saelineage.files.atomic import write_text
from saelineage.jobs.job import job
from saelineage.jobs.listing import planned
from saelineage.report.drawing import jobs_svg, rules_svg

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def draw_dag(config: dict, path_to_dag: str, path_to_rulegraph: str) -> None:
    """Write both pictures.

    Args:
        config: the config with its defaults; Snakemake plans the same run with it.
        path_to_dag: output path of the picture of all jobs.
        path_to_rulegraph: output path of the picture of all rules.
    """
    jobs = planned(config)
    write_text(path_to_dag, jobs_svg(jobs))
    write_text(path_to_rulegraph, rules_svg(jobs))


if __name__ == "__main__":
    with job(snakemake):
        # The config is not a param, because only changes to the graph (params.shape) make the pictures stale.
        draw_dag(snakemake.config, snakemake.output.dag, snakemake.output.rulegraph)
