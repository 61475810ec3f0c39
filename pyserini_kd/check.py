"""The command `check`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyserini_kd.cli import command
from pyserini_kd.data import sources
from pyserini_kd.evaluation.submission import KINDS, LISTED, PLACE, WIDTH, check, check_collection, fix, notes
from pyserini_kd.storage.files import require_file
from pyserini_kd.storage.records import refuse_existing_run, write_record


@command(
    "check",
    "pyserini-kd check runs/run.msmarco.student.dl19.txt --topics dl19-passage --collection collection.tsv",
    "Exit code 0 if the run (with --fix: the copy) is fit, 1 if not, 2 for wrong input. --fix sorts by score, numbers ranks "
    "again, cuts at --max-hits, drops unknown topics and repeated lines, mends the tag; it never invents or chooses a score.",
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--topics", required=True, help="Those to answer: a file, ir_datasets:<id>, pydocs:SPLIT, a Pyserini set.")
@click.option("--max-hits", default=1000, type=click.IntRange(1), help="Hits a topic may have.")
@click.option("--qrels", help="Also say how much of the run is judged: a file, ir_datasets:<id> or pydocs:SPLIT.")
@click.option("--collection", help="Also check that its documents exist: a path, ir_datasets:<id> or pydocs.")
@click.option("--format", "output_format", default="trec", type=click.Choice(list(WIDTH)), help="Where it is to go.")
@click.option("--show", "listed", default=LISTED, type=click.IntRange(1), help="Faults of a kind to list; the rest is counted.")
@click.option("--fix", "fixed", metavar="OUT", type=click.Path(path_type=Path), help="Write a mended copy.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.pass_context
def main(
    context: click.Context,
    run: Path,
    topics: str,
    max_hits: int,
    qrels: str | None,
    collection: str | None,
    output_format: str,
    listed: int,
    fixed: Path | None,
    overwrite: bool,
) -> None:
    """Check that a run is fit for submission."""
    require_file(run, "run")
    if fixed:
        refuse_existing_run(fixed, overwrite)
    started = time.monotonic()
    wanted = {query.query_id for query in sources.topics(topics)}
    judged = sources.qrels(qrels) if qrels else None
    limits = {"max_hits": max_hits, "listed": listed}
    report = check(run, wanted, output_format=output_format, keep_ids=collection is not None, **limits)
    if collection:
        check_collection(run, collection, report, output_format)
    faults = report.faults
    for line in faults.lines():
        click.echo(line)
    for line in notes(report.tops, judged) if judged is not None else ():
        click.echo(line)
    held = f"{len(report.tops)} topics, {report.n_lines} lines" + (f", tag {report.tag}" if report.tag else "")
    click.echo(f"{run}: {held}: {'unfit' if faults.total() else 'fit'} for {PLACE[output_format]}")
    if fixed:
        if stuck := [kind.what for name, kind in KINDS.items() if faults[name] and kind.mended is None]:
            click.echo(f"{fixed} was not written; it would take guessing to mend: {'; '.join(stuck)}", err=True)
            context.exit(1)
        checked = time.monotonic()
        fix(run, report, wanted, max_hits, output_format).write(fixed, output_format=output_format, overwrite=overwrite)
        seconds = {"check_seconds": round(checked - started, 3), "write_seconds": round(time.monotonic() - checked, 3)}
        config = {"run": str(run), "topics": topics, "max_hits": max_hits}
        write_record(fixed, config=config, mended=dict(faults), **seconds)
        how = ", ".join(f"{name} ({KINDS[name].mended})" for name in KINDS if faults[name])
        click.echo(f"{fixed}: mended copy: {how or 'nothing was to mend'}")
    context.exit(0 if fixed or not faults.total() else 1)


if __name__ == "__main__":
    main()
