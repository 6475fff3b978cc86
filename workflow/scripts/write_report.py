"""Write the page of a run: tables, figures, examples, and what it all rests on."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from saelineage.correlations.matches import load_correlation
from saelineage.files.atomic import read_json, write_text
from saelineage.jobs.job import job_log
from saelineage.jobs.listing import collect
from saelineage.jobs.manifests import record_job
from saelineage.plan import comparisons
from saelineage.report.dashboards import packed
from saelineage.report.page import Results, Sources, render_page
from saelineage.report.tables import (
    ablation_table,
    absence_table,
    agreement_table,
    correlation_table,
    curve_table,
    density_table,
    edge_table,
    effect_table,
    flow_table,
    instrument_table,
    matching_table,
    merge_table,
    model_table,
    null_table,
    sae_table,
    score_table,
    source_table,
    sweep_table,
    timing_table,
    training_table,
)

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def write_report(results: Results, sources: Sources, path_to_page: str, table_folder: Path) -> None:
    """Write the page, and the table behind each figure.

    Args:
        results: everything the page shows.
        sources: what it is made from.
        path_to_page: where to.
        table_folder: where the tables go, as CSV.
    """
    for name, table in results.tables.items():
        write_text(table_folder / f"{name}.csv", table.to_csv(index=False))
    write_text(path_to_page, render_page(results, sources))


def read_tables(
    config: dict,
    summary: dict,
    model_metrics: list[str],
    sae_metrics: list[str],
    curves: list[str],
    sweeps: list[str],
    merges: list[str],
    correlations: dict[str, str],
    share_curves: str,
    ablations: list[str],
    effects: list[str],
    labels: list[str],
    explanations: list[str],
) -> dict[str, pd.DataFrame]:
    """Every table of the page, by name.

    Args:
        config: the config with its defaults.
        summary: `lineage/summary.json`.
        model_metrics: paths `models/{model}/metrics.json`.
        sae_metrics: paths `saes/{model}/{sae}/metrics.json`.
        curves: paths `saes/{model}/{sae}/training.csv`.
        sweeps: paths `sweeps/{sweep}.parquet`.
        merges: paths `models/{model}/merge.json`.
        correlations: path of the correlation behind each edge.
        share_curves: path `lineage/curves.parquet`.
        ablations: paths `lineage/ablations/{parent}__{child}.parquet`.
        effects: paths `lineage/ablations/{parent}__{child}.agreement.parquet`.
        labels: paths `labels/{model}/{sae}.parquet`.
        explanations: paths `labels/{model}/{sae}.explanations.parquet`.
    """
    metrics, plan = [read_json(path) for path in sae_metrics], comparisons.plan(config)
    return {
        "edges": edge_table(summary),
        "instruments": instrument_table(summary),
        "nulls": null_table(summary),
        "matchings": matching_table(summary),
        "curves": curve_table(pd.read_parquet(share_curves), summary),
        "agreements": agreement_table(summary),
        "sources": source_table(summary, plan["sources"]),
        "absences": absence_table(summary),
        "ablations": ablation_table({Path(path).stem: pd.read_parquet(path) for path in ablations}),
        "effects": effect_table({Path(path).name.split(".")[0]: pd.read_parquet(path) for path in effects}),
        "flows": flow_table(summary),
        "models": model_table(config, [read_json(path) for path in model_metrics]),
        "sweeps": sweep_table({Path(path).stem: pd.read_parquet(path) for path in sweeps}),
        "saes": sae_table(metrics),
        "densities": density_table(metrics),
        "training": training_table({Path(path).parts[-3:-1]: pd.read_csv(path) for path in curves}),
        "merges": merge_table({Path(path).parent.name: read_json(path) for path in merges}),
        "correlations": correlation_table(
            {edge: load_correlation(path).pearson.histogram for edge, path in correlations.items()}
        ),
        "scores": score_table(
            {sae: table[table["wins"]] for sae, table in read_by_sae(labels).items()}, read_by_sae(explanations)
        ),
    }


def read_by_sae(paths: list[str]) -> dict[tuple[str, str], pd.DataFrame]:
    """Tables `{model}/{sae}.parquet` or `{model}/{sae}.explanations.parquet` by (model, SAE)."""
    return {
        (Path(path).parent.name, Path(path).name.removesuffix(".parquet").removesuffix(".explanations")): (
            pd.read_parquet(path)
        )
        for path in paths
    }


def folder_in_run(path: str) -> str:
    """The folder of a file, from the run's own folder `results/{run}` on."""
    return Path(*Path(path).parent.parts[2:]).as_posix()


