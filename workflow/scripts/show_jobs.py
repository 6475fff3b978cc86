"""Write a page with every job of the run: its state, the reasons for it, and the files it left behind."""

import logging
from collections import Counter
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from saelineage.files.atomic import write_text
from saelineage.jobs.code_digest import SCRIPTS
from saelineage.jobs.job import job
from saelineage.jobs.listing import collect
from saelineage.report.drawing import BADGES, jobs_svg

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)
TEMPLATES = SCRIPTS.parent / "report"


def show_jobs(run: str, jobs: list[dict], path_to_page: str) -> dict[str, int]:
    """Write the page, a single file that loads nothing else.

    Args:
        run: the run's name.
        jobs: as `saelineage.jobs.listing.collect` returns them.
        path_to_page: output path.

    Returns:
        The number of jobs in each state that occurs.
    """
    n_jobs = Counter(job["state"] for job in jobs)
    counts = {state: n_jobs[state] for state in BADGES if n_jobs[state]}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_template("jobs.html.jinja")).render(
        run=run,
        jobs=jobs,
        counts=counts,
        picture=Markup(jobs_svg(jobs)),  # noqa: S704 - escaped by drawing.py
        stylesheet=Markup(_template("page.css") + _template("jobs.css")),  # noqa: S704 - this project's file
        elements=Markup(_template("elements.js")),  # noqa: S704 - this project's file
        script=Markup(_template("jobs.js")),  # noqa: S704 - this project's file
    )
    write_text(path_to_page, page)
    return counts


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    with job(snakemake):
        page = f"{snakemake.params.folder}/report/jobs.html"
        counts = show_jobs(snakemake.config["run"], collect(snakemake.config), page)
        summary = ", ".join(f"{count} {state}" for state, count in counts.items())
        logger.info("%s: %s", page, summary)
        print(f"{page}: {summary}")
