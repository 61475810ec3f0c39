"""The command `search`: sparse, dense or hybrid search, reranking, measures; with no arguments, the embedded default."""

import logging
from collections.abc import Callable
from pathlib import Path

import click

from pyserini_kd.cli import command
from pyserini_kd.retrieval.search_settings import SearchSettings
from pyserini_kd.storage.records import write_record

logger = logging.getLogger(__name__)

MEASURES = ("RR@10", "nDCG@10", "AP", "R@100", "R@1000")
ELSEWHERE = {
    "pyserini.search.lucene": (
        "--impact --qld --rocchio --rocchio-use-negative --pretokenized --dismax --remove-duplicates --prcl --dense --hnsw "
        "--flat --rm3-py --rocchio-py",
        "--onnx-encoder --language --fields --tokenizer --stopwords --topics-format --min-idf --dismax.tiebreaker",
    ),
    "pyserini.search.faiss": (
        "--normalize-distances --multimodal --fp16",
        "--encoded-queries --ance-prf-encoder --rocchio-alpha --rocchio-beta --rocchio-gamma --prf-depth --prf-method "
        "--faiss-device --pca-model --searcher --binary-hits",
    ),
}
"""Pyserini module -> (flags, options with a value) that this command lacks; the error names the module."""


def _refuse_elsewhere(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value:
        flag = parameter.opts[0]
        module = next(m for m, named in ELSEWHERE.items() if flag in " ".join(named).split())
        raise click.UsageError(f"{flag} is not offered here; use `python -m {module} {flag} ...`")


def _hidden_options(function: Callable[[SearchSettings], None]) -> Callable[[SearchSettings], None]:
    for flags, valued in ELSEWHERE.values():
        for flag in f"{flags} {valued}".split():
            is_flag = flag in flags.split()
            option = click.option(flag, is_flag=is_flag, hidden=True, expose_value=False, callback=_refuse_elsewhere)
            function = option(function)
    return function


@command(
    name="search",
    example="python -m pyserini_kd.search --encoder student",
    epilog="""\b
More: pyserini-kd search --index indexes/docs.student --encoder models/student --topics test.tsv --output run.txt
      pyserini-kd search --encoder bm25 --index indexes/docs.bm25 --topics test.tsv --qrels test.qrels
      pyserini-kd search --encoder student --query "merge two sorted arrays" """,
    settings=SearchSettings,
)
@_hidden_options
def main(settings: SearchSettings) -> None:
    """Search sparse, dense or hybrid, rerank, write a TREC run, print measures.

    `--encoder student` alone searches the embedded collection; missing parts are prepared first.
    """
    from pyserini_kd.evaluation import caveats, engines, tables
    from pyserini_kd.retrieval import show
    from pyserini_kd.retrieval.search_files import search_files, with_defaults

    settings = with_defaults(settings, _prepare)
    found = search_files(settings)
    if settings.query is not None:
        click.echo(show.hits(settings.query, found.run["1"], found.fetch, found.stages))
        if settings.explain:
            click.echo(", ".join(f"{name} {value}" for name, value in found.timing.items()))
    if not found.record:
        return
    output, run, record = Path(found.record["config"]["output"]), found.run, found.record
    click.echo(f"{output}: {len(run)} queries, {run.n_hits} lines, {record['seconds']} s")
    if found.judged is not None:
        for line in caveats.of_run(run, found.judged):
            logger.warning("%s: %s", output, line)
        means = {m: engines.mean(values) for m, values in engines.evaluate(run, found.judged, MEASURES).items()}
        click.echo(tables.table(["run", *means], [[run.tag, *means.values()]]))
        record |= {"measures": means, "engine": engines.choose_engine(run)}
    write_record(output, **record)


def _prepare() -> None:
    from pyserini_kd.distillation import embedded  # slow import, rarely needed

    embedded.prepare()


if __name__ == "__main__":
    main()
