"""The command `report`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import click

from pyserini_kd import evaluate
from pyserini_kd.cli import Runs, command
from pyserini_kd.data.types import Doc
from pyserini_kd.evaluation import caveats, figures, significance
from pyserini_kd.evaluation.measures import DEFAULT_MEASURES, PRESETS
from pyserini_kd.evaluation.page import collect, loss_curves, page, read_system
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, refuse_existing


@command(
    "report",
    "pyserini-kd report --qrels qrels.txt --topics topics.tsv --collection docs.jsonl --baseline run.bm25.txt run.student.txt",
    "Time per query comes from the records (.json) beside the runs, and from those of runs that they were made from.",
)
@click.argument("runs", metavar="RUN...", nargs=-1)
@click.option("--qrels", required=True, metavar="QRELS", help="A file, ir_datasets:<id>, or pydocs:test.")
@click.option("--topics", help="Query texts: a file, ir_datasets:<id>, pydocs:test, or a Pyserini set.")
@click.option("--collection", help="Document texts: a path, ir_datasets:<id> or pydocs.")
@click.option("--index", help="Document texts from an index instead (Lucene, prebuilt name, or a dense index of ours).")
@click.option("--baseline", metavar="RUN", help="Compare each run to this one.")
@click.option("--test", type=click.Choice(list(significance.TESTS)), help="Against --baseline  [default: t]")
@click.option(
    "--correction", type=click.Choice(list(significance.CORRECTIONS)), help="For all runs x measures  [default: holm]"
)
@click.option("--measures", "-m", cls=Runs, multiple=True, metavar="M...", help=f"[default: {' '.join(DEFAULT_MEASURES)}]")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="The collection's measures, before those of --measures.")
@click.option("--training", multiple=True, metavar="FILE", help="A training.json, for its loss curves; may be repeated.")
@click.option("--output", default="report.html", type=click.Path(path_type=Path), help="Page to write.")
@click.option("--figures", "figures_folder", type=click.Path(path_type=Path), help="Also write figures for a paper here.")
@click.option("--figure-format", default="pdf", type=click.Choice(figures.FORMATS), help="Format of the figures.")
@click.option("--overwrite", is_flag=True, help="Replace the page and the figures if they exist.")
def main(
    runs: tuple[str, ...],
    qrels: str,
    topics: str | None,
    collection: str | None,
    index: str | None,
    baseline: str | None,
    test: str | None,
    correction: str | None,
    measures: tuple[str, ...],
    preset: str | None,
    training: tuple[str, ...],
    output: Path,
    figures_folder: Path | None,
    figure_format: str,
    overwrite: bool,
) -> None:
    """Show runs in one HTML page that needs no network: tables, plots, and rankings side by side."""
    from tqdm import tqdm

    from pyserini_kd.data import sources

    refuse_existing(output, overwrite)
    if baseline is None and (test or correction):
        raise InputError("--test and --correction compare runs to a --baseline; name one")
    if collection and index:
        raise InputError("texts come from --collection or from --index, not from both")
    names, swallowed = evaluate.split_words(measures)
    names = tuple(dict.fromkeys((*(PRESETS[preset].measures if preset else ()), *names))) or DEFAULT_MEASURES
    paths = evaluate.run_paths((*runs, *swallowed), baseline)
    for path in training:
        loss_curves(path)  # what is wrong there is said before the work
    judgements = sources.qrels(qrels)
    queries = sources.topics(topics) if topics else []
    systems = [read_system(path, qrels, judgements, names) for path in tqdm(paths, unit="run", disable=None, leave=False)]
    evaluate.check_common_topics({system.path: system.top.keys() & judgements.keys() for system in systems})
    fetch = functools.partial(_texts, collection=collection, index=index) if collection or index else None
    said = {"qrels": qrels, "topics": topics, "collection": collection or index}
    tests = {"test": test or "t", "correction": correction or "holm"}
    data = collect(systems, judgements, queries, fetch, baseline=baseline, training=training, names=said, **tests)
    data["notes"] += [f"{qrels}: {line}" for line in caveats.of_levels(judgements, names, preset)]
    text = page(data)
    drawn = figures.draw(data, figures_folder, figure_format, overwrite=overwrite) if figures_folder is not None else []
    with atomic_file(output, overwrite=overwrite) as out:
        out.write(text)
    click.echo(f"{output}: {len(systems)} runs, {len(judgements)} queries, {len(text.encode()) / 1e6:.2f} MB")
    for figure in drawn:
        click.echo(str(figure))


def _texts(doc_ids: Sequence[str], collection: str | None, index: str | None) -> dict[str, Doc]:
    """The documents that there are among those asked for."""
    from pyserini_kd.data import sources
    from pyserini_kd.retrieval import text_sources

    if index:
        fetch, found, missing = text_sources.fetch_from(index), {}, None
        for doc_id in doc_ids:
            try:
                found[doc_id] = next(iter(fetch([doc_id])))
            except InputError as error:
                missing = error
        if missing and not found:
            raise missing
        return found
    wanted = set(doc_ids)
    return {doc.doc_id: doc for doc in sources.collection(str(collection)) if doc.doc_id in wanted}


if __name__ == "__main__":
    main()
