"""Write the page of a run and the tables behind it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from saelineage.correlations.matches import Correlation, load_correlation
from saelineage.files.atomic import read_json, write_text
from saelineage.jobs.job import job
from saelineage.jobs.listing import collect
from saelineage.models.same_weights import same_weights
from saelineage.models.vocabulary_notes import vocabulary_notes
from saelineage.report.answer_text import answer_text
from saelineage.report.page import Results, Sources, page_warnings, render_making, render_page
from saelineage.report.sentences import moved
from saelineage.report.tables import TableInputs, make_tables, timing_table

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def write_report(
    results: Results, sources: Sources, path_to_page: str, table_folder: Path, path_to_answer: str
) -> None:
    """Write the page, its tables, and the answer as text.

    Args:
        results: everything the page shows.
        sources: the files that the page is made from.
        path_to_page: output path.
        table_folder: output folder of the tables, as CSV.
        path_to_answer: output path.
    """
    moved_by = moved(results.tables["drift"])
    write_text(path_to_answer, answer_text(results.summary, results.examples, moved_by, page_warnings(results)))
    for name, table in results.tables.items():
        write_text(table_folder / f"{name}.csv", table.to_csv(index=False))
    write_text(path_to_page, render_page(results, sources))


def read_inputs(
    described: Mapping,
    summary: dict,
    summaries: Mapping[str, dict],
    model_metrics: Iterable[str],
    sae_metrics: Iterable[str],
    curves: Mapping[tuple[str, str], str],
    sweeps: Mapping[str, str],
    followed: Mapping[str, str],
    exclusivity: Mapping[tuple[str, str], str],
    latent_verdicts: Mapping[tuple[str, str], str],
    crosscoder_matches: Mapping[tuple[str, str], str],
    exclusivity_curves: Mapping[tuple[str, str], str],
    decoder_norms: Mapping[tuple[str, str], str],
    differences: Sequence[str],
    merges: Mapping[str, str],
    correlations: Mapping[str, Correlation],
    share_curves: str,
    crosscoder_ablations: Mapping[tuple[str, str], str],
    ablations: Mapping[str, str],
    effects: Mapping[str, str],
    drift: Sequence[str],
    matrix_changes: Iterable[str],
    importance: Mapping[str, str],
    importance_agreement: Sequence[str],
    passages: Mapping[str, str],
    passage_features: Mapping[str, str],
    acts: Mapping[str, str],
    act_summaries: Mapping[str, str],
    patches: Mapping[str, str],
    samples: Mapping[str, str],
    enriched: Mapping[str, str],
    labels: Mapping[tuple[str, str], str],
    explanations: Mapping[tuple[str, str], str],
    verdicts: Mapping[str, str],
    features: Sequence[str],
    line_verdicts: Mapping[str, str],
    token_rows: Iterable[str],
) -> TableInputs:
    """Read everything that tables are made from.

    Args:
        described: `Contents.described`.
        summary: `lineage/{hookpoint}/summary.json`.
        summaries: that of every hookpoint, by name.
        model_metrics: paths `models/{model}/metrics.json`.
        sae_metrics: paths `saes/{hookpoint}/{model}/metrics.json`.
        curves: paths `saes/{hookpoint}/{model}/{sae}/training.csv` by (model, SAE).
        sweeps: paths `sweeps/{sweep}.parquet` by sweep.
        followed: paths `lineage/{hookpoint}/sweeps/{sweep}.curves.parquet` by sweep.
        exclusivity, exclusivity_curves, decoder_norms: paths `{group}.{seed}.shares.parquet`, `.curves.parquet` and
            `.norms.parquet` in `lineage/{hookpoint}/crosscoders/` by (group, seed).
        latent_verdicts, crosscoder_matches: paths `{group}.{seed}.parquet` and `.matches.parquet` there.
        crosscoder_ablations: paths `lineage/{hookpoint}/crosscoders/{group}.{seed}.ablations.parquet`, likewise.
        differences: paths `lineage/{hookpoint}/differences/{parent}__{child}.{seed}.summary.parquet`.
        merges: paths `models/{model}/merge.json` by model.
        correlations: the correlation behind each edge, by the edge's name.
        share_curves: path `lineage/{hookpoint}/curves.parquet`.
        ablations: paths `lineage/{hookpoint}/ablations/{edge}.parquet` by the edge's name.
        effects: paths `lineage/{hookpoint}/ablations/{edge}.agreement.parquet` by the edge's name.
        drift: path `lineage/{hookpoint}/drift.json`; none in runs without edges.
        matrix_changes: paths `models/{model}/changes.json`.
        importance: paths `lineage/{hookpoint}/importance/{edge}.parquet` by the edge's name.
        importance_agreement: path `lineage/{hookpoint}/importance/agreement.parquet`; none in runs without edges.
        passages, passage_features: paths `lineage/{hookpoint}/passages/{edge}.parquet` and `{edge}.features.parquet` by
            the edge's name.
        acts, act_summaries, patches: paths `behaviour/{hookpoint}/{parent}__{child}.parquet`, `.summary.parquet` and
            `.patches.parquet` by the edge's name.
        samples, enriched: paths `.samples.parquet` and `.enriched.parquet` there, likewise.
        labels: paths `labels/{hookpoint}/{model}/{sae}.parquet` by (model, SAE).
        explanations: paths `labels/{hookpoint}/{model}/{sae}.explanations.parquet` by (model, SAE).
        verdicts: paths `lineage/{hookpoint}/edges/{edge}.parquet` by the edge's name, in runs with conversations.
        features: path `lineage/{hookpoint}/features.parquet`; none in runs without lines.
        line_verdicts: as verdicts, of the edges of lines.
        token_rows: paths `tokens/{corpus}/{split}.json`.
    """
    tables_of_labels = {sae: pd.read_parquet(path) for sae, path in labels.items()}
    return TableInputs(
        corpora=described["corpora"],
        made=described["made"],
        summary=summary,
        summaries=summaries,
        model_metrics=[read_json(path) for path in model_metrics],
        sae_metrics=[entry for path in sae_metrics for entry in read_json(path)["saes"]],
        training_curves={sae: pd.read_csv(path) for sae, path in curves.items()},
        share_curves=pd.read_parquet(share_curves),
        merged_models=described["merged_models"],
        merges={model: read_json(path) for model, path in merges.items()},
        sweeps={sweep: pd.read_parquet(path) for sweep, path in sweeps.items()},
        followed={sweep: pd.read_parquet(path) for sweep, path in followed.items()},
        exclusivity={name: pd.read_parquet(path) for name, path in exclusivity.items()},
        latent_verdicts={name: pd.read_parquet(path) for name, path in latent_verdicts.items()},
        crosscoder_matches={name: pd.read_parquet(path) for name, path in crosscoder_matches.items()},
        exclusivity_curves={name: pd.read_parquet(path) for name, path in exclusivity_curves.items()},
        decoder_norms={name: pd.read_parquet(path) for name, path in decoder_norms.items()},
        crosscoder_ablations={name: pd.read_parquet(path) for name, path in crosscoder_ablations.items()},
        differences=list(map(pd.read_parquet, differences)),
        swept=described["swept"],
        histograms={edge: correlation.pearson.histogram for edge, correlation in correlations.items()},
        ablations={edge: pd.read_parquet(path) for edge, path in ablations.items()},
        effects={edge: pd.read_parquet(path) for edge, path in effects.items()},
        drift=read_json(drift[0]) if drift else {},
        matrix_changes=[edge for path in matrix_changes for edge in read_json(path)["edges"]],
        importance={edge: pd.read_parquet(path) for edge, path in importance.items()},
        importance_agreement=pd.read_parquet(importance_agreement[0]) if importance_agreement else None,
        passages={edge: pd.read_parquet(path) for edge, path in passages.items()},
        passage_features={edge: pd.read_parquet(path) for edge, path in passage_features.items()},
        acts={edge: pd.read_parquet(path) for edge, path in acts.items()},
        act_summaries={edge: pd.read_parquet(path) for edge, path in act_summaries.items()},
        patches={edge: pd.read_parquet(path) for edge, path in patches.items()},
        samples={edge: pd.read_parquet(path) for edge, path in samples.items()},
        enriched={edge: pd.read_parquet(path) for edge, path in enriched.items()},
        labels={sae: table[table["wins"]] for sae, table in tables_of_labels.items()},
        explanations={sae: pd.read_parquet(path) for sae, path in explanations.items()},
        verdicts={edge: pd.read_parquet(path) for edge, path in verdicts.items()},
        lines=described["lines"],
        features=pd.read_parquet(features[0]) if features else pd.DataFrame(),
        line_verdicts={edge: pd.read_parquet(path) for edge, path in line_verdicts.items()},
        class_labels={model: table[table["kind"] == "class"] for (model, _), table in tables_of_labels.items()},
        token_rows={(Path(path).parent.name, Path(path).stem): read_json(path) for path in token_rows},
    )


def named(names: Iterable, paths: Iterable[str]) -> dict:
    """Files by their names, where there are any: what a run was not asked for has no files."""
    paths = list(paths)
    keys = [tuple(name) if isinstance(name, list) else name for name in names]
    return dict(zip(keys, paths, strict=True)) if paths else {}


def parents_of(edges: Iterable[Mapping]) -> dict[str, list[str]]:
    """The parents of each model that has any."""
    parents: dict[str, list[str]] = {}
    for edge in edges:
        parents.setdefault(edge["child"], []).append(edge["parent"])
    return parents


def folder_in_run(path: str, run_folder: Path) -> str:
    """The folder of a file, relative to that of the run."""
    return Path(path).parent.relative_to(run_folder).as_posix()


def read_sources(paths: Iterable[str]) -> Sources:
    """Read the files that the page is made from: templates, style sheets and scripts."""
    texts = {Path(path).name: Path(path).read_text(encoding="utf-8") for path in paths}
    templates = {name: text for name, text in texts.items() if name.endswith(".jinja")}
    stylesheet = "\n".join(text for name, text in texts.items() if name.endswith(".css"))
    scripts = {Path(name).stem: text for name, text in texts.items() if name.endswith(".js")}
    return Sources(templates, stylesheet, scripts)


def read_chunks(folders: Iterable[Path]) -> dict[str, str]:
    """Read the packed data in `{model}/{chunk}.js`, by the names under which the page loads it."""
    chunks = {}
    for path in sorted(path for folder in folders for path in folder.glob("*.js")):
        _, name, _, data, _ = path.read_text(encoding="utf-8").split('"')
        chunks[name] = data
    return chunks


def read_page(
    page: Mapping,
    described: Mapping,
    summaries: Mapping[str, dict],
    hookpoint: str,
    leading: Sequence,
    edges: Mapping[str, str],
) -> TableInputs:
    """Read what the page of one hookpoint shows.

    Args:
        page: of `Plan.pages`.
        described: `Contents.described`.
        summaries: `lineage/{hookpoint}/summary.json` of every hookpoint, by name.
        hookpoint: the one that the page is of.
        leading: the SAEs that verdicts rest on, (model, SAE).
        edges: the SAE of the child whose correlation with the parent's is behind each edge, by the edge's name.
    """
    files = page["files"]
    crosscoders = list(map(tuple, described["crosscoders"]))
    return read_inputs(
        described=described,
        summary=summaries[hookpoint],
        summaries=summaries,
        model_metrics=files["model_metrics"],
        sae_metrics=files["sae_metrics"],
        curves=named(page["trained"], files["curves"]),
        sweeps=named(described["swept"], files["sweeps"]),
        followed=named(described["followed_sweeps"], files["followed"]),
        exclusivity=named(crosscoders, files["exclusivity"]),
        latent_verdicts=named(crosscoders, files["latent_verdicts"]),
        crosscoder_matches=named(crosscoders, files["crosscoder_matches"]),
        exclusivity_curves=named(crosscoders, files["exclusivity_curves"]),
        decoder_norms=named(crosscoders, files["decoder_norms"]),
        crosscoder_ablations=named(crosscoders, files["crosscoder_ablations"]),
        differences=files["differences"],
        merges=named(described["merged_models"], files["merges"]),
        correlations={
            edge: load_correlation(path, partner)
            for path, (edge, partner) in zip(files["correlations"], edges.items(), strict=True)
        },
        share_curves=files["share_curves"][0],
        ablations=named(edges, files["ablations"]),
        effects=named(edges, files["effects"]),
        drift=files["drift"],
        matrix_changes=files["matrix_changes"],
        importance=named(edges, files["importance"]),
        importance_agreement=files["importance_agreement"],
        passages=named(edges, files["passages"]),
        passage_features=named(edges, files["passage_features"]),
        acts=named(edges, files["acts"]),
        act_summaries=named(edges, files["act_summaries"]),
        patches=named(edges, files["patches"]),
        samples=named(edges, files["samples"]),
        enriched=named(edges, files["enriched"]),
        labels=named(leading, files["labels"]),
        explanations=named(leading, files["explanations"]),
        verdicts=named(edges, files["verdicts"]),
        features=files["features"],
        line_verdicts=named(described["line_edges"], files["line_verdicts"]),
        token_rows=files["token_rows"],
    )


if __name__ == "__main__":
    with job(snakemake):
        described, config = snakemake.params.described, snakemake.params.config
        jobs = collect(snakemake.config, running=snakemake.rule)
        sources = read_sources(snakemake.input.sources)
        links = {hookpoint: Path(page["page"]).name for hookpoint, page in snakemake.params.pages.items()}
        summaries = {name: read_json(page["files"]["summary"][0]) for name, page in snakemake.params.pages.items()}
        for hookpoint, page in snakemake.params.pages.items():
            inputs = read_page(page, described, summaries, hookpoint, snakemake.params.leading, snakemake.params.edges)
            folder, files = Path(page["page"]).parent, page["files"]
            data = [Path(path.removesuffix(".manifest.json")) for path in files["data"]]
            results = Results(
                config=config,
                hookpoint=hookpoint,
                pages=links,
                making=Path(snakemake.output.making).name,
                corpora=described["corpora"],
                swept=described["swept"],
                summary=summaries[hookpoint],
                tables=make_tables(inputs),
                examples=read_json(files["examples"][0]),
                words=read_json(files["words"][0]) if files["words"] else None,
                timings=timing_table(jobs),
                manifests={folder_in_run(path, folder.parent): read_json(path) for path in files["manifests"]},
                jobs=jobs,
                same_weights=same_weights(
                    {metrics["model"]: metrics["weights_sha256"] for metrics in inputs.model_metrics},
                    parents_of(summaries[hookpoint]["edges"]),
                ),
                rulegraph_svg=Path(files["rulegraph"][0]).read_text(encoding="utf-8"),
                chunks=read_chunks(data) if config["report"]["single_file"] else {},
                assumptions=snakemake.params.assumptions,
                vocabularies=vocabulary_notes(
                    {
                        metrics["model"]: metrics["vocabulary"]
                        for metrics in inputs.model_metrics
                        if "vocabulary" in metrics
                    }
                ),
            )
            write_report(results, sources, page["page"], folder / "tables" / hookpoint, page["answer"])
        write_text(snakemake.output.making, render_making(results, sources, next(iter(links.values()))))
