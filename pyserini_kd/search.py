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

from pyserini_kd import inference, passages, snippet, sources
from pyserini_kd.cli import command
from pyserini_kd.data import Qrels, Query
from pyserini_kd.files import InputError, home, read_json, refuse_existing_run, write_record
from pyserini_kd.runs import Run, check_tag, default_tag, ir_metadata

if TYPE_CHECKING:
    from pyserini_kd.dense_index import DenseIndex
    from pyserini_kd.models.bert_dot import BertDot
    from pyserini_kd.query_cache import QueryCache
    from pyserini_kd.rerank import Fetch, Source

logger = logging.getLogger(__name__)

MEASURES = ("RR@10", "nDCG@10", "AP", "R@100", "R@1000")
QUERY_HITS = 10
STAGES = {"sparse": "BM25", "dense": "dense", "fuse": "fused", "rerank": "reranked"}  # as --explain names them
RRF_K, ALPHA, DEPTH = 60, 0.5, 100  # where nothing else is said
FUSION_DEPTH = 1000  # hits of each run that fusion sees, at least
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The command's options, as click read them; those without a default are what `serve` takes too."""

    encoder: str
    index: str | None
    more_indexes: tuple[str, ...] = ()
    sparse_index: str | None
    fusion: str
    rrf_k: int
    alpha: float
    k1: float | None
    b: float | None
    rm3: bool
    rerank: str | None
    depth: int
    batch_size: int | None
    threads: int | None
    device: str
    precision: str
    backend: str = "auto"
    max_length: int | None
    ef_search: int | None
    nprobe: int | None = None
    mmap: bool = False
    pooling: str | None
    l2_norm: bool | None
    query_prefix: str | None
    doc_prefix: str | None
    ignore_encoder_mismatch: bool
    query_cache: str | None = None
    rerank_index: str | None = None
    hits: int = 1000
    topics: str | None = None
    query: str | None = None
    explain: bool = False
    qrels: str | None = None
    output: Path | None = None
    output_format: str = "trec"
    runtag: str | None = None
    remove_query: bool = False
    max_passage: bool = False
    max_passage_hits: int = 100
    max_passage_delimiter: str = "#"
    ir_metadata: bool = False
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a search holds in memory, loaded once for any number of queries; None where the settings need it not."""

    index: DenseIndex | None
    encoder: BertDot | None
    reranker: Any
    source: Source | None  # where the reranker takes documents from
    fetch: Fetch | None
    cache: QueryCache | None


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
    click.option("--precision", default="auto", type=click.Choice(list(inference.PRECISIONS)), help="Arithmetic."),
    click.option("--backend", default="auto", type=click.Choice(list(inference.BACKENDS)), help="What computes."),
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
    from pyserini_kd import retrieve

    retrieve.warn_blank(queries)
    stages: dict[str, Run] | None = {} if settings.explain else None
    begun = time.monotonic()
    opened = open_all(settings, texts=settings.query is not None)
    opening: dict[str, Any] = {"open_seconds": round(time.monotonic() - begun, 3)}
    if opened.encoder is not None:
        opening["precision"] = inference.precision_of(opened.encoder, settings.precision)
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
    from pyserini_kd import rerank
    from pyserini_kd.models import checkpoints

    own: dict[str, Any] = {"precision": settings.precision, "batch_size": settings.batch_size}
    output = settings.output or _default_output(settings)
    return rerank.unfinished(output, opened.reranker, checkpoints.resolve(settings.rerank), **own)


def refuse_contradictions(settings: Settings, fusion: str | None) -> None:
    """InputError where options do not go together; `fusion` as it was typed."""
    if settings.runtag is not None:
        check_tag(settings.runtag)
    sparse, both = settings.encoder == "bm25", bool(settings.sparse_index)
    only_dense = settings.more_indexes or settings.nprobe or settings.mmap or settings.query_cache
    own = (settings.max_length, settings.l2_norm, settings.query_prefix, settings.doc_prefix)
    encoding = any(value is not None for value in own)
    passages_set = settings.max_passage_hits != 100 or settings.max_passage_delimiter != "#"
    fused = settings.fusion if both and not sparse else None
    wrong = {
        "--fusion needs a dense --encoder and a --sparse-index": fusion and (sparse or not both),
        "--alpha is for --fusion interpolation": settings.alpha != ALPHA and fused != "interpolation",
        "--rrf.k is for --fusion rrf": settings.rrf_k != RRF_K and fused != "rrf",
        "--sparse-index, --ef-search and --pooling are for a dense --encoder": sparse
        and (both or settings.ef_search or settings.pooling),
        "--max-length, --l2-norm, --query-prefix and --doc-prefix are for a dense --encoder": sparse and encoding,
        "--device, --precision and --backend are for a dense --encoder or --rerank": sparse
        and not settings.rerank
        and (settings.device, settings.precision, settings.backend) != ("cpu", "auto", "auto"),
        "several --index, --nprobe, --mmap and --query-cache are for a dense --encoder": sparse and only_dense,
        "--rm3, --k1 and --b are for --encoder bm25 or a --sparse-index": not (sparse or both)
        and (settings.rm3 or settings.k1 is not None or settings.b is not None),
        "--rerank-index is for --rerank": settings.rerank_index and not settings.rerank,
        "--depth is for --rerank": settings.depth != DEPTH and not settings.rerank,
        "give --query or --topics, not both": settings.query is not None and settings.topics,
        "--explain needs a --query": settings.explain and settings.query is None,
        "--max-passage is for --topics; --query shows passages": settings.max_passage and settings.query is not None,
        "--max-passage-hits and --max-passage-delimiter need --max-passage": not settings.max_passage and passages_set,
        "--max-passage-delimiter is empty": not settings.max_passage_delimiter,
        "--ir-metadata is for --output-format trec": settings.ir_metadata and settings.output_format != "trec",
    }
    for message, found in wrong.items():
        if found:
            raise InputError(message)


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
        from pyserini_kd import embedded

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


def open_all(settings: Settings, *, texts: bool = False) -> Opened:
    """Load what the settings name: indexes, encoder, reranker; and with `texts` (or a reranker) the way to stored texts."""
    from pyserini_kd import lucene, rerank

    if settings.threads and (settings.encoder != "bm25" or settings.rerank):
        inference.use_threads(settings.threads)
    index = encoder = reranker = fetch = None
    source: Source | None = None
    if settings.encoder != "bm25":
        index, encoder = _open_dense(settings)
    if sparse_index := settings.index if settings.encoder == "bm25" else settings.sparse_index:
        lucene.open_searcher(sparse_index)  # kept by the room itself
        record = Path(sparse_index) / "manifest.json"
        if index is not None and record.is_file():
            passages.refuse_mixture((index.folder, index.manifest), (sparse_index, read_json(record, "manifest")))
    own: Any = {"device": settings.device, "precision": settings.precision, "backend": settings.backend}
    if texts or (settings.rerank and not settings.rerank_index):
        source = fetch = _fetch(settings, index)
    if settings.rerank and settings.rerank_index:
        reranker, source = rerank.open_source(settings.rerank, [settings.rerank_index], **own)
    elif settings.rerank:
        if fetch is None:
            raise InputError("--rerank needs texts: an index of ours that stores them, a --sparse-index, or a --rerank-index")
        reranker = inference.load(settings.rerank, **own)
    cache = None
    if encoder is not None and settings.query_cache:
        from pyserini_kd import query_cache

        cache = query_cache.QueryCache.of(settings.query_cache, encoder, settings.encoder, settings.precision)
    return Opened(index, encoder, reranker, source, fetch, cache)


def search(
    settings: Settings, opened: Opened, queries: list[Query], stages: dict[str, Run] | None = None, work: Path | None = None
) -> tuple[Run, dict[str, Any]]:
    """Retrieve, fuse and rerank as the settings say; the run and the seconds of each stage.

    `stages` takes their runs, `work` is the folder for a reranker's finished scores.
    """
    from pyserini_kd import fuse, lucene, rerank, retrieve

    index = settings.index or ""
    hits = settings.hits  # what comes out; the first stage goes deeper where something is fused or reranked
    deep = max(hits, FUSION_DEPTH if settings.sparse_index else 0, settings.depth if settings.rerank else 0)
    settings = dataclasses.replace(settings, hits=deep)
    tag = settings.runtag or default_tag(settings.encoder)
    timing: dict[str, Any] = {}

    def timed(stage: str, begun: float, result: Run) -> None:
        timing[f"{stage}_seconds"] = round(time.monotonic() - begun, 3)
        if stages is not None:
            stages[stage] = result

    def sparse(lucene_index: str) -> Run:
        begun = time.monotonic()
        threads = settings.threads or inference.threads()
        bm25: dict[str, Any] = {"k1": settings.k1, "b": settings.b, "rm3": settings.rm3}
        run = lucene.search(lucene_index, queries, hits=settings.hits, threads=threads, tag=tag, **bm25)
        timed("sparse", begun, run)
        return run

    if settings.encoder == "bm25":
        run = sparse(index)
    else:
        begun = time.monotonic()
        assert opened.index is not None and opened.encoder is not None
        run = retrieve.dense(
            opened.index,
            opened.encoder,
            queries,
            hits=settings.hits,
            ef_search=settings.ef_search,
            nprobe=settings.nprobe,
            precision=settings.precision,
            batch_size=settings.batch_size,
            cache=opened.cache,
            tag=tag,
        )
        timed("dense", begun, run)
        if settings.sparse_index:
            other = sparse(settings.sparse_index)
            begun = time.monotonic()
            if settings.fusion == "rrf":
                engine = "auto" if settings.topics else "fast"  # who waits for one query need not wait for trectools to load
                run = fuse.rrf([other, run], rrf_k=settings.rrf_k, k=deep, tag=tag, engine=engine)
                timing["fusion"] = f"sum of 1 / ({settings.rrf_k} + rank)"
            else:
                run = fuse.interpolation(other, run, alpha=settings.alpha, k=deep, tag=tag)
                timing["fusion"] = f"{settings.alpha} * sparse + {1 - settings.alpha:g} * dense, missing = 0"
            timed("fuse", begun, run)
    if settings.remove_query:
        run = run.without_query_docs(settings.max_passage_delimiter if settings.max_passage else None)
    if settings.rerank:
        begun = time.monotonic()
        assert opened.source is not None
        reranker = settings.runtag or default_tag(settings.rerank)
        run = rerank.rerank(
            run, opened.reranker, queries, opened.source, depth=settings.depth, precision=settings.precision,
            batch_size=settings.batch_size, tag=reranker, work=work,
        )  # fmt: skip
        timed("rerank", begun, run)
    run = run.top(hits)
    if settings.max_passage:
        run = passages.max_passage(run, settings.max_passage_hits, settings.max_passage_delimiter)
    return run, timing


def _open_dense(settings: Settings) -> tuple[DenseIndex, BertDot]:
    from pyserini_kd import lucene
    from pyserini_kd.dense_index import open_with_encoder

    named = [settings.index or "", *settings.more_indexes]
    return open_with_encoder(
        [name if Path(name).exists() else lucene.prebuilt_index(name, "FAISS") for name in named],
        settings.encoder,
        mmap=settings.mmap,
        device=settings.device,
        precision=settings.precision,
        backend=settings.backend,
        ignore_mismatch=settings.ignore_encoder_mismatch,
        pooling=settings.pooling,
        l2_norm=settings.l2_norm,
        query_prefix=settings.query_prefix,
        doc_prefix=settings.doc_prefix,
        max_query_len=settings.max_length,
    )


def _fetch(settings: Settings, index: DenseIndex | None) -> Fetch | None:
    """Where texts come from: our dense index, else the sparse one; None where neither is there to have them."""
    from pyserini_kd import rerank
    from pyserini_kd.dense_index import has_docs, stored_docs

    if settings.encoder == "bm25":
        return rerank.fetch_from(settings.index or "")
    folders = [Path(name) for name in (settings.index or "", *settings.more_indexes)]
    if has_docs(*folders):
        return stored_docs(*folders, known=index.doc_ids if index else None)
    return rerank.fetch_from(settings.sparse_index) if settings.sparse_index else None


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
        from pyserini_kd.models import checkpoints

        record["encoder_sha256"] = checkpoints.fingerprint(checkpoints.resolve(settings.encoder))
    if judged is not None:
        from pyserini_kd import caveats, evaluate, tables

        for line in caveats.of_run(run, judged):
            logger.warning("%s: %s", output, line)
        means = {m: evaluate.mean(values) for m, values in evaluate.evaluate(run, judged, MEASURES).items()}
        click.echo(tables.table(["run", *means], [[run.tag, *means.values()]]))
        record |= {"measures": means, "engine": evaluate.choose_engine(run)}
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
