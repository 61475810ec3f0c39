"""Make training queries from documents: titles, sentences, key phrases, keywords, or questions from a generator.

A title or sentence that becomes a query is removed from its document. So the query has no copy of itself in the documents for
training, as a real query has none (the inverse cloze task of Lee et al. 2019, arXiv 1906.00300).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from pyserini_kd.data.ids import id_hash
from pyserini_kd.data.lines import one_line
from pyserini_kd.data.types import Doc

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

Kind = Literal["title", "sentence", "phrase", "keywords", "generated"]
KINDS: tuple[Kind, ...] = ("title", "sentence", "phrase", "keywords", "generated")
MEASURING: tuple[Kind, ...] = ("title", "sentence", "generated")
"""Kinds that may measure a system. The others are words of the document, so they would favour BM25."""

MIN_WORDS = 15  # words that a document must keep
SENTENCE_WORDS = (5, 40)
TITLE_WORDS = (3, 30)
N_KEYWORDS = 4
ENGLISH = 0.2  # share of English function words above which texts count as English; in four English collections .32 to .43

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[^\W_a-z])")
_WORD = r"(?u)\b[^\W\d_][\w'-]+\b"


class MadeQuery(NamedTuple):
    """A query made from a document."""

    doc_id: str
    kind: Kind
    text: str


class Found(NamedTuple):
    """What a collection holds, and the sampled documents.

    Attributes:
        docs: sampled documents, in the order of the collection.
        n_docs: documents in the collection.
        n_empty: documents without text.
        n_duplicates: documents with the text of an earlier document.
        words: mean number of words of the sampled documents.
        english: share of function words of English in the sampled documents.
    """

    docs: list[Doc]
    n_docs: int
    n_empty: int
    n_duplicates: int
    words: float
    english: float

    @property
    def is_english(self) -> bool:
        """Whether the sampled documents look English."""
        return self.english >= ENGLISH


def sample(docs: Iterable[Doc], size: int, seed: int = 42, always: Set[str] = frozenset()) -> Found:
    """Read a collection once and sample `size` distinct documents with text (reservoir sampling), and all ids in `always`."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    rng = np.random.default_rng(seed)
    kept, wanted, seen = list[tuple[int, Doc]](), list[tuple[int, Doc]](), set[int]()
    total = empty = duplicates = 0
    for doc in docs:
        total += 1
        text = one_line(doc.contents)
        if not text.strip():
            empty += 1
        elif doc.doc_id in always:
            wanted.append((total, doc))
        elif (key := id_hash(text)) in seen:
            duplicates += 1
        else:
            seen.add(key)
            if len(kept) < size:
                kept.append((total, doc))
            elif (place := int(rng.integers(len(seen)))) < size:
                kept[place] = (total, doc)
    sampled = [doc for _, doc in sorted(kept + wanted)]
    words = [doc.contents.lower().split() for doc in sampled]
    n_words = sum(map(len, words))
    english = sum(word in ENGLISH_STOP_WORDS for text in words for word in text) / max(1, n_words)
    return Found(sampled, total, empty, duplicates, n_words / max(1, len(sampled)), english)


def make(found: Found, *, remove: bool = True) -> tuple[list[Doc], list[MadeQuery]]:
    """Return the documents without the text of their titles and sentences that became queries, and the queries.

    With `remove` false, the documents stay as they are. A document gives at most one query of each kind. A short document
    keeps its text and gives fewer queries.
    """
    if not found.docs:
        return [], []
    queries, cut = list[MadeQuery](), list[Doc]()
    for doc, sentence in zip(found.docs, _salient_sentences(found), strict=True):
        title, n_words = one_line(doc.title), len(doc.text.split())
        if sentence and n_words - len(sentence.split()) >= MIN_WORDS:
            queries.append(MadeQuery(doc.doc_id, "sentence", one_line(sentence)))
            doc = doc._replace(text=doc.text.replace(sentence, " ", 1))
            n_words -= len(sentence.split())
        if _is_between(title, TITLE_WORDS) and n_words >= MIN_WORDS:
            queries.append(MadeQuery(doc.doc_id, "title", title))
            doc = doc._replace(title="")
        cut.append(doc)
    cut = cut if remove else found.docs
    return cut, [*queries, *_key_terms(cut, found.is_english)]


def _is_between(text: str, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= len(text.split()) <= bounds[1]


def sentences(text: str) -> list[str]:
    """Split a text into sentences of a length that suits a query.

    >>> sentences("BM25 ranks by words. The student ranks documents by their meaning. See Fig. 3.")
    ['The student ranks documents by their meaning.']
    """
    return [part for part in _SENTENCE_END.split(text) if _is_between(part, SENTENCE_WORDS)]


def _salient_sentences(found: Found) -> Iterator[str]:
    """Yield for each document its sentence with the largest cosine to the document; "" without a sentence."""
    parts = [sentences(doc.text) for doc in found.docs]
    vectorizer, vectors = _tf_idf([doc.contents for doc in found.docs], found.is_english, n_words=1)
    flat = [sentence for of_doc in parts for sentence in of_doc]
    rows = vectorizer.transform(flat or [""])
    first = 0
    for row, of_doc in enumerate(parts):
        if not of_doc:
            yield ""
            continue
        scores = (rows[first : first + len(of_doc)] @ vectors[row].T).toarray()[:, 0]
        yield of_doc[int(scores.argmax())]
        first += len(of_doc)


def _key_terms(docs: Sequence[Doc], is_english: bool) -> Iterator[MadeQuery]:
    """Yield the phrase and the keywords with the largest tf-idf weights of each document."""
    vectorizer, vectors = _tf_idf([doc.contents for doc in docs], is_english, n_words=3)
    names = vectorizer.get_feature_names_out()
    is_phrase = np.array([" " in name for name in names])
    for row, doc in enumerate(docs):
        own = slice(vectors.indptr[row], vectors.indptr[row + 1])
        terms, weights = vectors.indices[own], vectors.data[own]
        best = terms[np.lexsort((terms, -weights))]
        phrases, words = best[is_phrase[best]], best[~is_phrase[best]]
        if len(phrases):
            yield MadeQuery(doc.doc_id, "phrase", names[phrases[0]])
        if len(words) >= N_KEYWORDS:
            lowered = doc.contents.lower()
            chosen = sorted(names[words[:N_KEYWORDS]], key=lowered.find)
            yield MadeQuery(doc.doc_id, "keywords", " ".join(chosen))


def _tf_idf(texts: Sequence[str], is_english: bool, n_words: int) -> tuple[TfidfVectorizer, csr_matrix]:
    """Fit tf-idf of 1 to `n_words` words; return the vectorizer and the vectors (N, V) of the texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, n_words), min_df=2 if len(texts) > 50 else 1, token_pattern=_WORD, dtype=np.float32,
        stop_words="english" if is_english else None, max_df=1.0 if is_english else 0.2, max_features=300_000,
    )  # fmt: skip
    return vectorizer, vectorizer.fit_transform(texts)
