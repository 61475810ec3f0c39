"""The command `fuse`."""

import logging

from pyserini_kd.cli import command
from pyserini_kd.retrieval.fusion_files import FuseSettings, fuse_files
from pyserini_kd.retrieval.fusion_methods import METHODS

logger = logging.getLogger(__name__)


@command(
    "fuse",
    "fuse --runs run.bm25.txt run.student.txt --method rrf --output run.hybrid.txt",
    "\b\nrrf: sum of 1 / (k + rank). interpolation, average, normalize: as pyserini.fusion.\n"
    + "\n".join(f"{name}: {method.what}" for name, method in METHODS.items()),
    settings=FuseSettings,
)
def main(settings: FuseSettings) -> None:
    """Fuse runs into one."""
    done = fuse_files(settings)
    logger.info("fused %d runs by %s into %s (%d queries, %.1f s)", len(settings.runs), settings.method, settings.output, *done)


if __name__ == "__main__":
    main()
