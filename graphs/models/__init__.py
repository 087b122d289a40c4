"""One file per architecture, and the table that lists them."""

from graphs.models.pretrained import load_checkpoint
from graphs.models.ranking_model import ModelConfig, RankingModel
from graphs.models.table import architectures, model_class

__all__ = ["ModelConfig", "RankingModel", "architectures", "load_checkpoint", "model_class"]
