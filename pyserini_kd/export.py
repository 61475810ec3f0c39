"""The command `export`."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from pyserini_kd.cli import command
from pyserini_kd.data import sources
from pyserini_kd.data.runs import Run
from pyserini_kd.evaluation.int8_loss import MEASURE, WORST_CHANGE, WORST_CORRELATION, quality
from pyserini_kd.models.onnx_export import export
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing
from pyserini_kd.storage.records import write_json

logger = logging.getLogger(__name__)


@command(
    name="export",
    example="pyserini-kd export --encoder models/reranker --output models/reranker-int8 --int8 --run run.bm25.txt "
    "--collection docs.jsonl --topics dev.tsv --qrels dev.qrels",
)
@click.option("--encoder", required=True, help="Checkpoint: name, folder or hub id; a bi-encoder or a cross-encoder.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Checkpoint folder to write.")
@click.option("--int8", is_flag=True, help="Add an int8 file, which --precision auto then takes on CPUs without AMX.")
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="With --int8: report the loss on this run's top.")
@click.option("--collection", help="The run's texts: a path, ir_datasets:<id>, pydocs, or an index that stores them.")
@click.option("--topics", help="The run's topics.")
@click.option("--qrels", help="Judgements, for nDCG@10 before and after.")
@click.option("--depth", default=100, type=click.IntRange(2), help="Documents a query in the report.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def main(
    encoder: str,
    output: Path,
    int8: bool,
    run_path: Path | None,
    collection: str | None,
    topics: str | None,
    qrels: str | None,
    depth: int,
    overwrite: bool,
) -> None:
    """Write a checkpoint with ONNX files, for --backend onnx and --precision int8."""
    refuse_existing(output, overwrite, folder=True)
    report = [run_path, collection, topics, qrels]
    if any(report) and not (int8 and all(report)):
        raise InputError("the report of what int8 costs needs --int8 with all of --run, --collection, --topics and --qrels")
    run = Run.read(run_path) if run_path else None
    queries = sources.topics(topics) if topics else []  # before the work: what is wrong with them is said at once
    judged = sources.qrels(qrels) if qrels else {}
    folder = export(encoder, output, int8=int8, overwrite=overwrite)
    sizes = [f"{path.relative_to(folder)} {path.stat().st_size / 2**20:.1f} MiB" for path in sorted(folder.glob("onnx/*.onnx"))]
    click.echo(f"{folder}: {', '.join(sizes)}")
    if run is None or collection is None:
        return
    found = quality(folder, run, queries, judged, collection, depth)
    write_json(folder / "onnx" / "quality.json", {"run": str(run_path), "topics": topics, "depth": depth, **found})
    for name, value in found.items():
        click.echo(f"{name:24} {value:.0f}" if name == "pairs" else f"{name:24} {value:.4f}")
    change = found[f"{MEASURE} int8"] - found[f"{MEASURE} fp32"]
    click.echo(f"{'change':24} {change:+.4f}")
    if found["pearson"] < WORST_CORRELATION or change < -WORST_CHANGE:
        logger.warning("WARNING: int8 costs too much here: use --precision fp32 with this checkpoint, or export without --int8")


if __name__ == "__main__":
    main()
