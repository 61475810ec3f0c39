"""Show the hits of one query on a terminal."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping

import click

from pyserini_kd.data.runs import Hits, Run
from pyserini_kd.retrieval import snippet
from pyserini_kd.retrieval.text_sources import Fetch
from pyserini_kd.storage.errors import InputError

logger = logging.getLogger(__name__)

STAGES = {"sparse": "BM25", "dense": "dense", "fuse": "fused", "rerank": "reranked"}
INDENT = " " * 16


def hits(query: str, found: Hits, fetch: Fetch | None, stages: Mapping[str, Run]) -> str:
    """Rank, score, id, title and the best piece of the text of each hit; the query's words are bold on a terminal.

    `stages` has the run of each stage, of which the query is the only one; where it is not empty, a line says where each
    stage put the hit.
    """
    try:
        docs = {doc.doc_id: doc for doc in fetch(found.doc_ids)} if fetch else {}
    except InputError as error:  # an index without stored texts: ids and scores are still an answer
        logger.warning("no texts to show: %s", error)
        docs = {}
    wanted = snippet.stems(query)
    width = min(max(shutil.get_terminal_size((126, 24)).columns, 60), 160) - len(INDENT)

    def bold(text: str) -> str:
        return snippet.mark(text, wanted, lambda word: click.style(word, bold=True))

    lines = []
    for rank, (doc_id, score) in enumerate(zip(found.doc_ids, found.scores.tolist(), strict=True), start=1):
        doc = docs.get(doc_id)
        title = f"  {bold(snippet.plain(doc.title))}" if doc and doc.title else ""
        lines.append(f"{rank:3}  {score:9.4f}  {snippet.plain(doc_id)}{title}")
        if doc:
            lines.append(f"{INDENT}{bold(snippet.snippet(doc.text, wanted, width))}")
        if stages:
            places = (_place(name, stages[stage], doc_id) for stage, name in STAGES.items() if stage in stages)
            lines.append(f"{INDENT}{'  '.join(places)}")
    return "\n".join(lines) or "no hits"


def _place(name: str, stage: Run, doc_id: str) -> str:
    """Where a stage put a document: `BM25 3 (12.4103)`, or `BM25 -` where it did not find it."""
    (ranking,) = stage.values()
    if doc_id not in ranking.doc_ids:
        return f"{name} -"
    row = ranking.doc_ids.index(doc_id)
    return f"{name} {row + 1} ({ranking.scores[row]:.4f})"
