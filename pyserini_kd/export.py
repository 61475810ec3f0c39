"""The command `export`: OpenVINO and int8 files of a checkpoint, and the upload to a hub."""

import logging
import random
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Self

import click
from pydantic import model_validator

from pyserini_kd.cli import command
from pyserini_kd.data import sources
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Query
from pyserini_kd.evaluation.int8_loss import MEASURE, WORST_CHANGE, WORST_CORRELATION, quality
from pyserini_kd.models.hub import push
from pyserini_kd.models.openvino_files import FOLDER
from pyserini_kd.storage import settings as shared
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing
from pyserini_kd.storage.records import write_json
from pyserini_kd.storage.settings import Overwrite, option

logger = logging.getLogger(__name__)

CALIBRATION, DRAWN_FROM = 300, 100_000
"""Texts that determine the ranges of int8, and the documents that they are drawn from."""


class Settings(shared.Settings):
    """The options of `export`."""

    encoder: str = option("--encoder", help="Checkpoint: name, folder or hub id.")
    output: Path | None = option("--output", None, "Checkpoint folder to write: a copy with OpenVINO files.")
    int8: bool = option(
        "--int8",
        False,
        "Add an int8 file; --precision auto uses it on CPUs with VNNI but no bf16.",
    )
    run: Path | None = option("--run", None, "With --int8: report the loss on the top of this run.")
    collection: str | None = option(
        "--collection", None, "Texts for --int8 and of the run: a path, ir_datasets:<id>, pydocs, or an index that stores them."
    )
    topics: str | None = option("--topics", None, "Topics: queries for --int8, and those of the run.")
    qrels: str | None = option("--qrels", None, "Judgements, for nDCG@10 in fp32 and int8.")
    depth: int = option("--depth", 100, "Documents per query in the report.", ge=2)
    push: str | None = option("--push", None, "Upload the folder to this hub repository (owner/name).", metavar="REPO")
    private: bool = option("--private", False, "With --push: create the repository as a private one.")
    overwrite: Overwrite = False

    @model_validator(mode="after")
    def rules(self) -> Self:
        """Check that there is an output, that it can be written, and that the report has all its inputs."""
        if self.output is None and self.push is None:
            raise InputError("`output` or `push` is needed")
        self.only("int8 overwrite", self.output, "requires `output`")
        self.only("private", self.push, "requires `push`")
        if self.output is not None:
            refuse_existing(self.output, self.overwrite, folder=True)
        if self.int8 and self.collection is None:
            raise InputError("`int8` needs a `collection`: its texts determine the ranges of the numbers")
        self.only("collection topics", self.int8, "requires `int8`")
        report = [self.run, self.topics, self.qrels]
        if (self.run or self.qrels) and not (self.int8 and all(report)):
            raise InputError("the report on the loss of int8 needs all of --int8, --run, --collection, --topics and --qrels")
        return self


@command(
    name="export",
    example="pyserini-kd export --encoder models/reranker --output models/reranker-int8 --int8 --run run.bm25.txt "
    "--collection docs.jsonl --topics dev.tsv --qrels dev.qrels",
    settings=Settings,
)
def main(settings: Settings) -> None:
    """Write a checkpoint with OpenVINO files, also in int8; upload a checkpoint with --push."""
    if settings.output is not None:
        _export(settings, settings.output)
    if settings.push is not None:
        click.echo(push(settings.output or settings.encoder, settings.push, private=settings.private))


def _export(settings: Settings, output: Path) -> None:
    run = Run.read(settings.run) if settings.run else None
    queries = sources.topics(settings.topics) if settings.topics else []  # read first, to find errors early
    judged = sources.qrels(settings.qrels) if settings.qrels else {}
    from pyserini_kd.models.openvino_export import export

    pairs = _calibration(settings.collection, queries) if settings.int8 and settings.collection else None
    folder = export(settings.encoder, output, calibration=pairs, overwrite=settings.overwrite)
    made = sorted((folder / FOLDER).glob("*.bin"))
    sizes = [f"{path.relative_to(folder)} {path.stat().st_size / 2**20:.1f} MiB" for path in made]
    click.echo(f"{folder}: {', '.join(sizes)}")
    if run is None or settings.collection is None:
        return
    found = quality(folder, run, queries, judged, settings.collection, settings.depth)
    about = {"run": str(settings.run), "topics": settings.topics, "depth": settings.depth}
    write_json(folder / FOLDER / "quality.json", {**about, **found})
    for name, value in found.items():
        click.echo(f"{name:24} {value:.0f}" if name == "pairs" else f"{name:24} {value:.4f}")
    change = found[f"{MEASURE} int8"] - found[f"{MEASURE} fp32"]
    click.echo(f"{'change':24} {change:+.4f}")
    if found["pearson"] < WORST_CORRELATION or change < -WORST_CHANGE:
        logger.warning("WARNING: int8 loses too much here; use --precision fp32 with this checkpoint, or export without --int8")


def _calibration(collection: str, queries: Sequence[Query]) -> list[tuple[str, str]]:
    """(query, document) texts drawn from the first DRAWN_FROM documents; without topics, a document's first words as query."""
    drawn: list[str] = []
    chance = random.Random(0)
    for number, doc in enumerate(islice(sources.collection(collection), DRAWN_FROM)):
        if number < CALIBRATION:
            drawn.append(doc.contents)
        elif (place := chance.randrange(number + 1)) < CALIBRATION:
            drawn[place] = doc.contents
    if not queries:
        return [(" ".join(text.split()[:10]), text) for text in drawn]
    return list(zip(cycle([query.text for query in queries]), drawn, strict=False))


if __name__ == "__main__":
    main()
