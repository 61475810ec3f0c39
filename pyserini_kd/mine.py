"""The command `mine`."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from pyserini_kd.cli import Runs, command
from pyserini_kd.data import passages, sources
from pyserini_kd.data.runs import Run
from pyserini_kd.distillation.candidates import write_candidates
from pyserini_kd.distillation.mining import first_hits, left_out, mine
from pyserini_kd.models import hardware
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import refuse_existing

logger = logging.getLogger(__name__)


@command(
    name="mine",
    example="pyserini-kd mine --collection docs.jsonl --topics train.tsv --qrels train.txt --index indexes/docs.bm25 "
    "--output candidates.jsonl",
    epilog="Without --qrels, each query's first hit stands in for its positive: enough for losses on teacher scores, such as "
    "margin-mse, which learn from labels only what to compare; of no use to losses on labels, such as ranknet. With "
    "--segment, every passage of a positive document is a positive, and --index or --runs hold passages cut in the same way "
    "(`index --segment`); `teach --segment` scores them.",
)
@click.option("--collection", required=True, help="Collection: a path, ir_datasets:<id> or pydocs.")
@click.option("--topics", required=True, help="Training topics: a file, ir_datasets:<id> or pydocs:train.")
@click.option("--qrels", help="Their judgements: a file, ir_datasets:<id> or pydocs:train.")
@click.option("--index", help="BM25 index to take hard negatives from (a folder or a prebuilt name).")
@click.option("--runs", "--run", cls=Runs, multiple=True, help="Runs to take hard negatives from instead.")
@click.option("--depth", default=100, type=click.IntRange(1), help="How deep negatives may lie.")
@click.option("--negatives", default=1, type=click.IntRange(0), help="Hard negatives a query.")
@click.option("--shared", default=0, type=click.IntRange(0), help="Queries a block that share their documents.")
@click.option("--segment", metavar="WORDS:STRIDE", help="Candidates are passages `docid#n` of so many words, e.g. 150:75.")
@click.option("--seed", default=42, type=click.IntRange(0), help="Seed of the sampling.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Groups (.jsonl) or triples (.tsv).")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def main(
    collection: str,
    topics: str,
    qrels: str | None,
    index: str | None,
    runs: tuple[str, ...],
    depth: int,
    negatives: int,
    shared: int,
    segment: str | None,
    seed: int,
    output: Path,
    overwrite: bool,
) -> None:
    """Mine negatives for training: groups of (query, positives, negatives), or triples."""
    refuse_existing(output, overwrite)
    if index and runs:
        raise InputError("give --index or --runs, not both")
    if negatives and not (index or runs):
        raise InputError("hard negatives need --index or --runs (or --negatives 0 with --shared)")
    if qrels is None and not (index or runs):
        raise InputError("without --qrels, --index or --runs must say which documents to compare")
    queries = sources.topics(topics)
    judged = sources.qrels(qrels) if qrels else None
    docs = sources.collection(collection)
    if segment:
        judged = passages.segment_qrels(judged, passages.segment(docs, segment)) if judged else None
        docs = passages.segment(sources.collection(collection), segment)
    found = [Run.read(run) for run in runs]
    if index:
        from pyserini_kd.retrieval import bm25_search

        asked = [q for q in queries if judged is None or q.query_id in judged]
        found = [bm25_search.search(index, asked, hits=depth, threads=hardware.threads())]
    if segment and found and not any("#" in doc_id for run in found for hits in run.values() for doc_id in hits.doc_ids):
        raise InputError(f"--segment {segment}: negatives come from whole documents, not from passages `docid#n`; "
                         f"index them with --segment {segment}")  # fmt: skip
    if judged is None:
        judged = first_hits(found)
        logger.warning("no --qrels: labels are the first stage's; train with a loss on teacher scores, not on labels")
    mined = mine(
        queries,
        judged,
        found,
        docs,
        depth=depth,
        negatives=negatives,
        shared=shared,
        seed=seed,
    )
    if not mined.groups and not any(query.query_id in judged for query in queries):
        raise InputError(f"qrels {qrels} and topics {topics} share no query")
    if not mined.groups:
        more = "; --negatives 0 wants --shared, or there are none" if negatives == 0 and not shared else ""
        raise InputError(f"no query has both a positive in the collection and a negative{more}")
    write_candidates(mined.groups, output, overwrite=overwrite)
    count = sum(len(group.doc_ids) for group in mined.groups)
    click.echo(f"{output}: {len(mined.groups)} queries, {count} documents to score")
    click.echo(left_out(mined))


if __name__ == "__main__":
    main()
