"""Run a checkpoint's encoder by OpenVINO on a CPU.

There are as many workers as threads. Each worker has one thread and runs a batch of its own, so no worker waits for another,
and the number of workers does not change a result. Pooling, projections and heads are computed in fp32 outside the compiled
network: bf16 scores have two decimals and would tie.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyserini_kd.models import checkpoint_folder, hardware, openvino_files, pooling, sentence_folder
from pyserini_kd.models.checkpoint_folder import ColBertSettings, EncoderSettings, PreTtrSettings
from pyserini_kd.models.engine import Batch, Join, Network, Use, counted
from pyserini_kd.storage.arrays import Floats, Rows

if TYPE_CHECKING:
    import openvino

MOST, LEAST = 512, 128
"""Maximum and minimum number of tokens of a batch, padding included. Small batches keep all workers busy if texts are few."""
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoNetwork(Network):
    """A compiled encoder, and what is computed from its states."""

    backend = "openvino"

    def __init__(self, files: openvino_files.Files, precision: str) -> None:
        self.precision, self._architecture, self._width = precision, files.architecture, int(files.record["width"])
        self._settings = files.reader.settings
        self._head: dict[str, Floats] | None = None
        core = _core()
        model = core.read_model(files.folder / (openvino_files.INT8 if precision == "int8" else openvino_files.MODEL))
        self._top: Any = None
        self._top_lock = threading.Lock()
        if files.architecture == "cross_encoder":
            model, top = _cut(model)
            alone = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
            self._top = core.compile_model(top, "CPU", alone).create_infer_request()
        elif files.architecture in ("colbert", "prettr"):
            self._head = _head(files)
        self._dense = _dense(files) if files.architecture == "bert_dot" else []
        self._workers = _Workers(core, model, precision)
        self._upper: _Workers | None = None
        if files.architecture == "prettr":
            self._upper = _Workers(core, core.read_model(files.folder / openvino_files.UPPER), precision)

    @property
    def width(self) -> int:
        """H: length of a text vector or a token vector."""
        if self._architecture == "bert_dot" and isinstance(self._settings, EncoderSettings):
            return pooling.width(self._width, self._settings.pooling, self._dense)
        own = self._settings.width if isinstance(self._settings, ColBertSettings) else None
        return own or self._width

    def batch_size(self, longest: int) -> int:
        """Number of texts in a batch: four, or as many as fill LEAST tokens, but never more than fit into MOST tokens."""
        return max(1, min(MOST, max(LEAST, 4 * longest)) // longest)

    def run(self, batches: Iterable[tuple[list[int], Batch]], use: Use, kind: str | None) -> None:
        """Run batches on all workers."""
        first = self._first_position(kind)

        def finished(given: tuple[list[int], Rows], states: Floats) -> None:
            rows, mask = given
            use(rows, self._output(states, mask), mask)

        self._workers.run((((rows, counted(batch)), _complete(batch, kind, first)) for rows, batch in batches), finished)

    def _first_position(self, kind: str | None) -> int:
        """Position of the first token. A PreTTR's documents come after the longest query."""
        if isinstance(self._settings, PreTtrSettings) and kind == "doc":
            return self._settings.max_query_len + self._settings.masks
        return 0

    def _output(self, states: Floats, mask: Rows) -> Floats:
        """The architecture's output for states (N, T, H) and a mask of the tokens that count (N, T)."""
        settings = self._settings
        if self._top is not None:
            with self._top_lock:
                return np.array(self._top.infer({0: states})[0][:, 0])
        assert isinstance(settings, EncoderSettings)
        if self._architecture == "prettr":
            return states
        weights = mask.astype(np.float32)
        if self._architecture == "bert_dot":
            vectors: Floats = pooling.text_vectors(np, states, weights, settings.pooling, self._dense, settings.l2_norm)
            return vectors
        if self._head is not None:
            states = states @ self._head["weight"].T + self._head["bias"]
        states = pooling.unit(np, states) if settings.l2_norm else states
        return states * weights[..., None]

    def join(self, batches: Iterable[Join], use: Use) -> None:
        """Score documents with queries: a PreTTR's upper layers on all workers, or MaxSim of token vectors."""
        if self._upper is None:
            for rows, (query, *_), docs in batches:
                use(rows, _max_sim(query, docs), np.empty(0, np.int64))
            return
        assert self._head is not None
        weight = self._head["weight"][0]
        made = ((rows, _joined(queries, docs)) for rows, queries, docs in batches)
        self._upper.run(made, lambda rows, first: use(rows, first @ weight, np.empty(0, np.int64)))


