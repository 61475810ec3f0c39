"""The command `queries`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.distillation.query_files import QueryConfig, make_files


@command(
    name="queries",
    example="pyserini-kd queries --collection docs.jsonl --output queries",
    epilog="Writes topics, judgements and BM25 runs of train and dev, and docs.jsonl: the documents without the titles and "
    "sentences that became queries. Dev queries come from other documents than training queries. With judged --topics, the "
    "documents stay whole and dev consists of judged topics.",
    settings=QueryConfig,
)
def main(settings: QueryConfig) -> None:
    """Make training queries from documents, for a collection without topics."""
    record = make_files(settings)
    click.echo(
        f"{settings.output}: {record['sampled']} of {record['n_docs']} documents, {record['words']:.0f} words on average"
    )
    for split, kinds in record["kept"].items():
        click.echo(f"{split}: {sum(kinds.values())} queries ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})")


if __name__ == "__main__":
    main()
