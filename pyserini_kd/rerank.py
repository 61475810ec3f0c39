"""The command `rerank`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.retrieval.rerank_files import RerankSettings, rerank_files


@command(
    name="rerank",
    example="pyserini-kd rerank --run runs/run.docs.bm25.test.txt --encoder models/reranker --collection docs.jsonl "
    "--topics test.tsv --depth 100 --output runs/run.docs.reranked.test.txt",
    epilog="After a kill, the same command resumes a cross-encoder's reranking. For other architectures, `index` can store "
    "document representations for reuse.",
    settings=RerankSettings,
)
def main(settings: RerankSettings) -> None:
    """Rerank a run with a checkpoint of any architecture."""
    reranked = rerank_files(settings)
    click.echo(f"{settings.output}: {len(reranked)} queries, {reranked.n_hits} lines")


if __name__ == "__main__":
    main()
