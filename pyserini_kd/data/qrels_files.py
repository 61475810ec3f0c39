"""Relevance judgements in files: TREC qrels and BEIR's TSV."""

from __future__ import annotations

from pathlib import Path

from pyserini_kd.data.lines import numbered_lines
from pyserini_kd.data.types import Qrels
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.files import atomic_file, require_file


def read_qrels(path: str | Path) -> Qrels:
    """Read TREC qrels (`qid 0 docid rel`) or BEIR's TSV with a header (`query-id corpus-id score`)."""
    path = require_file(path, "qrels file")
    qrels: Qrels = {}
    for where, line in numbered_lines(path, "qrels file"):
        fields = line.split()
        if where.endswith(":1") and fields[:1] == ["query-id"] and fields[-1] == "score":
            continue
        if len(fields) == 4:
            query_id, _, doc_id, relevance = fields
        elif len(fields) == 3:
            query_id, doc_id, relevance = fields
        else:
            raise InputError(f"{where}: expected `qid 0 docid relevance`, found {len(fields)} columns")
        try:
            grade = int(relevance if relevance.isascii() and "_" not in relevance else "")  # Python reads 1_0 as 10
        except ValueError:
            raise InputError(f"{where}: relevance must be a whole number, found {relevance!r}") from None
        if not -(1 << 31) <= grade < 1 << 31:
            raise InputError(f"{where}: relevance must fit into 32 bits, found {relevance}")
        judged = qrels.setdefault(query_id, {})
        if judged.setdefault(doc_id, grade) != grade:
            raise InputError(f"{where}: document {doc_id} is judged twice, differently, for query {query_id}")
    if not qrels:
        raise InputError(f"{path}: no judgements found")
    return qrels


def write_qrels(qrels: Qrels, path: str | Path, *, overwrite: bool = False) -> None:
    """Write TREC qrels."""
    with atomic_file(path, overwrite=overwrite) as out:
        for query_id, judged in qrels.items():
            out.writelines(f"{query_id} 0 {doc_id} {grade}\n" for doc_id, grade in judged.items())
