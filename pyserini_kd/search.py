"""The command `search`: sparse, dense or hybrid search, reranking, measures; with no arguments, the embedded default."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyserini_kd.cli import command
from pyserini_kd.data import sources
from pyserini_kd.data.run_files import ir_metadata
from pyserini_kd.data.runs import Run, default_tag
from pyserini_kd.data.types import Qrels, Query
from pyserini_kd.retrieval.search_settings import SearchSettings
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home
from pyserini_kd.storage.records import refuse_existing_run, write_record

if TYPE_CHECKING:
    from pyserini_kd.retrieval.system import System

logger = logging.getLogger(__name__)

MEASURES = ("RR@10", "nDCG@10", "AP", "R@100", "R@1000")
EMBEDDED = "pydocs"

ELSEWHERE = {
    "pyserini.search.lucene": (
        "--impact --qld --rocchio --rocchio-use-negative --pretokenized --dismax --remove-duplicates --prcl --dense --hnsw "
        "--flat",
        "--onnx-encoder --language --fields --tokenizer --stopwords --topics-format --min-idf --dismax.tiebreaker",
    ),
    "pyserini.search.faiss": (
        "--normalize-distances --multimodal --fp16",
        "--encoded-queries --ance-prf-encoder --rocchio-alpha --rocchio-beta --rocchio-gamma --prf-depth --prf-method "
        "--faiss-device --pca-model --searcher --binary-hits",
    ),
}
"""Options (flags, and those with a value) of Pyserini's commands that this one does not have: it names the place to go."""


