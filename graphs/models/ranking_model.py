"""The base class of all ranking models: a config, named logits, and Hugging Face persistence."""

from __future__ import annotations

import copy
import fnmatch
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from graphs.base import config as config_file
from graphs.base.errors import UgsepError
from graphs.base.features import Feature
from graphs.base.limits import MAX_LAYERS, MAX_SIZE, MAX_TOKENS, check_module_name, check_range
from graphs.base.scratch import scratch_folder
from graphs.layers.parameter_counts import Counts
from graphs.models.memory import check_parameters


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Settings of every architecture.

    ``user_tokens`` is n, ``item_tokens`` is m (the U and G tokens of UG-Sep, 2602.10455). ``ug_sep=False`` gives the
    paper's unmasked original on the same tokens; ``compensation`` adds a projection of the user rows to the item rows
    (UG-Sep, information compensation).

    Raises:
        UgsepError: a size out of range, no task, a repeated or invalid name, or a side without features.
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
        check_range(1, MAX_SIZE, self, "width", "tower")
        check_range(1, MAX_LAYERS, self, "layers")
        check_range(1, MAX_TOKENS, self, "user_tokens", "item_tokens")
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise UgsepError(f"tasks are {list(self.tasks)}; give one or more distinct names")
        for task in self.tasks:
            check_module_name(task, "task", "rename it")
        names = [f.name for f in self.features]
        if len(set(names)) != len(names):
            raise UgsepError(
                f"features are named twice: {sorted({n for n in names if names.count(n) > 1})}; rename one"
            )
        for side in ("user", "item"):
            if not any(f.side == side for f in self.features):
                raise UgsepError(f"features has none of side '{side}'; each side needs at least one")

    @property
    def tokens(self) -> int:
        """Number of tokens T = n + m before the first layer."""
        return self.user_tokens + self.item_tokens

    @property
    def table_width(self) -> int:
        """Width of the embedding tables: ``embedding_width`` of the architectures that have one, else ``width``."""
        return int(getattr(self, "embedding_width", self.width))

    def sides(self) -> tuple[int, int]:
        """Return (user, item) token counts before the first layer; user is 0 when unmasked."""
        return (self.user_tokens, self.item_tokens) if self.ug_sep else (0, self.tokens)

    def counts(self) -> Counts:
        """Return parameters and FLOPs of both sides by formula, without embedding tables."""
        raise NotImplementedError(f"{type(self).__name__} must define counts")


