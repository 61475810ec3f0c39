"""The command `mine`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.distillation.candidates import n_docs, write_candidates
from pyserini_kd.distillation.mining import MineConfig, left_out, mine_files
from pyserini_kd.distillation.text_triples import convert
from pyserini_kd.storage.files import refuse_existing


@command(
    name="mine",
    example="pyserini-kd mine --collection docs.jsonl --topics train.tsv --qrels train.txt --index indexes/docs.bm25 "
    "--output candidates.jsonl",
    epilog="Without --qrels, the first hit of each query becomes its positive. This suits losses on teacher scores, such as "
    "margin-mse, but not losses on labels, such as ranknet. With --segment, every passage of a positive document is a "
    "positive. --index or --runs must hold passages of the same size (`index --segment`). `teach --segment` scores them. "
    "With --triples X --output train.tsv, train.topics.tsv and train.docs.jsonl are written beside train.tsv.",
    settings=MineConfig,
)
def main(settings: MineConfig) -> None:
    """Mine negatives for training: groups of (query, positives, negatives), or triples."""
    output = settings.output
    refuse_existing(output, settings.overwrite)
    if settings.texts:
        made = convert(settings.texts, output, overwrite=settings.overwrite)
        click.echo(f"{output}: {made.triples} triples; their texts: {made.topics}, {made.docs}")
        click.echo(f"left out: {made.left_out} triples whose negative is a positive of the query")
        return
    mined = mine_files(settings)
    write_candidates(mined.groups, output, overwrite=settings.overwrite)
    click.echo(f"{output}: {len(mined.groups)} queries, {n_docs(mined.groups)} documents to score")
    click.echo(left_out(mined))


if __name__ == "__main__":
    main()
