"""Show one query's hits on a terminal, each with the snippet that matches the query best."""

import itertools
import logging
import re
import shutil
from collections.abc import Callable, Mapping

import click

from pyserini_kd.data.runs import Hits, Run
from pyserini_kd.retrieval.text_sources import Fetch
from pyserini_kd.storage.errors import InputError

logger = logging.getLogger(__name__)

STAGES = {"sparse": "BM25", "dense": "dense", "fuse": "fused", "rerank": "reranked"}
INDENT = " " * 16
WORD = re.compile(r"[^\W_]+")
# Lucene's English stop words
STOP = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was "
    "will with".split()
)


def hits(query: str, found: Hits, fetch: Fetch | None, stages: Mapping[str, Run]) -> str:
    """Rank, score, id, title and best snippet of each hit; the query's words are bold on a terminal.

    `stages` has each stage's run of this query alone; if it is not empty, a line shows the hit's rank in each stage.
    """
    try:
        docs = {doc.doc_id: doc for doc in fetch(found.doc_ids)} if fetch else {}
    except InputError as error:  # without texts, ids and scores are still useful
        logger.warning("no texts to show: %s", error)
        docs = {}
    wanted = stems(query)
    width = min(max(shutil.get_terminal_size((126, 24)).columns, 60), 160) - len(INDENT)

    def bold(text: str) -> str:
        return mark(text, wanted, lambda word: click.style(word, bold=True))

    lines = []
    for rank, (doc_id, score) in enumerate(zip(found.doc_ids, found.scores.tolist(), strict=True), start=1):
        doc = docs.get(doc_id)
        title = f"  {bold(plain(doc.title))}" if doc and doc.title else ""
        lines.append(f"{rank:3}  {score:9.4f}  {plain(doc_id)}{title}")
        if doc:
            lines.append(f"{INDENT}{bold(snippet(doc.text, wanted, width))}")
        if stages:
            places = (_place(name, stages[stage], doc_id) for stage, name in STAGES.items() if stage in stages)
            lines.append(f"{INDENT}{'  '.join(places)}")
    return "\n".join(lines) or "no hits"


def _place(name: str, stage: Run, doc_id: str) -> str:
    """A document's rank in a stage, `BM25 3 (12.4103)`, or `BM25 -` if not found."""
    (ranking,) = stage.values()
    if doc_id not in ranking.doc_ids:
        return f"{name} -"
    row = ranking.doc_ids.index(doc_id)
    return f"{name} {row + 1} ({ranking.scores[row]:.4f})"


def stem(word: str) -> str:
    """A word without its English ending, approximately.

    >>> [stem(word) for word in ("Sorted", "sorting", "sorts", "queries", "query", "classes", "class", "merge", "merging")]
    ['sort', 'sort', 'sort', 'queri', 'queri', 'clas', 'clas', 'merg', 'merg']
    """
    word = re.sub(r"(?<=\w[^\Wsu])s$", "", word.lower())
    word = re.sub(r"(?<=\w{3})(?:ing|ed|e)$", "", word)
    word = re.sub(r"(?<=\w{2})y$", "i", word)
    return re.sub(r"(\w)\1$", r"\1", word)


def stems(query: str) -> set[str]:
    """Stems of a query's words, without stop words unless there are no others.

    >>> sorted(stems("the merge of two sorted arrays")), stems("to be")  == {"to", "be"}
    (['arrai', 'merg', 'sort', 'two'], True)
    """
    words = WORD.findall(query)
    return {stem(word) for word in words if word.lower() not in STOP} or {stem(word) for word in words}


def plain(text: str) -> str:
    r"""The text on one line, without terminal control characters.

    >>> plain("red \x1b[31malert\n  now")
    'red [31malert now'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def snippet(text: str, wanted: set[str], width: int = 110) -> str:
    """At most `width` characters around the window with most distinct query words; ties go to most words.

    >>> snippet("one two three four five six seven eight nine ten eleven twelve", {"seven"}, 36)
    '... five six seven eight nine ...'
    """
    text = plain(text)
    if len(text) <= width:
        return text
    room = width - len("...  ...")
    matches = [(match.start(), match.end(), stem(match.group())) for match in WORD.finditer(text)]
    matches = [match for match in matches if match[2] in wanted]
    start, end, most = 0, 0, (0, 0)
    for row, (begin, _, _) in enumerate(matches):
        near = list(itertools.takewhile(lambda match, begin=begin: match[1] - begin <= room, matches[row:]))  # type: ignore[misc]
        found = (len({word for _, _, word in near}), len(near))
        if found > most:
            start, end, most = begin, near[-1][1], found
    left = max(0, min(start - (room - (end - start)) // 2, len(text) - room))
    right = left + room
    if left and -1 < (space := text.find(" ", left - 1)) < start:  # begin and end with whole words
        left = space + 1
    if right < len(text) and (space := text.rfind(" ", left, right + 1)) > left and space >= end:
        right = space
    return ("... " if left else "") + text[left:right] + (" ..." if right < len(text) else "")


def mark(text: str, wanted: set[str], style: Callable[[str], str]) -> str:
    """The text with `style` applied to each word of the query.

    >>> mark("Sorting arrays is fun", stems("sort an array"), lambda word: f"*{word}*")
    '*Sorting* *arrays* is fun'
    """
    return WORD.sub(lambda match: style(match.group()) if stem(match.group()) in wanted else match.group(), text)