def check_divides(field: str, value: int, divisor_field: str, divisor: int) -> None:
    """Reject a width that cannot be divided evenly.

    Raises:
        UgsepError: ``divisor`` does not divide ``value``; names both fields and the next larger value that works.
    """
    if value % divisor:
        works = -(-value // divisor) * divisor
        raise UgsepError(
            f"{field} {value} is not divisible by the {divisor} {divisor_field}; {field} = {works} works"
        )


class RankingModel(nn.Module, ModelHubMixin):
    """A ranking model: ``forward(features) -> {task: logits [N]}``, rows independent of each other.

    Subclasses set ``config_class`` and ``keep_float``, glob patterns of parameters that are never quantized to int8
    (routers, norms, logit heads). Parameters that match ``training_only`` are in checkpoints, but not in exported
    graphs.
    """

    config_class: ClassVar[type[ModelConfig]] = ModelConfig
    keep_float: ClassVar[tuple[str, ...]] = ("*norm*", "*router*", "heads.*.logit.*")
    training_only: ClassVar[tuple[str, ...]] = ("auxiliary_heads.*", "*.training_router.*")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        coder = (config_file.to_mapping, cls.config_from)
        super().__init_subclass__(coders={cls.config_class: coder}, library_name="ugsep", **kwargs)

    @classmethod
    def config_from(cls, values: dict[str, Any]) -> ModelConfig:
        """Return the config from a checkpoint's ``config.json``; raises UgsepError for an invalid setting."""
        plain = {k: v for k, v in values.items() if k != "architecture"}
        return config_file.parse(cls.config_class, plain, "config.json")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check_parameters(_table_parameters(config), config.counts().parameters)
        self.config = config

    @classmethod
    def architecture(cls) -> str:
        """Return the name of the architecture, that of its file in ``graphs/models``."""
        return cls.__module__.rsplit(".", 1)[-1].replace("_", "-")

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits [N] of every task from batch-first features."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def auxiliary_loss(self, labels: dict[str, Tensor] | None = None) -> Tensor:
        """Return the training-only loss of the last forward pass, a scalar; zero outside training.

        Sums the modules' ``auxiliary`` scalars. ``labels`` (task -> [N], 0 or 1) are needed by architectures that
        also train logits of their middle layers.
        """
        total = torch.zeros(())
        if self.training:
            for module in self.modules():
                left = getattr(module, "auxiliary", None)
                if isinstance(left, Tensor):
                    total = total + left
        return total

    def at_progress(self, fraction: float) -> None:
        """Update schedules after ``fraction`` (0..1) of the training steps."""
        del fraction

    def for_inference(self) -> Self:
        """Return the model to export, in eval mode, sharing its weights with this one.

        Every module with a method ``fold() -> nn.Module`` is replaced by the result: the same function with all that
        does not depend on the input precomputed, and without training-only modules.
        """
        folded = _folded(self)
        assert isinstance(folded, type(self))
        return folded.eval()

    def dense_parameters(self) -> int:
        """Return the number of parameters without embedding tables and training-only ones."""
        left_out = ("embedding.tables.*", *self.training_only)
        names = ((n, p.numel()) for n, p in self.named_parameters())
        return sum(size for n, size in names if not any(fnmatch.fnmatch(n, pattern) for pattern in left_out))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write ``config.json`` and ``model.safetensors``; a failed save leaves the old files untouched.

        What a killed save left beside them (``.saving-*``) is removed by the next one.
        ``options`` are those of ``huggingface_hub.ModelHubMixin.save_pretrained``.
        """
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        options["repo_id"] = options.get("repo_id") or target.name
        with scratch_folder(".saving-", target) as folder:
            result: str | None = super().save_pretrained(folder, **options)
            for file in sorted(folder.iterdir(), reverse=True):  # weights before config.json
                file.replace(target / file.name)
        return result

    def _save_pretrained(self, save_directory: Path) -> None:
        from graphs.checkpoint.weights import save_weights

        save_weights(self, save_directory / "model.safetensors")
        mapping = {"architecture": self.architecture(), **config_file.to_mapping(self.config)}
        config = save_directory / "config.json"
        config.write_text(json.dumps(mapping, indent=2, sort_keys=True) + "\n")
        shutil.copymode(config, save_directory / "model.safetensors")  # the library writes 0600, whatever the umask

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: ModelConfig | dict[str, Any] | None = None, **_: Any) -> Self:
        from graphs.checkpoint.weights import load_weights

        if config is None:
            raise UgsepError(f"{model_id}/config.json is missing; save the model with save_pretrained")
        # The mixin decodes by annotation, but postponed annotations are strings, so the mapping arrives undecoded.
        model = cls(cls.config_from(config) if isinstance(config, dict) else config)
        load_weights(model, Path(model_id))
        return model.eval()


def _folded(module: nn.Module) -> nn.Module:
    """Copy a module tree with shared parameters and every foldable module folded."""
    fold = getattr(module, "fold", None)
    if callable(fold):
        result = fold()
        assert isinstance(result, nn.Module)
        return result
    twin = copy.copy(module)
    twin._modules = {name: None if child is None else _folded(child) for name, child in module._modules.items()}
    return twin


def initialise(model: nn.Module, seed: int) -> None:
    """Initialise every parameter by the modules' ``reset_parameters`` from a seed, for ``INIT=random`` and tests."""
    torch.manual_seed(seed)
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def _table_parameters(config: ModelConfig) -> int:
    rows: dict[str, int] = {}
    for feature in config.features:
        if feature.kind != "dense":
            rows[feature.table_name] = max(rows.get(feature.table_name, 0), feature.vocab)
    return sum(rows.values()) * config.table_width
