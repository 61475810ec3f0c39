"""The report page of a distilled system: its runs of the held-out queries side by side."""

from collections.abc import Iterator

from pyserini_kd.distillation.system_choice import MEASURES, HeldOut
from pyserini_kd.distillation.system_config import DistillConfig
from pyserini_kd.distillation.system_plan import Folder
from pyserini_kd.evaluation import page
from pyserini_kd.evaluation.page import ReportConfig
from pyserini_kd.models import checkpoint_folder
from pyserini_kd.storage.arrays import count_numbers
from pyserini_kd.storage.manifest import Manifest

MADE_UP = (
    "Measured on made-up queries: titles and sentences taken out of the documents. Queries of real users may give other "
    "values; give them with --topics and --qrels."
)


def write(config: DistillConfig, held_out: HeldOut) -> str:
    """Write `report.html`; return a line about it."""
    at, paths = held_out.at, list(map(str, held_out.runs.values()))
    trainings = [at.model(name) for name in dict.fromkeys(("dense", *config.wanted))]
    settings = ReportConfig(
        runs=tuple(paths), qrels=str(at.queries.qrels("dev")), measures=MEASURES,
        baseline=paths[0], topics=str(at.queries.topics("dev")), collection=str(at.queries.docs),
        training=tuple(str(folder / "training.json") for folder in trainings if (folder / "training.json").exists()),
        notes=(*((MADE_UP,) if held_out.made_up else ()), *_sizes(config, at)), output=at.path / "report.html", overwrite=True,
    )  # fmt: skip
    return page.build(settings)[0]


def _sizes(config: DistillConfig, at: Folder) -> Iterator[str]:
    """Parameters of the teacher and of the students, and bytes of their indexes for each document."""
    models = {"teacher": checkpoint_folder.resolve(config.init)}
    models |= {folder.name: folder for name in ("dense", *config.scored) if (folder := at.model(name)).exists()}
    yield "Parameters: " + ", ".join(f"{name} {count_numbers(folder) / 1e6:.1f} million" for name, folder in models.items())
    documents = Manifest.find(at.index("dense")) or Manifest.find(at.index("bm25"))
    if documents is not None and documents.n_docs:
        sizes = {
            folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            for folder in sorted((at.path / "indexes").iterdir())
            if folder.is_dir()
        }
        yield "Bytes of an index for each document, its text included: " + ", ".join(
            f"{name} {size / documents.n_docs:,.0f}" for name, size in sizes.items()
        )
