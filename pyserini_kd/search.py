"""The user's command: sparse, dense or hybrid search, reranking, measures; with no arguments, the embedded default."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyserini_kd.cli import command
from pyserini_kd.data import sources
from pyserini_kd.data.run_files import ir_metadata
from pyserini_kd.data.runs import Run, default_tag
from pyserini_kd.data.types import Qrels, Query
from pyserini_kd.models import engine, hardware
from pyserini_kd.retrieval import snippet
from pyserini_kd.retrieval.search_settings import ALPHA, DEPTH, QUERY_HITS, RRF_K, Settings, refuse_contradictions
from pyserini_kd.retrieval.system import Opened, open_all, search
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home
from pyserini_kd.storage.records import refuse_existing_run, write_record

if TYPE_CHECKING:
    from pyserini_kd.retrieval.text_sources import Fetch

logger = logging.getLogger(__name__)

MEASURES = ("RR@10", "nDCG@10", "AP", "R@100", "R@1000")
STAGES = {"sparse": "BM25", "dense": "dense", "fuse": "fused", "rerank": "reranked"}  # as --explain names them
EMBEDDED = "pydocs"

# What Pyserini's search commands have and this one does not: refused by name, with the place to go.
ELSEWHERE = {
    "pyserini.search.lucene": (
        ["--impact", "--qld", "--rocchio", "--rocchio-use-negative", "--pretokenized", "--dismax", "--remove-duplicates"]
        + ["--prcl", "--dense", "--hnsw", "--flat"],
        ["--onnx-encoder", "--language", "--fields", "--tokenizer", "--stopwords", "--topics-format", "--min-idf"]
        + ["--dismax.tiebreaker"],
    ),
    "pyserini.search.faiss": (
        ["--normalize-distances", "--multimodal", "--fp16"],
        ["--encoded-queries", "--ance-prf-encoder", "--rocchio-alpha", "--rocchio-beta", "--rocchio-gamma"]
        + ["--prf-depth", "--prf-method", "--faiss-device", "--pca-model", "--searcher", "--binary-hits"],
    ),
}


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator, in the order that `--help` shows them."""
    return lambda function: functools.reduce(lambda decorated, option: option(decorated), reversed(options), function)


