"""Export a checkpoint to ONNX beside its weights, and in int8, with a report of what that costs in effectiveness.

The folder stays a checkpoint that transformers and sentence-transformers load; `onnx/` is added, where their tools look for it.
int8 is dynamic quantisation of the matrix products: weights per output channel, activations when they are computed.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from pyserini_kd import evaluate, inference, rerank, sources
from pyserini_kd.cli import command
from pyserini_kd.data import Doc, Qrels, Query
from pyserini_kd.files import InputError, atomic_folder, command_line, environment, refuse_existing, sha256, write_json
from pyserini_kd.models import checkpoints
from pyserini_kd.runs import Run

logger = logging.getLogger(__name__)

MEASURE = "nDCG@10"
WORST_CORRELATION, WORST_CHANGE = 0.99, 0.005  # of int8 scores with fp32's; of nDCG@10: beyond them a report is a warning
WORST_FP32 = 1e-3  # largest difference between the fp32 file's outputs and torch's
OPSET = 17
CHECK_TEXTS = (
    "sort an array in place",
    "How to merge two sorted lists without building a third one?",
    "Return the indices of the elements that are not zero, one array a dimension, in row-major order.",
    "The cat sat on the mat while the dog slept in the barn, and neither of them noticed the horse.",
    "In 1905 Einstein published four papers, on the photoelectric effect, Brownian motion, special relativity and mass.",
    "BM25",
)

Floats = npt.NDArray[np.float32]


def export(name: str, folder: str | Path, *, int8: bool = False, overwrite: bool = False) -> Path:
    """Write a copy of a checkpoint folder with `onnx/model.onnx`, and with `onnx/model_int8.onnx` if asked for.

    Raises:
        InputError: the architecture has no ONNX form, the packages are missing, or the files do not give the model's outputs.
    """
    from pyserini_kd.models import onnx

    source, folder = checkpoints.resolve(name), Path(folder)
    architecture = checkpoints.architecture_of(source)
    if architecture not in checkpoints.ONNX_ARCHITECTURES or checkpoints.is_published(source, architecture):
        known = " and ".join(checkpoints.ONNX_ARCHITECTURES)
        raise InputError(f"{name} is a {architecture}; only {known} checkpoints of ours or of transformers can be exported")
    _require_onnx()
    model = checkpoints.load(name)
    flags = inference.cpu_flags()
    quantised = {"weights": "int8 per channel", "activations": "uint8, dynamic", "reduce_range": not onnx.has_vnni(flags)}
    with atomic_folder(folder, overwrite=overwrite) as partial:
        unwanted = shutil.ignore_patterns(onnx.FOLDER, "openvino", "*.h5", "*.msgpack", "*.ot", ".*")
        shutil.copytree(source, partial, ignore=unwanted, dirs_exist_ok=True)
        files = partial / onnx.FOLDER
        files.mkdir()
        with _quiet():
            _write_fp32(model, files / onnx.FILES["fp32"])
            if int8:
                _write_int8(files / onnx.FILES["fp32"], files / onnx.FILES["int8"], quantised["reduce_range"] is True)
        record: dict[str, Any] = {"encoder": {"name": source.name, "sha256": checkpoints.fingerprint(source)}}
        record |= {"architecture": architecture, "opset": OPSET, **(quantised if int8 else {})}
        record |= {"sha256": {path.name: sha256(path) for path in sorted(files.glob("*.onnx"))}}
        write_json(files / onnx.RECORD, record | {"command": command_line(), **environment()})
        _check(model, partial, int8)
    checkpoints.resolve.cache_clear()
    return folder


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise InputError("exporting needs the package onnx: pip install 'pyserini-kd[onnx]'") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep advice about exporters and quantisers to ourselves."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


def _write_fp32(model: Any, path: Path) -> None:
    """The encoder or classifier as an ONNX graph of standard operators, free in batch and sequence."""
    import torch

    inner = model.classifier if model.architecture == "cross_encoder" else model.encoder
    output = "logits" if model.architecture == "cross_encoder" else "last_hidden_state"
    inner.set_attn_implementation("eager")
    known = set(inspect.signature(inner.forward).parameters) & set(model.tokenizer.model_input_names)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if "token_type_ids" in known else [])]

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.inner(**dict(zip(names, tensors, strict=True)))[output]
            return found

    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    given = {"input_ids": mask * 5, "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}
    axes = {name: {0: "batch", 1: "sequence"} for name in (*names, "last_hidden_state")} | {"logits": {0: "batch"}}
    torch.onnx.export(
        Plain().eval(),
        tuple(given[name] for name in names),
        str(path),
        input_names=names,
        output_names=[output],
        dynamic_axes={name: axes[name] for name in (*names, output)},
        opset_version=OPSET,
        dynamo=False,  # the newer exporter needs one package more, six times the time, and the quantiser stumbles over its file
    )


def _write_int8(source: Path, path: Path, reduce_range: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    settings: dict[str, Any] = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": reduce_range}
    quantize_dynamic(str(source), str(path), op_types_to_quantize=["MatMul"], **settings)


def _check(model: Any, folder: Path, int8: bool) -> None:
    """InputError where the fp32 file does not give the outputs of torch; a warning where int8 is far from them."""
    expected = _outputs(model)
    found = _outputs(checkpoints.load(str(folder), onnx="fp32"))
    worst = float(np.abs(found - expected).max())
    if not worst <= WORST_FP32 * max(1.0, float(np.abs(expected).max())):
        raise InputError(f"the ONNX file does not give the outputs of torch (they differ by {worst:.2g}); nothing was written")
    if int8:
        rough = _outputs(checkpoints.load(str(folder), onnx="int8"))
        correlation = float(np.corrcoef(rough.ravel(), expected.ravel())[0, 1])
        log = logger.info if correlation >= WORST_CORRELATION - 0.04 else logger.warning
        word = "" if correlation >= WORST_CORRELATION - 0.04 else "WARNING: int8 is far from fp32: "
        log("%soutputs in int8 correlate by %.4f with those in fp32 on %d texts", word, correlation, len(CHECK_TEXTS))


def _outputs(model: Any) -> Floats:
    """Vectors or scores of a few texts."""
    if model.architecture == "bert_dot":
        return inference.encode(model, CHECK_TEXTS, "doc", precision=_own(model))
    pairs = [(query, doc) for query in CHECK_TEXTS for doc in CHECK_TEXTS]
    return inference.score(model, [q for q, _ in pairs], [d for _, d in pairs], precision=_own(model))


def _own(model: Any) -> str:
    from pyserini_kd.models import onnx

    return "fp32" if onnx.module_in(model) is None else "auto"


# --------------------------------------------------------------------------------------------------------- report


def compare(before: Run, after: Run, qrels: Qrels) -> dict[str, float]:
    """How the scores of two rerankings of the same documents differ, and nDCG@10 of both.

    `kendall` is the mean over queries of tau-b between the two orders; `pearson` is over all pairs.
    """
    from scipy.stats import kendalltau

    columns: list[tuple[Floats, Floats]] = []
    for query_id, hits in before.items():
        other = dict(zip(after[query_id].doc_ids, after[query_id].scores.tolist(), strict=True))
        columns.append((hits.scores, np.array([other[doc_id] for doc_id in hits.doc_ids], np.float32)))
    fp32, int8 = (np.concatenate([column[side] for column in columns]) for side in (0, 1))
    taus = [float(kendalltau(a, b).statistic) for a, b in columns if len(a) > 1]
    effect = [evaluate.mean(evaluate.evaluate(run, qrels, [MEASURE])[MEASURE]) for run in (before, after)]
    return {
        "pairs": len(fp32),
        "largest difference": float(np.abs(fp32 - int8).max()),
        "mean difference": float(np.abs(fp32 - int8).mean()),
        "spread of scores (fp32)": float(fp32.std()),
        "pearson": float(np.corrcoef(fp32, int8)[0, 1]),
        "kendall": float(np.nanmean(taus)) if taus else float("nan"),
        f"{MEASURE} fp32": effect[0],
        f"{MEASURE} int8": effect[1],
    }


def quality(
    folder: Path, run: Run, queries: Sequence[Query], judged: Qrels, collection: str, depth: int
) -> dict[str, float]:
    """Rerank the top of a run by torch in fp32 and by ONNX Runtime in int8, and compare."""
    top = run.top(depth)
    wanted = list(dict.fromkeys(doc_id for hits in top.values() for doc_id in hits.doc_ids))
    texts = {doc.doc_id: doc for doc in rerank.fetch_from(collection)(wanted)}

    def fetch(doc_ids: Sequence[str]) -> Iterator[Doc]:
        return (texts[doc_id] for doc_id in doc_ids)

    runs = []
    for precision in ("fp32", "int8"):
        model = inference.load(str(folder), precision=precision, backend="onnx" if precision == "int8" else "torch")
        runs.append(rerank.rerank(top, model, queries, fetch, depth=depth, precision=precision))
    return compare(runs[0], runs[1], judged)


@command(
    name="export",
    example="pyserini-kd export --encoder models/reranker --output models/reranker-int8 --int8 --run run.bm25.txt "
    "--collection docs.jsonl --topics dev.tsv --qrels dev.qrels",
)
@click.option("--encoder", required=True, help="Checkpoint: name, folder or hub id; a bi-encoder or a cross-encoder.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Checkpoint folder to write.")
@click.option("--int8", is_flag=True, help="Add an int8 file, which --precision auto then takes on CPUs without AMX.")
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="With --int8: report the loss on this run's top.")
@click.option("--collection", help="The run's texts: a path, ir_datasets:<id>, pydocs, or an index that stores them.")
@click.option("--topics", help="The run's topics.")
@click.option("--qrels", help="Judgements, for nDCG@10 before and after.")
@click.option("--depth", default=100, type=click.IntRange(2), help="Documents a query in the report.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def main(
    encoder: str,
    output: Path,
    int8: bool,
    run_path: Path | None,
    collection: str | None,
    topics: str | None,
    qrels: str | None,
    depth: int,
    overwrite: bool,
) -> None:
    """Write a checkpoint with ONNX files, for --backend onnx and --precision int8."""
    refuse_existing(output, overwrite, folder=True)
    report = [run_path, collection, topics, qrels]
    if any(report) and not (int8 and all(report)):
        raise InputError("the report of what int8 costs needs --int8 with all of --run, --collection, --topics and --qrels")
    run = Run.read(run_path) if run_path else None
    queries = sources.topics(topics) if topics else []  # before the work: what is wrong with them is said at once
    judged = sources.qrels(qrels) if qrels else {}
    folder = export(encoder, output, int8=int8, overwrite=overwrite)
    sizes = [f"{path.relative_to(folder)} {path.stat().st_size / 2**20:.1f} MiB" for path in sorted(folder.glob("onnx/*.onnx"))]
    click.echo(f"{folder}: {', '.join(sizes)}")
    if run is None or collection is None:
        return
    found = quality(folder, run, queries, judged, collection, depth)
    write_json(folder / "onnx" / "quality.json", {"run": str(run_path), "topics": topics, "depth": depth, **found})
    for name, value in found.items():
        click.echo(f"{name:24} {value:.0f}" if name == "pairs" else f"{name:24} {value:.4f}")
    change = found[f"{MEASURE} int8"] - found[f"{MEASURE} fp32"]
    click.echo(f"{'change':24} {change:+.4f}")
    if found["pearson"] < WORST_CORRELATION or change < -WORST_CHANGE:
        logger.warning("WARNING: int8 costs too much here: use --precision fp32 with this checkpoint, or export without --int8")


if __name__ == "__main__":
    main()
