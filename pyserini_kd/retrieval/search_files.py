"""The work of the command `search`: the embedded default, the search, its run and record."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pyserini_kd.data import sources
from pyserini_kd.data.run_files import ir_metadata
from pyserini_kd.data.runs import Run, default_tag
from pyserini_kd.data.types import Qrels, Query
from pyserini_kd.retrieval import reranking, searching
from pyserini_kd.retrieval.search_settings import SearchSettings, SystemSettings
from pyserini_kd.retrieval.system import System
from pyserini_kd.retrieval.text_sources import Fetch
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import home, require_path
from pyserini_kd.storage.records import refuse_existing_run

EMBEDDED = "pydocs"


class Searched(NamedTuple):
    """The result of a search."""

    run: Run
    judged: Qrels | None
    stages: dict[str, Run]  # the run of each stage, to explain hits
    fetch: Fetch | None  # source of texts, for a single query
    timing: dict[str, Any]  # seconds of each stage, precision and fusion
    record: dict[str, Any]  # of the written run; empty if none was written


def with_defaults(settings: SearchSettings, prepare: Callable[[], object]) -> SearchSettings:
    """Fill in the embedded default if no index is given; for topics and `student`, `prepare` makes missing parts first.

    InputError if the output exists, before anything is prepared.
    """
    if settings.output:
        refuse_existing_run(settings.output, settings.overwrite)
    if settings.index:
        if settings.topics is None and settings.query is None:
            raise InputError("`topics` (or `query`) is needed with `index`")
        return settings
    if settings.topics and not sources.is_pydocs(settings.topics):
        raise InputError("`index` is needed with these `topics`; the embedded index is for the topics of pydocs")
    index = embedded_index(settings, prepare if settings.query is None else None)
    topics = settings.topics or (None if settings.query is not None else f"{EMBEDDED}:test")
    return settings.but(index=(index,), topics=topics, qrels=settings.qrels or topics)


def embedded_index(settings: SystemSettings, prepare: Callable[[], object] | None = None) -> str:
    """The encoder's index of the embedded collection; `prepare` makes missing parts of the student first."""
    encoder = "bm25" if settings.is_sparse else settings.encoder
    index = home() / "indexes" / f"{EMBEDDED}.{Path(encoder).name}"
    if encoder == "student" and prepare:
        prepare()
    elif encoder == "student" and not index.exists():
        raise InputError("the embedded student does not exist yet; run `pyserini-kd demo` first (about 20 minutes on 2 cores)")
    elif not index.exists():
        fix = f"pyserini-kd index --collection {EMBEDDED} --encoder {encoder} --index {index}"
        raise InputError(f"no index given and {index} does not exist; create it: {fix}")
    return str(index)


def search_files(settings: SearchSettings) -> Searched:
    """Search and write the run, unless one query has no output; the caller writes the record.

    After a kill, the next search resumes a cross-encoder's reranking.
    """
    one_query = settings.query is not None
    output, overwrite = settings.output or _default_output(settings), settings.overwrite or settings.output is None
    if not one_query:
        refuse_existing_run(output, overwrite)
    started = time.monotonic()
    queries, judged = _read_inputs(settings)
    searching.warn_blank(queries)
    begun = time.monotonic()
    system = System.open(settings, texts=one_query, query_cache=settings.query_cache)
    timing: dict[str, Any] = {"open_seconds": round(time.monotonic() - begun, 3)}
    if system.encoder is not None:
        timing["precision"] = system.encoder.precision
    resumable = None if one_query else system.reranker
    stages: dict[str, Run] = {}
    with reranking.unfinished(output, resumable) if resumable else contextlib.nullcontext() as work:
        timing |= {"resumed": True} if work is not None and work.exists() else {}
        max_passage = (settings.max_passage_hits, settings.max_passage_delimiter) if settings.max_passage else None
        run, spent = system.search(
            queries, settings.n_hits, tag=settings.runtag, remove_query=settings.remove_query, max_passage=max_passage,
            one_query=one_query, stages=stages if settings.explain else None, work=work,
        )  # fmt: skip
        timing |= spent
        if one_query and not settings.output:
            return Searched(run, judged, stages, system.fetch, timing, {})
        seconds = round(time.monotonic() - started, 2)
        begun = time.monotonic()
        method = {"index": " ".join(settings.index), "encoder": settings.encoder}
        method |= {"sparse index": settings.sparse_index or "", "reranker": settings.rerank or ""}
        data = {"topics": settings.topics, "qrels": settings.qrels}
        comments = ir_metadata(run.tag, method, data) if settings.ir_metadata else []
        run.write(output, output_format=settings.output_format, overwrite=overwrite, comments=comments)
    written = {"write_seconds": round(time.monotonic() - begun, 3)}
    record = {"config": settings.model_dump(mode="json") | {"output": str(output)}, "seconds": seconds, **timing, **written}
    if system.encoder is not None:
        record["encoder_sha256"] = system.encoder.record()["sha256"]
    return Searched(run, judged, stages, system.fetch, timing, record)


def _read_inputs(settings: SearchSettings) -> tuple[list[Query], Qrels | None]:
    """Queries and judgements, read first so that a wrong file costs no search."""
    if settings.query is not None:
        return [Query("1", " ".join(settings.query.split()))], None
    for name in filter(None, (*settings.index, settings.sparse_index)):
        if "/" in name:  # no prebuilt index; topics can take a minute to read
            require_path(name, "index")
    queries = sources.topics(settings.topics or "")
    judged = sources.qrels(settings.qrels) if settings.qrels else None
    if judged is not None and not any(query.query_id in judged for query in queries):
        raise InputError(f"qrels {settings.qrels} and topics {settings.topics} share no query")
    return queries, judged


def _default_output(settings: SearchSettings) -> Path:
    """A file under runs/ named by collection, system and topics."""
    topics = "query" if settings.query is not None else sources.short_name(settings.topics or "").removeprefix(f"{EMBEDDED}-")
    system = default_tag("bm25" if settings.is_sparse else settings.encoder)
    collection = Path(settings.index[0] if settings.index else "").name.removesuffix(f".{system}")
    if settings.sparse_index:
        system += f"+bm25-{settings.fusion}"
    if settings.rerank:
        system += f"+{default_tag(settings.rerank)}"
    return home() / "runs" / f"run.{collection}.{system}.{topics}.txt"
