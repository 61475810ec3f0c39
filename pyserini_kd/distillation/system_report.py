"""The report page of a distilled system: its runs of the held-out queries side by side."""

from pathlib import Path

from pyserini_kd.distillation.system_choice import MEASURES, Chosen
from pyserini_kd.distillation.system_config import DistillConfig
from pyserini_kd.distillation.system_plan import Folder
from pyserini_kd.evaluation import page
from pyserini_kd.evaluation.page import ReportConfig

MADE_UP = (
    "Measured on made-up queries: titles and sentences taken out of the documents. Queries of real users may give other "
    "values; give them with --topics and --qrels."
)


def write(config: DistillConfig, at: Folder, chosen: Chosen) -> str:
    """Write `report.html`; return a line about it."""
    trainings = [at.work("vectors"), *(at.model(name) for name in config.wanted)]
    settings = ReportConfig(
        runs=tuple(map(str, chosen.runs)), qrels=str(at.queries.qrels("dev")), measures=MEASURES,
        baseline=str(chosen.runs[0]), topics=str(at.queries.topics("dev")), collection=str(at.queries.docs),
        training=tuple(str(folder / "training.json") for folder in trainings if (folder / "training.json").exists()),
        notes=() if config.qrels else (MADE_UP,), output=Path(config.output) / "report.html", overwrite=True,
    )  # fmt: skip
    return page.build(settings)[0]