def _several(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> str | None:
    """The first --index; the others go to `more_indexes`."""
    context.params["more_indexes"] = value[1:]
    return value[0] if value else None


stage_options = _options(
    click.option("--encoder", default="student", help="Checkpoint (name, folder or hub id), or bm25 for sparse search."),
    click.option(
        "--index",
        multiple=True,
        callback=_several,
        help="Index: a folder, or a Pyserini prebuilt name [default: the embedded one]; several dense ones, or a JSON file "
        'that lists them as "shards", search as one.',
    ),  # fmt: skip
    click.option("--sparse-index", help="Hybrid: fuse with BM25 over this index."),
    click.option("--fusion", type=click.Choice(["rrf", "interpolation"]), help="How to fuse  [default: rrf]"),
    click.option("--rrf.k", "rrf_k", default=RRF_K, type=click.IntRange(1), help="RRF's constant."),
    click.option("--alpha", default=ALPHA, type=click.FloatRange(0, 1), help="Interpolated: alpha sparse + (1-alpha) dense."),
    click.option("--k1", type=click.FloatRange(0), help="BM25's k1 [default: 0.9, or Pyserini's for its prebuilt indexes]."),
    click.option("--b", type=click.FloatRange(0, 1), help="BM25's b [default: 0.4, or Pyserini's for its prebuilt indexes]."),
    click.option("--bm25", "bm25_flag", is_flag=True, hidden=True, help="The same as --encoder bm25."),
    click.option("--rm3", is_flag=True, help="Expand sparse queries by RM3."),
    click.option("--rerank", help="Rerank with this checkpoint."),
    click.option("--rerank-index", metavar="DIR", help="What that checkpoint stored of documents (index --for)."),
    click.option("--depth", default=DEPTH, type=click.IntRange(1), help="Documents reranked a query; the others are dropped."),
)
model_options = _options(
    click.option("--batch-size", "--batch", type=click.IntRange(1), help="Queries a batch [default: by token budget]."),
    click.option("--threads", type=click.IntRange(1), help="[default: all processors]"),
    click.option("--device", default="cpu", help="cpu, cuda or cuda:N."),
    click.option("--precision", default="auto", type=click.Choice(list(hardware.PRECISIONS)), help="Arithmetic."),
    click.option("--backend", default="auto", type=click.Choice(list(hardware.BACKENDS)), help="What computes."),
    click.option("--max-length", type=click.IntRange(3), help="Tokens a query [default: from the checkpoint]."),
    click.option("--ef-search", type=click.IntRange(1), help="HNSW's efSearch."),
    click.option("--nprobe", type=click.IntRange(1), help="IVF's lists visited a query."),
    click.option("--mmap", is_flag=True, help="Leave the dense index on disk, for one larger than memory."),
    click.option("--pooling", type=click.Choice(["cls", "mean"]), help="[default: from the checkpoint]"),
    click.option("--l2-norm/--no-l2-norm", default=None, help="[default: from the checkpoint]"),
    click.option("--query-prefix", help="[default: from the checkpoint]"),
    click.option("--doc-prefix", help="What the index was made with [default: from its manifest]."),
    click.option("--encoder-class", hidden=True, type=click.Choice(["auto"]), expose_value=False),
    click.option("--ignore-encoder-mismatch", is_flag=True, help="Search an index that another encoder made."),
)


def _refuse_elsewhere(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        module = next(m for m, (flags, valued) in ELSEWHERE.items() if parameter.opts[0] in flags + valued)
        raise click.UsageError(f"{parameter.opts[0]} is not offered here; use `python -m {module} {parameter.opts[0]} ...`")


def _hidden_options(function: Any) -> Any:
    for flags, valued in ELSEWHERE.values():
        for name in flags:
            option = click.option(name, is_flag=True, hidden=True, expose_value=False, callback=_refuse_elsewhere)
            function = option(function)
        for name in valued:
            function = click.option(name, hidden=True, expose_value=False, callback=_refuse_elsewhere)(function)
    return function


@command(
    name="search",
    example="python -m pyserini_kd.search --encoder student",
    epilog="""\b
More: pyserini-kd search --index indexes/docs.student --encoder models/student --topics test.tsv --output run.txt
      pyserini-kd search --encoder bm25 --index indexes/docs.bm25 --topics test.tsv --qrels test.qrels
      pyserini-kd search --encoder student --query "merge two sorted arrays" """,
)
@stage_options
@click.option("--topics", help="A file, ir_datasets:<id>, a Pyserini topic set [default: pydocs:test].")
@click.option("--query", help="Search one query typed here and show the hits.")
@click.option("--explain", is_flag=True, help="With --query: each hit's rank and score in every stage.")
@click.option("--qrels", help="Print measures at the end: a file, ir_datasets:<id> or pydocs:SPLIT.")
@click.option("--output", type=click.Path(path_type=Path), help="Run to write [default: under runs/].")
@click.option("--output-format", default="trec", type=click.Choice(["trec", "msmarco"]), help="Run format.")
@click.option("--runtag", help="[default: the encoder's name]")
@click.option("--hits", type=click.IntRange(1, (1 << 31) - 1), help="Hits a query [default: 1000, with --query 10].")
@click.option("--query-cache", metavar="DIR", help="Folder that keeps query vectors: each query is encoded once.")
@click.option("--remove-query", is_flag=True, help="Drop the document whose id is the query's.")
@click.option("--max-passage", is_flag=True, help="Bring passages back as documents, each with its best passage's score.")
@click.option("--max-passage-hits", default=100, type=click.IntRange(1), help="With --max-passage: documents a query.")
@click.option("--max-passage-delimiter", default="#", help="What ends the document's id in a passage's.")
@model_options
@click.option("--ir-metadata", is_flag=True, help="Begin the run with ir_metadata comments (trec_eval does not know them).")
@click.option("--overwrite", is_flag=True, help="Replace --output if it exists.")
@_hidden_options
def main(bm25_flag: bool, hits: int | None, fusion: str | None, **options: Any) -> None:
    """Search sparse, dense or hybrid, rerank, write a TREC run, print measures.

    With `--encoder student` and nothing else: prepares what is missing of the embedded default and searches it.
    """
    if bm25_flag:
        options["encoder"] = "bm25"
    hits = hits or (QUERY_HITS if options["query"] is not None else 1000)
    settings = Settings(hits=hits, fusion=fusion or "rrf", **options)
    refuse_contradictions(settings, fusion)
    if settings.output:
        refuse_existing_run(settings.output, settings.overwrite)
    settings = with_defaults(settings)
    if not settings.output and settings.query is None:
        refuse_existing_run(_default_output(settings), overwrite=True)
    started = time.monotonic()
    queries = _queries(settings)
    judged = _judged(settings, queries)
    from pyserini_kd.retrieval import dense_search

    dense_search.warn_blank(queries)
    stages: dict[str, Run] | None = {} if settings.explain else None
    begun = time.monotonic()
    opened = open_all(settings, texts=settings.query is not None)
    opening: dict[str, Any] = {"open_seconds": round(time.monotonic() - begun, 3)}
    if opened.encoder is not None:
        opening["precision"] = engine.precision_of(opened.encoder, settings.precision)
    with _unfinished(settings, opened) as work:
        opening |= {"resumed": True} if work is not None and work.exists() else {}
        run, timing = search(settings, opened, queries, stages, work)
        timing = opening | timing
        if settings.query is not None:
            _show(settings, opened.fetch, run, stages or {})
            if settings.explain:
                click.echo(", ".join(f"{name} {value}" for name, value in timing.items()))
            if not settings.output:
                return
        _finish(settings, run, judged, {"seconds": round(time.monotonic() - started, 2), **timing})


def _unfinished(settings: Settings, opened: Opened) -> contextlib.AbstractContextManager[Path | None]:
    """Where the scores of a reranking are kept until the run of a topic file is written."""
    if not settings.rerank or settings.query is not None:
        return contextlib.nullcontext()
    from pyserini_kd.models import checkpoint_names
    from pyserini_kd.retrieval import reranking

    own: dict[str, Any] = {"precision": settings.precision, "batch_size": settings.batch_size}
    output = settings.output or _default_output(settings)
    return reranking.unfinished(output, opened.reranker, checkpoint_names.resolve(settings.rerank), **own)


def with_defaults(settings: Settings) -> Settings:
    """Fill in the embedded default where no index is named; a bare search for `student` prepares what is missing."""
    if settings.index:
        if settings.topics is None and settings.query is None:
            raise InputError("--topics (or --query) is needed with --index")
        return settings
    if settings.topics and not sources.is_pydocs(settings.topics):
        raise InputError("--index is needed with --topics")
    index = home() / "indexes" / f"{EMBEDDED}.{Path(settings.encoder).name}"
    if settings.encoder == "student" and settings.query is not None and not index.exists():
        raise InputError("the embedded student is not there yet; `python -m pyserini_kd.search --encoder student` prepares it")
    if settings.encoder == "student":
        from pyserini_kd.distillation import embedded

        embedded.prepare()
    elif not index.exists():
        raise InputError(
            f"no index given and {index} is not there; make it: pyserini-kd index --collection {EMBEDDED} "
            f"--encoder {settings.encoder} --index {index}"
        )
    topics = settings.topics or (None if settings.query is not None else f"{EMBEDDED}:test")
    qrels = settings.qrels or topics
    return dataclasses.replace(settings, index=str(index), topics=topics, qrels=qrels)


def _queries(settings: Settings) -> list[Query]:
    if settings.query is not None:
        if not settings.query.strip():
            raise InputError("--query is blank")
        return [Query("1", " ".join(settings.query.split()))]
    return sources.topics(settings.topics or "")


def _judged(settings: Settings, queries: list[Query]) -> Qrels | None:
    """Qrels, read before the search, so that a wrong file costs no search."""
    if not settings.qrels or settings.query is not None:
        return None
    judged = sources.qrels(settings.qrels)
    if not any(query.query_id in judged for query in queries):
        raise InputError(f"qrels {settings.qrels} and topics {settings.topics} share no query")
    return judged


def _show(settings: Settings, fetch: Fetch | None, run: Run, stages: dict[str, Run]) -> None:
    """Print the hits of one query: rank, score, id, title, the best piece of the text, the query's words bold on a terminal."""
    hits = run["1"]
    try:
        docs = {doc.doc_id: doc for doc in fetch(hits.doc_ids)} if fetch else {}
    except InputError as error:  # an index without stored texts: ids and scores are still an answer
        logger.warning("no texts to show: %s", error)
        docs = {}
    wanted = snippet.stems(settings.query or "")
    indent = " " * 16
    width = min(max(shutil.get_terminal_size((126, 24)).columns, 60), 160) - len(indent)

    def bold(text: str) -> str:
        return snippet.mark(text, wanted, lambda word: click.style(word, bold=True))

    for rank, (doc_id, score) in enumerate(zip(hits.doc_ids, hits.scores.tolist(), strict=True), start=1):
        doc = docs.get(doc_id)
        title = f"  {bold(snippet.plain(doc.title))}" if doc and doc.title else ""
        click.echo(f"{rank:3}  {score:9.4f}  {snippet.plain(doc_id)}{title}")
        if doc:
            click.echo(f"{indent}{bold(snippet.snippet(doc.text, wanted, width))}")
        if stages:
            places = (_place(name, stages[stage], doc_id) for stage, name in STAGES.items() if stage in stages)
            click.echo(f"{indent}{'  '.join(places)}")
    if not hits.doc_ids:
        click.echo("no hits")


def _place(name: str, stage: Run, doc_id: str) -> str:
    """Where a stage put a document: `BM25 3 (12.4103)`, or `BM25 -` where it did not find it."""
    doc_ids, scores = stage["1"]
    if doc_id not in doc_ids:
        return f"{name} -"
    row = doc_ids.index(doc_id)
    return f"{name} {row + 1} ({scores[row]:.4f})"


def _finish(settings: Settings, run: Run, judged: Qrels | None, timing: dict[str, Any]) -> None:
    """Write the run and its record, print measures."""
    output = settings.output or _default_output(settings)
    comments = _ir_metadata(settings, run.tag) if settings.ir_metadata else []
    overwrite = settings.overwrite or settings.output is None
    begun = time.monotonic()
    run.write(output, output_format=settings.output_format, overwrite=overwrite, comments=comments)
    timing["write_seconds"] = round(time.monotonic() - begun, 3)
    click.echo(f"{output}: {len(run)} queries, {run.n_hits} lines, {timing['seconds']} s")
    record: dict[str, Any] = {"config": dataclasses.asdict(settings) | {"output": str(output)}, **timing}
    if settings.encoder != "bm25":
        from pyserini_kd.models import checkpoint_names

        record["encoder_sha256"] = checkpoint_names.fingerprint(checkpoint_names.resolve(settings.encoder))
    if judged is not None:
        from pyserini_kd.evaluation import caveats, engines, tables

        for line in caveats.of_run(run, judged):
            logger.warning("%s: %s", output, line)
        means = {m: engines.mean(values) for m, values in engines.evaluate(run, judged, MEASURES).items()}
        click.echo(tables.table(["run", *means], [[run.tag, *means.values()]]))
        record |= {"measures": means, "engine": engines.choose_engine(run)}
    write_record(output, **record)


def _ir_metadata(settings: Settings, tag: str) -> list[str]:
    stages = {"index": settings.index, "encoder": settings.encoder}
    stages |= {"sparse index": settings.sparse_index, "reranker": settings.rerank}
    return ir_metadata(tag, stages, {"topics": settings.topics, "qrels": settings.qrels})


def _default_output(settings: Settings) -> Path:
    topics = "query" if settings.query is not None else sources.short_name(settings.topics or "").removeprefix(f"{EMBEDDED}-")
    system = default_tag(settings.encoder)
    collection = Path(settings.index or "").name.removesuffix(f".{system}")
    if settings.sparse_index:
        system += f"+bm25-{settings.fusion}"
    if settings.rerank:
        system += f"+{default_tag(settings.rerank)}"
    return home() / "runs" / f"run.{collection}.{system}.{topics}.txt"


if __name__ == "__main__":
    main()