def read_sources(paths: list[str]) -> Sources:
    """The files that the page is made from: a template, style sheets and scripts."""
    texts = {Path(path).name: Path(path).read_text(encoding="utf-8") for path in paths}
    (template,) = (text for name, text in texts.items() if name.endswith(".jinja"))
    stylesheet = "\n".join(text for name, text in texts.items() if name.endswith(".css"))
    scripts = {Path(name).stem: text for name, text in texts.items() if name.endswith(".js")}
    return Sources(template, stylesheet, scripts)


def read_chunks(folders: list[Path]) -> dict[str, str]:
    """The data in chunks `{model}/{chunk}.js`, by the names they are loaded by."""
    found = {}
    for path in sorted(path for folder in folders for path in folder.glob("*.js")):
        _, name, _, data, _ = path.read_text(encoding="utf-8").split('"')
        found[name] = data
    return found


def read_benchmarks(folder: Path) -> pd.DataFrame:
    """Snakemake's benchmarks `{stage}/{job}.tsv`, one row per job."""
    found = [
        pd.read_csv(path, sep="\t", na_values=["-", "NA"]).assign(stage=path.parent.name)
        for path in sorted(folder.glob("*/*.tsv"))
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


if __name__ == "__main__":
    with job_log(snakemake.log[0], snakemake.input):
        summary = read_json(snakemake.input.summary)
        tables = read_tables(
            config=snakemake.params.config,
            summary=summary,
            model_metrics=snakemake.input.model_metrics,
            sae_metrics=snakemake.input.sae_metrics,
            curves=snakemake.input.curves,
            sweeps=snakemake.input.sweeps,
            merges=snakemake.input.merges,
            correlations=dict(zip(snakemake.params.edges, snakemake.input.correlations, strict=True)),
            share_curves=snakemake.input.share_curves,
            ablations=snakemake.input.ablations,
            effects=snakemake.input.effects,
            labels=snakemake.input.labels,
            explanations=snakemake.input.explanations,
        )
        page = Path(snakemake.output.page)
        # Benchmarks are no inputs, for Snakemake writes them after a job's outputs: what is there by now is listed.
        benchmarks = read_benchmarks(page.parent.parent / "benchmarks")
        jobs = collect(snakemake.config, running=snakemake.rule)
        write_text(snakemake.output.jobs, packed("jobs", jobs))
        folders = [Path(path.removesuffix(".manifest.json")) for path in snakemake.input.data]
        results = Results(
            config=snakemake.params.config,
            summary=summary,
            tables=tables,
            examples=read_json(snakemake.input.examples),
            timings=timing_table(benchmarks),
            manifests={folder_in_run(path): read_json(path) for path in snakemake.input.manifests},
            jobs=jobs,
            rulegraph_svg=Path(snakemake.input.rulegraph).read_text(encoding="utf-8"),
            chunks=read_chunks([*folders, page.parent / "data"]) if snakemake.config["report"]["single_file"] else {},
        )
        write_report(
            results=results,
            sources=read_sources(snakemake.input.sources),
            path_to_page=snakemake.output.page,
            table_folder=page.parent / "tables",
        )
        record_job(snakemake)
