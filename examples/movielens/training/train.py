"""Train a shipped architecture on the prepared requests and save it with its held-out metrics."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.movielens.data.download import sha256_of
from examples.movielens.data.prepare import validation_from
from examples.movielens.folders import replacing, source_hash
from examples.movielens.training.batches import RequestRows, read_features, read_rows, request_batches
from examples.movielens.training.metrics import auc, log_loss
from examples.movielens.training.recipe import Recipe, Training, model_config
from graphs.base.config import to_mapping
from graphs.base.progress import Progress, ProgressCallback, silent
from graphs.models.ranking_model import RankingModel
from graphs.models.table import model_class

METRICS = "metrics.json"
STEP = "train"


@dataclass(frozen=True)
class Score:
    """Quality on one set of rows, per task: AUC and log-loss in nats."""

    auc: dict[str, float]
    log_loss: dict[str, float]

    @property
    def mean_loss(self) -> float:
        """Log-loss averaged over the tasks."""
        return sum(self.log_loss.values()) / len(self.log_loss)


def checkpoint(
    name: str, recipe: Recipe, data: Path, out: Path, progress: ProgressCallback = silent
) -> dict[str, Any]:
    """Train the named architecture on ``data`` unless ``out`` is up to date, and return the metrics of ``out``.

    ``config.json``, ``model.safetensors`` and ``metrics.json`` are written to ``out`` atomically.

    Raises:
        UgsepError: unknown model, invalid settings, missing or malformed data, ``out`` not writable.
    """
    cls = model_class(name)
    features, tasks = read_features(data)
    config = model_config(cls, recipe, features, tasks)
    data_hash = hashlib.sha256()
    for file in ("features.json", "train.parquet", "test.parquet"):
        data_hash.update(sha256_of(data / file).encode())
    settings = {"config": to_mapping(config), "training": asdict(recipe.training), "torch": torch.__version__}
    key = {"model": name, "data_sha256": data_hash.hexdigest(), **settings}
    key["code_sha256"] = source_hash(__name__, cls.__module__)
    saved = _saved(out, key)
    if saved is not None:
        progress(Progress(STEP, 1, 1, "unchanged"))
        return saved
    rows = read_rows(data / "train.parquet", features, tasks)
    held_out = read_rows(data / "test.parquet", features, tasks)
    begin = time.monotonic()
    with fixed_threads(recipe.training.threads):
        torch.manual_seed(recipe.training.seed)
        model = cls(config)
        history = fit(model, rows, recipe.training, progress)
        test = evaluate(model, held_out, np.arange(held_out.requests), recipe.training.batch_rows)
    metrics = {
        "test": asdict(test),
        "validation": history,
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_sha256": parameters_hash(model),
        "seconds": round(time.monotonic() - begin, 1),
        **key,
    }
    with replacing(out) as fresh:
        model.save_pretrained(fresh)
        metrics["files"] = {f: sha256_of(fresh / f) for f in ("config.json", "model.safetensors")}
        (fresh / METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def fit(
    model: RankingModel, rows: RequestRows, training: Training, progress: ProgressCallback = silent
) -> list[dict[str, float]]:
    """Train ``model`` in place, restore the weights with the best validation log-loss, and return metrics per epoch.

    Batches are whole requests, reshuffled per epoch; the latest requests are held out for validation.
    """
    order = np.random.default_rng(training.seed)
    cut = validation_from(rows.requests)
    fitted, validation = np.arange(cut), np.arange(cut, rows.requests)
    optimizer = make_optimizer(model, training)
    peaks = [group["lr"] for group in optimizer.param_groups]
    per_epoch = sum(1 for _ in request_batches(rows, fitted, training.batch_rows))
    total = per_epoch * training.epochs
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    step = 0
    for epoch in range(training.epochs):
        model.train()
        inputs = forget_some(rows, training.forget, order)
        for batch in request_batches(rows, order.permutation(fitted), training.batch_rows):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(step, total, training.warmup)
            model.at_progress(step / total)
            loss = batch_loss(model, inputs, rows.labels, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
            nn.utils.clip_grad_norm_(model.parameters(), training.clip)
            optimizer.step()
            step += 1
            progress(Progress(STEP, min(step, total - 1), total, f"epoch {epoch + 1} of {training.epochs}"))
        score = evaluate(model, rows, validation, training.batch_rows)
        history.append(
            {"epoch": epoch + 1, "log_loss": score.mean_loss, **{f"auc_{t}": a for t, a in score.auc.items()}}
        )
        if score.mean_loss <= min(h["log_loss"] for h in history):
            best = {name: value.clone() for name, value in model.state_dict().items()}
        elif len(history) - 1 - int(np.argmin([h["log_loss"] for h in history])) >= training.patience:
            break
    model.load_state_dict(best)
    model.eval()
    progress(Progress(STEP, total, total, f"validation log-loss {min(h['log_loss'] for h in history):.4f}"))
    return history


def batch_loss(model: RankingModel, inputs: dict[str, Tensor], labels: dict[str, Tensor], batch: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over tasks plus the model's auxiliary loss; a scalar."""
    logits = model({name: value[batch] for name, value in inputs.items()})
    losses = [binary_cross_entropy_with_logits(logits[task], label[batch]) for task, label in labels.items()]
    return torch.stack(losses).mean() + model.auxiliary_loss({task: label[batch] for task, label in labels.items()})


