"""Mine candidates, collect teacher scores and train students, or distil a whole search system from a collection."""

from typing import TYPE_CHECKING

from pyserini_kd.storage.exports import lazily

if TYPE_CHECKING:
    from pyserini_kd.distillation.config import TrainConfig
    from pyserini_kd.distillation.distilling import distill
    from pyserini_kd.distillation.mining import mine
    from pyserini_kd.distillation.recipes import RECIPES
    from pyserini_kd.distillation.teaching import Teacher, teach
    from pyserini_kd.distillation.training import train

_HOMES = {
    "RECIPES": "pyserini_kd.distillation.recipes",
    "Teacher": "pyserini_kd.distillation.teaching",
    "TrainConfig": "pyserini_kd.distillation.config",
    "distill": "pyserini_kd.distillation.distilling",
    "mine": "pyserini_kd.distillation.mining",
    "teach": "pyserini_kd.distillation.teaching",
    "train": "pyserini_kd.distillation.training",
}
__all__ = ["RECIPES", "Teacher", "TrainConfig", "distill", "mine", "teach", "train"]
__getattr__ = lazily(__name__, _HOMES)
