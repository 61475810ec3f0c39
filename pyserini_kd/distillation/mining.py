"""Mine candidates for training.

A group holds the positives of a query, then its negatives: hard negatives, sampled from runs, and documents of its block.
Queries of a block share their documents: in a block of 32, each query gets the positives of the 31 others as negatives. One
block makes one training batch, so each document is encoded once for all queries of the block.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from pydantic import model_validator
from tqdm import tqdm

from pyserini_kd.data import passages, sources
from pyserini_kd.data.ids import id_hash
from pyserini_kd.data.lines import one_line
from pyserini_kd.data.runs import Run
from pyserini_kd.data.types import Doc, Qrels, Query
from pyserini_kd.distillation.candidates import Group
from pyserini_kd.models import hardware
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import Collection, Fields, Overwrite, Segment, Settings, TrainingTopics, option

logger = logging.getLogger(__name__)


class Mined(NamedTuple):
    """Groups, and counts of omitted queries and documents by reason."""

    groups: list[Group]
    without_positive: int
    without_negative: int
    equal_to_positive: int


def left_out(mined: Mined) -> str:
    """Describe the omitted queries and documents in one line."""
    return (
        f"left out: {mined.without_positive} queries without a positive in the collection, "
        f"{mined.without_negative} without a negative, {mined.equal_to_positive} documents equal to a positive"
    )


def mine(
    queries: Sequence[Query],
    qrels: Qrels,
    runs: Sequence[Run],
    docs: Iterable[Doc],
    *,
    depth: int = 100,
    negatives: int = 1,
    shared: int = 0,
    seed: int = 42,
) -> Mined:
    """Sample candidates for every query with a positive (a document of grade 1 or above).

    `negatives` hard negatives per query come from the pooled top `depth` of all `runs`. `shared` queries form a block that
    shares its documents (0 or 1: no blocks). The collection `docs` is read once. Documents with the text of a positive are
    dropped and counted.
    """
    rng = np.random.default_rng(seed)
    positives = {q.query_id: [d for d, grade in qrels.get(q.query_id, {}).items() if grade > 0] for q in queries}
    pools = {
        q.query_id: sorted({d for run in runs if q.query_id in run for d in run[q.query_id].doc_ids[:depth]})
        for q in queries
        if positives[q.query_id]
    }
    wanted = {doc_id for ids in (*positives.values(), *pools.values()) for doc_id in ids}
    docs = tqdm(docs, desc="read collection", unit=" docs", disable=None)
    texts = {doc.doc_id: id_hash(one_line(doc.contents)) for doc in docs if doc.doc_id in wanted}
    positives = {query_id: [d for d in ids if d in texts] for query_id, ids in positives.items()}
    usable = [q.query_id for q in queries if positives[q.query_id]]
    usable = [usable[i] for i in rng.permutation(len(usable))]
    groups: list[Group] = []
    equal, without_negative = 0, 0
    size = max(1, shared)
    for block, start in enumerate(range(0, len(usable), size)):
        members = usable[start : start + size]
        for query_id in members:
            positive_texts = {texts[d] for d in positives[query_id]}
            judged = qrels[query_id]
            others = [d for other in members if other != query_id for d in positives[other]] if shared > 1 else []
            pool = [d for d in pools[query_id] if judged.get(d, 0) <= 0 and d in texts]
            same = {d for d in [*pool, *others] if texts[d] in positive_texts and judged.get(d, 0) <= 0}
            equal += len(same)
            pool = [d for d in pool if d not in same]
            hard = [pool[i] for i in sorted(rng.permutation(len(pool))[:negatives])]
            rest = [d for d in dict.fromkeys(others) if d not in same and judged.get(d, 0) <= 0 and d not in hard]
            if not hard and not rest:
                without_negative += 1
                continue
            doc_ids = [*positives[query_id], *hard, *rest]
            labels = [1] * len(positives[query_id]) + [0] * (len(hard) + len(rest))
            groups.append(Group(query_id, doc_ids, labels, block))
    return Mined(groups, len(queries) - len(usable), without_negative, equal)


def first_hits(runs: Sequence[Run]) -> Qrels:
    """Replace missing qrels: the first hit of each query, in the first run with one, becomes its positive."""
    return {query_id: {hits.doc_ids[0]: 1} for run in reversed(runs) for query_id, hits in run.items() if hits.doc_ids}


class MineConfig(Settings):
    """Sources of queries, judgements and negatives, and sample sizes."""

    collection: Collection[str | None] = None
    fields: Fields = None
    topics: TrainingTopics[str | None] = None
    qrels: str | None = option("--qrels", None, "Judgements of the topics: a file, ir_datasets:<id> or pydocs:train.")
    index: str | None = option("--index", None, "BM25 index for hard negatives: a folder or a prebuilt name.")
    runs: tuple[str, ...] = option("--runs --run", (), "Runs for hard negatives, instead of an index.", words=True)
    depth: int = option("--depth", 100, "Hard negatives come from this many top hits.", ge=1)
    negatives: int = option("--negatives", 1, "Hard negatives per query.", ge=0)
    shared: int = option("--shared", 0, "Queries in a block; they share their documents as negatives.", ge=0)
    segment: Segment = None
    seed: int = option("--seed", 42, "Random seed.", ge=0)
    texts: Path | None = option(
        "--triples", None, "Instead: triples of texts (triples.train.small.tsv); their topics and collection are written too."
    )
    output: Path = option("--output", help="Groups (.jsonl) or triples (.tsv) to write.")
    overwrite: Overwrite = False

    @model_validator(mode="after")
    def rules(self) -> Self:
        """Raise InputError for contradictory settings, before any data are read."""
        self.only("collection fields topics qrels index runs depth negatives shared segment seed", not self.texts,
                  "conflicts with `texts`, which have their negatives and texts")  # fmt: skip
        if self.texts:
            if not str(self.output).removesuffix(".gz").endswith(".tsv"):
                raise InputError(f"{self.output} must end in .tsv, because triples are written", "output")
            return self
        for name in ("collection", "topics"):
            if getattr(self, name) is None:
                raise InputError("missing; give it, or `texts` for triples of texts", name)
        has_runs = bool(self.index or self.runs)
        if self.index and self.runs:
            raise InputError("give an index or `runs`, not both", "index")
        if self.negatives and not has_runs:
            raise InputError("hard negatives need an `index` or `runs`; or set 0 and use `shared`", "negatives")
        if self.qrels is None and not has_runs:
            raise InputError("without judgements, an `index` or `runs` must give the documents to compare", "qrels")
        return self


def mine_files(config: MineConfig) -> Mined:
    """Mine candidates from files; InputError if there are none. Without qrels, the first hit of a query is its positive."""
    assert config.collection is not None and config.topics is not None
    queries = sources.topics(config.topics)
    judged = sources.qrels(config.qrels) if config.qrels else None
    if config.segment and judged:
        judged = passages.segment_qrels(judged, sources.collection(config.collection, config.segment, config.fields))
    docs = sources.collection(config.collection, config.segment, config.fields)
    runs = _runs(config, [q for q in queries if judged is None or q.query_id in judged])
    if judged is None:
        judged = first_hits(runs)
        logger.warning("no judgements: labels come from the first stage; train with a loss on teacher scores, not on labels")
    mined = mine(
        queries, judged, runs, docs,
        depth=config.depth, negatives=config.negatives, shared=config.shared, seed=config.seed,
    )  # fmt: skip
    if not mined.groups:
        if not any(query.query_id in judged for query in queries):
            raise InputError(f"qrels {config.qrels} and topics {config.topics} share no query")
        more = "; set `negatives` or `shared`" if not (config.negatives or config.shared) else ""
        raise InputError(f"no query has both a positive in the collection and a negative{more}")
    return mined


def _runs(config: MineConfig, queries: Sequence[Query]) -> list[Run]:
    """Return the runs for hard negatives; InputError if they are not cut into passages as the candidates are."""
    if config.index:
        from pyserini_kd.retrieval import bm25_search

        runs = [bm25_search.search(config.index, queries, hits=config.depth, threads=hardware.threads())]
    else:
        runs = [Run.read(run) for run in config.runs]
    hits = [doc_id for run in runs for hits in run.values() for doc_id in hits.doc_ids] if config.segment else []
    if runs and config.segment and not any("#" in doc_id for doc_id in hits):
        raise InputError(f"{config.segment}: negatives are whole documents, not passages `docid#n`; use an index or runs with "
                         f"the same segments", "segment")  # fmt: skip
    return runs