@functools.cache
def _core() -> openvino.Core:
    """OpenVINO's library, opened once a process."""
    found: openvino.Core = openvino_files.library().Core()
    return found


class _Workers:
    """A compiled model with one request per thread. If several threads call `run`, they take turns."""

    def __init__(self, core: openvino.Core, model: openvino.Model, precision: str) -> None:
        count = hardware.threads()
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision], "NUM_STREAMS": count, "INFERENCE_NUM_THREADS": count,
            "ENABLE_CPU_PINNING": False,  # a pinned thread would wait for another program on its processor
        }  # fmt: skip
        compiled = core.compile_model(model, "CPU", settings)
        self._inputs = [given.get_any_name() for given in compiled.inputs]
        self._queue, self._lock = openvino_files.library().AsyncInferQueue(compiled, count), threading.Lock()

    def run(self, batches: Iterable[tuple[Any, dict[str, Any]]], finished: Any) -> None:
        """Run the model on the inputs of each item, and call `finished(item, output)` in any order."""

        def done(request: Any, given: tuple[Any, dict[str, Any]]) -> None:
            finished(given[0], request.get_output_tensor(0).data)

        with self._lock:
            self._queue.set_callback(done)
            for item, batch in batches:
                inputs = {name: batch[name] for name in self._inputs}
                self._queue.start_async(inputs, (item, inputs), share_inputs=True)
            self._queue.wait_all()


def _complete(batch: Batch, kind: str | None, first: int) -> dict[str, Any]:
    """A batch with token types and positions, where the model asks for them. A PreTTR's documents have type 1."""
    shape = batch["input_ids"].shape
    positions = np.broadcast_to(np.arange(first, first + shape[1]), shape).copy()
    return {"token_type_ids": np.full(shape, int(first > 0)), "position_ids": positions, **batch}


def _max_sim(query: Floats, docs: Sequence[Floats]) -> Floats:
    """MaxSim float32 (N,): sum over the query's tokens (T, H) of the best dot product with a token of each document (D, H)."""
    starts = np.cumsum([0, *(len(doc) for doc in docs[:-1])])
    similarity = query @ np.concatenate(docs).T
    best: Floats = np.maximum.reduceat(similarity, starts, axis=1)
    return best.sum(axis=0)


def _joined(queries: Sequence[Floats], docs: Sequence[Floats]) -> dict[str, Any]:
    """Inputs of a PreTTR's upper layers: the states of the query, followed by those of the document, and the mask."""
    length = max(len(query) + len(doc) for query, doc in zip(queries, docs, strict=True))
    states = np.zeros((len(docs), length, docs[0].shape[1]), np.float32)
    mask = np.zeros((len(docs), length), np.int64)
    for row, both in enumerate(zip(queries, docs, strict=True)):
        joined = np.concatenate(both)
        states[row, : len(joined)], mask[row, : len(joined)] = joined, 1
    return {"states": states, "attention_mask": mask}


def _cut(model: openvino.Model) -> tuple[openvino.Model, openvino.Model]:
    """Cut a classifier behind its last states: (tokens -> states, states -> logits)."""
    ov = openvino_files.library()
    ends = {name: result for result in model.get_results() for name in result.output(0).names}
    states, start = ends["last_hidden_state"].input_value(0), ov.opset13.parameter([-1, -1, -1], ov.Type.f32, "states")
    below = ov.Model([ends["last_hidden_state"]], model.get_parameters(), "encoder")
    for target in states.get_target_inputs():
        if target.get_node().get_type_name() != "Result":
            target.replace_source_output(start.output(0))
    return below, ov.Model([ends["logits"]], [start], "head")


def _dense(files: openvino_files.Files) -> list[pooling.Dense]:
    """The Dense layers behind a bi-encoder's pooling."""
    from safetensors.numpy import load_file

    if not (folders := sentence_folder.dense_folders(files.checkpoint)):
        return []
    tensors = load_file(files.folder / openvino_files.DENSE)
    names = [sentence_folder.activation_of(files.checkpoint, folder) for folder in folders]
    return [pooling.Dense(tensors[f"{n}.weight"], tensors.get(f"{n}.bias"), name) for n, name in enumerate(names)]


def _head(files: openvino_files.Files) -> dict[str, Floats] | None:
    """The tensors of a checkpoint's projection or last unit, float32; None if it has none."""
    from safetensors.numpy import load_file

    for path in (files.checkpoint / checkpoint_folder.HEAD, files.folder / checkpoint_folder.HEAD):
        if path.is_file():
            return {name: np.asarray(tensor, np.float32) for name, tensor in load_file(path).items()}
    return None
