"""The command `pydocs`."""

from __future__ import annotations

from pathlib import Path

import click

from pyserini_kd.cli import command
from pyserini_kd.data.docstrings import SPLITS, docs, qrels, topics
from pyserini_kd.data.formats import write_collection, write_qrels, write_topics
from pyserini_kd.storage.files import refuse_existing


@command(
    name="pydocs",
    example="pyserini-kd pydocs --output pydocs/",
    epilog="Writes docs.jsonl (Pyserini JSONL), topics.SPLIT.tsv and qrels.SPLIT.txt for train, dev and test.",
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def main(output: Path, overwrite: bool) -> None:
    """Write the embedded collection out: documents, topics and qrels."""
    targets = [output / "docs.jsonl"]
    targets += [output / name for split in SPLITS for name in (f"topics.{split}.tsv", f"qrels.{split}.txt")]
    for target in targets:
        refuse_existing(target, overwrite)
    count = write_collection(docs(), output / "docs.jsonl", overwrite=overwrite)
    click.echo(f"{output / 'docs.jsonl'}: {count} documents")
    for split in SPLITS:
        write_topics(topics(split), output / f"topics.{split}.tsv", overwrite=overwrite)
        write_qrels(qrels(split), output / f"qrels.{split}.txt", overwrite=overwrite)
        click.echo(f"{output / f'topics.{split}.tsv'}: {len(topics(split))} topics")


if __name__ == "__main__":
    main()
