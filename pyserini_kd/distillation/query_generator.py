"""Generate questions from documents with a seq2seq checkpoint, as doc2query (Nogueira et al. 2019) and GPL (2022) do."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from pyserini_kd.data.lines import one_line
from pyserini_kd.data.types import Doc
from pyserini_kd.distillation.made_queries import MadeQuery
from pyserini_kd.models import checkpoint_folder
from pyserini_kd.storage.arrays import chunks
from pyserini_kd.storage.errors import InputError

logger = logging.getLogger(__name__)

DOC_TOKENS, QUERY_TOKENS = 350, 64  # as GPL
TOP_K, TOP_P = 25, 0.95  # as GPL
BATCH = 16


def generate(name: str, docs: Sequence[Doc], per_doc: int, *, seed: int = 42, device: str = "cpu") -> list[MadeQuery]:
    """Sample `per_doc` questions for each document. Equal questions of a document count once.

    InputError if the checkpoint is not a seq2seq model.
    """
    import transformers

    folder = checkpoint_folder.resolve(name)
    try:
        with checkpoint_folder.quiet_transformers():
            model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True).eval().to(device)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise InputError(f"{name} is not a seq2seq checkpoint: {' '.join(str(error).split())[:150]}", "generator") from None
    transformers.set_seed(seed)
    made = dict.fromkeys(_sampled(model, tokenizer, docs, per_doc, device))
    logger.info("%s generated %d different questions for %d documents", name, len(made), len(docs))
    return list(made)


def _sampled(model: Any, tokenizer: Any, docs: Sequence[Doc], per_doc: int, device: str) -> Iterator[MadeQuery]:
    for batch in chunks(tqdm(docs, desc="generate questions", unit=" docs", disable=None), BATCH):
        inputs = tokenizer(
            [doc.contents for doc in batch], truncation=True, max_length=DOC_TOKENS, padding=True, return_tensors="pt"
        ).to(device)
        with torch.inference_mode():
            outputs = model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=QUERY_TOKENS,
                do_sample=True,
                top_k=TOP_K,
                top_p=TOP_P,
                num_return_sequences=per_doc,
            )
        for number, text in enumerate(tokenizer.batch_decode(outputs, skip_special_tokens=True)):
            if text.strip():
                yield MadeQuery(batch[number // per_doc].doc_id, "generated", one_line(text))
