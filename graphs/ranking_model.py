"""The base of every ranking model here: a config, named logits, and Hugging Face persistence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from graphs import config as config_file
from graphs.errors import UgsepError
from graphs.features import Feature


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every architecture is told.

    ``user_tokens`` is n, ``item_tokens`` is m (models.md; the G tokens of UG-Sep 2602.10455).
    ``ug_sep=False`` gives the paper's unmasked original on the same tokens; ``compensation`` adds a
    projection of the user rows to the item rows (UG-Sep, information compensation).

    Raises:
        UgsepError: fewer than one token on a side, no task, or a side without features.
    """

    features: tuple[Feature, ...]
    tasks: tuple[str, ...] = ("like",)
    width: int = 128
    layers: int = 2
    user_tokens: int = 8
    item_tokens: int = 8
    ug_sep: bool = True
    compensation: bool = True
    tower: int = 64

    def __post_init__(self) -> None:
        for name in ("width", "layers", "user_tokens", "item_tokens", "tower"):
            if getattr(self, name) < 1:
                raise UgsepError(f"{name} is {getattr(self, name)}; give at least 1")
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise UgsepError(f"tasks are {list(self.tasks)}; name one or more different tasks")
        names = [f.name for f in self.features]
        if len(set(names)) != len(names):
            raise UgsepError(
                f"features are named twice: {sorted({n for n in names if names.count(n) > 1})}; rename one"
            )
        for side in ("user", "item"):
            if not any(f.side == side for f in self.features):
                raise UgsepError(f"features has none of side '{side}'; give at least one feature on each side")

    @property
    def tokens(self) -> int:
        """Number of tokens T = n + m before the first layer."""
        return self.user_tokens + self.item_tokens


class RankingModel(nn.Module, ModelHubMixin):
    """A ranking model: ``forward(features) -> {task: logits [N]}``, rows independent of each other.

    Subclasses set ``config_class`` and ``keep_float``, glob patterns of parameters that must stay out of
    int8 (routers, norms, logit heads). Training-only parts are read through ``auxiliary_loss`` and leave no
    trace in the exported graph.
    """

    config_class: ClassVar[type[ModelConfig]] = ModelConfig
    keep_float: ClassVar[tuple[str, ...]] = ("*norm*", "*router*", "heads.*.logit.*")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        coder = (config_file.to_mapping, cls._parse_config)
        super().__init_subclass__(coders={cls.config_class: coder}, library_name="ugsep", **kwargs)

    @classmethod
    def _parse_config(cls, values: dict[str, Any]) -> ModelConfig:
        plain = {k: v for k, v in values.items() if k != "architecture"}
        return config_file.parse(cls.config_class, plain, "config.json")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def architecture(cls) -> str:
        """Name of the architecture, the file name in ``graphs/models``."""
        return cls.__module__.rsplit(".", 1)[-1].replace("_", "-")

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits [N] of every task from batch-first features."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def auxiliary_loss(self) -> Tensor:
        """Return the training-only loss of the last forward pass, a scalar; zero where there is none."""
        return torch.zeros(())

    def _save_pretrained(self, save_directory: Path) -> None:
        from graphs.checkpoint import save_weights

        save_weights(self, save_directory / "model.safetensors")
        mapping = {"architecture": self.architecture(), **config_file.to_mapping(self.config)}
        (save_directory / "config.json").write_text(json.dumps(mapping, indent=2, sort_keys=True) + "\n")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: ModelConfig | None = None, **_: Any) -> Self:
        from graphs.checkpoint import load_weights

        if config is None:
            raise UgsepError(f"{model_id}/config.json is missing; save the model with save_pretrained")
        model = cls(config)
        load_weights(model, Path(model_id) / "model.safetensors")
        return model.eval()


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every parameter from a seeded generator, as the modules' own ``reset_parameters`` would.

    Only for ``INIT=random`` builds and tests: the weights carry no information.
    """
    torch.manual_seed(seed)
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