def _refuse_elsewhere(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        flag = parameter.opts[0]
        module = next(m for m, named in ELSEWHERE.items() if flag in " ".join(named).split())
        raise click.UsageError(f"{flag} is not offered here; use `python -m {module} {flag} ...`")


def _hidden_options(function: Any) -> Any:
    for named in ELSEWHERE.values():
        for words, is_flag in zip(named, (True, False), strict=True):
            for flag in words.split():
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

    With `--encoder student` and nothing else: prepares what is missing of the embedded default and searches it.
    """
    if settings.output:
        refuse_existing_run(settings.output, settings.overwrite)
    settings = with_defaults(settings)
    output = settings.output or _default_output(settings)
    if settings.query is None:
        refuse_existing_run(output, settings.overwrite or settings.output is None)
    started = time.monotonic()
    queries, judged = _asked(settings)
    from pyserini_kd.retrieval import reranking, searching, show
    from pyserini_kd.retrieval.system import System

    searching.warn_blank(queries)
    stages: dict[str, Run] | None = {} if settings.explain else None
    begun = time.monotonic()
    system = System.open(settings, texts=settings.query is not None, query_cache=settings.query_cache)
    timing: dict[str, Any] = {"open_seconds": round(time.monotonic() - begun, 3)}
    if system.encoder is not None:
        timing["precision"] = system.encoder.precision
    kept = system.reranker is not None and settings.query is None
    with reranking.unfinished(output, system.reranker) if kept and system.reranker else contextlib.nullcontext() as work:
        timing |= {"resumed": True} if work is not None and work.exists() else {}
        max_passage = (settings.max_passage_hits, settings.max_passage_delimiter) if settings.max_passage else None
        run, spent = system.search(
            queries, settings.n_hits, tag=settings.runtag, remove_query=settings.remove_query, max_passage=max_passage,
            one_query=settings.query is not None, stages=stages, work=work,
        )  # fmt: skip
        timing |= spent
        if settings.query is not None:
            click.echo(show.hits(settings.query, run["1"], system.fetch, stages or {}))
            if settings.explain:
                click.echo(", ".join(f"{name} {value}" for name, value in timing.items()))
        if settings.query is None or settings.output:
            timing = {"seconds": round(time.monotonic() - started, 2), **timing}
            _finish(settings, system, run, judged, output, timing)


def with_defaults(settings: SearchSettings) -> SearchSettings:
    """Fill in the embedded default where no index is named; a bare search for `student` prepares what is missing."""
    if settings.index:
        if settings.topics is None and settings.query is None:
            raise InputError("`topics` (or `query`) is needed with `index`")
        return settings
    if settings.topics and not sources.is_pydocs(settings.topics):
        raise InputError("`index` is needed with `topics`")
    index = embedded_index("bm25" if settings.is_sparse else settings.encoder, prepare=settings.query is None)
    topics = settings.topics or (None if settings.query is not None else f"{EMBEDDED}:test")
    return settings.but(index=(index,), topics=topics, qrels=settings.qrels or topics)


def embedded_index(encoder: str, prepare: bool) -> str:
    """The index of the embedded collection by an encoder; with `prepare` what is missing of the student is made first."""
    index = home() / "indexes" / f"{EMBEDDED}.{Path(encoder).name}"
    if encoder == "student" and prepare:
        from pyserini_kd.distillation import embedded

        embedded.prepare()
    elif encoder == "student" and not index.exists():
        raise InputError("the embedded student is not there yet; `python -m pyserini_kd.search --encoder student` prepares it")
    elif not index.exists():
        raise InputError(
            f"no index given and {index} is not there; make it: pyserini-kd index --collection {EMBEDDED} "
            f"--encoder {encoder} --index {index}"
        )
    return str(index)


def _asked(settings: SearchSettings) -> tuple[list[Query], Qrels | None]:
    """Queries and judgements, read before the search, so that a wrong file costs no search."""
    if settings.query is not None:
        return [Query("1", " ".join(settings.query.split()))], None
    queries = sources.topics(settings.topics or "")
    judged = sources.qrels(settings.qrels) if settings.qrels else None
    if judged is not None and not any(query.query_id in judged for query in queries):
        raise InputError(f"qrels {settings.qrels} and topics {settings.topics} share no query")
    return queries, judged


def _finish(
    settings: SearchSettings, system: System, run: Run, judged: Qrels | None, output: Path, timing: dict[str, Any]
) -> None:
    """Write the run and its record, print measures."""
    made_by = {"index": " ".join(settings.index), "encoder": settings.encoder}
    made_by |= {"sparse index": settings.sparse_index or "", "reranker": settings.rerank or ""}
    data = {"topics": settings.topics, "qrels": settings.qrels}
    comments = ir_metadata(run.tag, made_by, data) if settings.ir_metadata else []
    overwrite = settings.overwrite or settings.output is None
    begun = time.monotonic()
    run.write(output, output_format=settings.output_format, overwrite=overwrite, comments=comments)
    timing["write_seconds"] = round(time.monotonic() - begun, 3)
    click.echo(f"{output}: {len(run)} queries, {run.n_hits} lines, {timing['seconds']} s")
    record: dict[str, Any] = {"config": settings.model_dump(mode="json") | {"output": str(output)}, **timing}
    if system.encoder is not None:
        record["encoder_sha256"] = system.encoder.record()["sha256"]
    if judged is not None:
        from pyserini_kd.evaluation import caveats, engines, tables

        for line in caveats.of_run(run, judged):
            logger.warning("%s: %s", output, line)
        means = {m: engines.mean(values) for m, values in engines.evaluate(run, judged, MEASURES).items()}
        click.echo(tables.table(["run", *means], [[run.tag, *means.values()]]))
        record |= {"measures": means, "engine": engines.choose_engine(run)}
    write_record(output, **record)


def _default_output(settings: SearchSettings) -> Path:
    topics = "query" if settings.query is not None else sources.short_name(settings.topics or "").removeprefix(f"{EMBEDDED}-")
    system = default_tag("bm25" if settings.is_sparse else settings.encoder)
    collection = Path(settings.index[0] if settings.index else "").name.removesuffix(f".{system}")
    if settings.sparse_index:
        system += f"+bm25-{settings.fusion}"
    if settings.rerank:
        system += f"+{default_tag(settings.rerank)}"
    return home() / "runs" / f"run.{collection}.{system}.{topics}.txt"


if __name__ == "__main__":
    main()
