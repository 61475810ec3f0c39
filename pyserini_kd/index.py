"""The command `index`."""

import time

import click

from pyserini_kd.cli import command
from pyserini_kd.retrieval.indexing import IndexSettings, index


@command(
    name="index",
    example="pyserini-kd index --collection docs.jsonl --encoder models/student --index indexes/docs.student",
    settings=IndexSettings,
)
def main(settings: IndexSettings) -> None:
    """Index a collection: dense with a BERT_DOT checkpoint (FAISS or Lucene), or sparse with BM25 or a SPLADE (Lucene)."""
    started = time.monotonic()
    count = index(settings)
    if settings.vectors:
        click.echo(f"{settings.index}: {count} vectors")
    elif count is not None:  # None: other processes are not finished
        seconds = time.monotonic() - started
        click.echo(f"{settings.index}: {count} documents in {seconds:.0f} s ({count / seconds:.0f} a second)")


if __name__ == "__main__":
    main()