def forget_some(rows: RequestRows, shares: dict[str, float], order: np.random.Generator) -> dict[str, Tensor]:
    """Return the inputs with the ids of some requests replaced by 0, so that the "unknown" embedding is trained."""
    inputs = dict(rows.features)
    sizes = torch.from_numpy(np.diff(rows.first))
    for name in sorted(shares):
        kept = torch.from_numpy(order.random(rows.requests) >= shares[name])
        inputs[name] = inputs[name] * kept.repeat_interleave(sizes)
    return inputs


def evaluate(model: RankingModel, rows: RequestRows, requests: np.ndarray[Any, Any], batch_rows: int) -> Score:
    """Score the given requests in eval mode."""
    model.eval()
    logits: dict[str, list[Tensor]] = {task: [] for task in rows.labels}
    with torch.inference_mode():
        for batch in request_batches(rows, requests, batch_rows):
            out = model({name: value[batch] for name, value in rows.features.items()})
            for task in logits:
                logits[task].append(out[task])
    chosen = rows.rows(requests)
    scored = {task: torch.cat(parts).numpy() for task, parts in logits.items()}
    reference = {task: label[chosen].numpy() for task, label in rows.labels.items()}
    return Score(
        auc={task: auc(reference[task], scored[task]) for task in scored},
        log_loss={task: log_loss(reference[task], scored[task]) for task in scored},
    )


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """Return AdamW with three groups: embedding tables, matrices, and vectors (biases, norms) without decay."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    embeddings = [p for p in parameters if id(p) in tables]
    matrices = [p for p in parameters if id(p) not in tables and p.ndim > 1]
    vectors = [p for p in parameters if id(p) not in tables and p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": embeddings, "lr": training.embedding_lr, "weight_decay": training.embedding_decay},
        {"params": matrices, "lr": training.lr, "weight_decay": training.decay},
        {"params": vectors, "lr": training.lr, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]])


def schedule(step: int, total: int, warmup: float) -> float:
    """Return the factor of the learning rate: linear warm-up over the share ``warmup``, then cosine decay to 0."""
    rise = max(1.0, warmup * total)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, total - rise)))


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Run with ``threads`` torch threads: sums are split by thread, so weights depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parameters_hash(model: nn.Module) -> str:
    """Return the SHA-256 of names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _saved(out: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """Return the metrics of the checkpoint at ``out`` if it has the same key and its files are unmodified."""
    try:
        metrics = json.loads((out / METRICS).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(metrics, dict) or any(metrics.get(name) != value for name, value in key.items()):
        return None
    files = metrics.get("files", {})
    same = all((out / name).is_file() and sha256_of(out / name) == sha for name, sha in files.items())
    return metrics if files and same else None
