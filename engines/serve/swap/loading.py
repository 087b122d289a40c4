"""Load a bundle for serving: from a path that may be replaced meanwhile to a ranker that has proven itself."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from engines.backends.contract import Array, LazyRunner, Notify
from engines.bundle.bundle import RECIPE
from engines.bundle.files import verify_files
from engines.bundle.fixtures import FIXTURES, read_fixtures
from engines.bundle.manifest import Engine, Manifest, engine_for, read_manifest
from engines.bundle.report_file import REPORT, read_report
from engines.serve.core.replay import replay
from engines.serve.core.served_bundle import ServedBundle
from engines.serve.ranker import Ranker
from engines.serve.score_request import ScoreRequest
from engines.serve.settings import ServeSettings
from engines.serve.swap.snapshot import resolve_bundle, take_snapshot
from engines.serve.swap.warming import WARM_SECONDS, warm_from
from graphs.base.errors import UgsepError

__all__ = ["load_bundle"]

_TRIES = 5
_EXTRA_FILES = (RECIPE, REPORT, f"{FIXTURES}.json", f"{FIXTURES}.safetensors")


def load_bundle(
    settings: ServeSettings,
    previous: ServedBundle | None = None,
    notify: Notify = lambda line: None,
    warm_seconds: float = WARM_SECONDS,
) -> ServedBundle:
    """Load the bundle at the path of the settings, prove it, and warm it with the users of ``previous``.

    Proven means: the sha256 of every file that serving needs, and the scores of the bundle's fixtures on the loaded
    engines. Everything is in memory afterwards: the directory may be replaced or removed. One that is replaced while
    it is read is read again. It is served under the name of the settings, else of ``previous``, else of its model.
    ``notify`` takes lines for the log; ``warm_seconds`` bounds the warming.

    Raises:
        UgsepError: not a bundle, a modified, truncated or missing file, an engine that this machine cannot run, a
            fixture with other scores, or a directory that keeps changing; nothing stays loaded.
    """
    served = _load_unchanged(settings)
    model = served.name
    if previous is not None and not settings.name:  # callers know it by the name of the first bundle
        served = dataclasses.replace(served, name=previous.name)
    try:
        _prove(served, settings)
        if previous is not None:
            notify(warm_from(served.ranker, previous.ranker, warm_seconds))
            if model != served.name:
                notify(f"model '{model}' is served under the name '{served.name}'")
        served.ranker.reset_cache_info()  # what follows are callers' requests
    except BaseException:
        served.ranker.close()
        raise
    return dataclasses.replace(served, loaded_at=time.time())


def _load_unchanged(settings: ServeSettings) -> ServedBundle:
    """Load engines and fixtures, all from the same state of the directory."""
    for _ in range(_TRIES):
        root = resolve_bundle(settings.bundle)
        before = take_snapshot(root)
        try:
            served = _load(settings, root)
        except (UgsepError, OSError):
            if take_snapshot(settings.bundle) == before:
                raise
            continue
        if take_snapshot(root) == before:
            return served
        served.ranker.close()
    raise UgsepError(f"{settings.bundle}: changed while it was read, {_TRIES} times; retry when the copy is finished")


def _load(settings: ServeSettings, root: Path) -> ServedBundle:
    manifest = read_manifest(root, settings.digest)
    user, item = (engine_for(manifest, side, settings.backend, settings.precision) for side in ("user", "item"))
    _check_files(root, manifest, (user, item))
    report, fixtures = read_report(root), read_fixtures(root)
    ranker = Ranker.from_engines(
        root, manifest, user, item, settings.threads, settings.cache_bytes, settings.runtime_cache
    )
    try:
        for runner in (ranker.user_runner, ranker.item_runner):
            if isinstance(runner, LazyRunner):
                runner.preload()
    except BaseException:
        ranker.close()
        raise
    name = settings.name or manifest.model
    return ServedBundle(name, manifest.short_digest, root, manifest, ranker, report, fixtures=fixtures)


def _check_files(root: Path, manifest: Manifest, pair: tuple[Engine, Engine]) -> None:
    """Check the hashes of what serving reads; other engines and the ONNX sources are 'ugsep verify's."""
    for name in _EXTRA_FILES:
        if name not in manifest.files:
            raise UgsepError(f"{root}: no {name} among the hashed files; rebuild: {manifest.rebuild}")
    engines = {f"{engine.directory}/{name}" for engine in pair for name in engine.built.files}
    needed = sorted(engines | {*_EXTRA_FILES})
    verify_files(root, {name: manifest.files[name] for name in needed}, manifest.rebuild)


def _prove(served: ServedBundle, settings: ServeSettings) -> None:
    """Replay the bundle's fixtures on the loaded engines."""
    result = replay(served.fixtures, lambda request: _scores(served.ranker, request))
    served.ranker.forget_users()
    if result.passed:
        return
    chosen = settings.backend is None and settings.precision is None
    fix = (
        f"do not serve it here; rebuild: {served.manifest.rebuild}"
        if chosen
        else "the fixtures were scored by the engines the build chose; serve those, without --backend and --precision"
    )
    raise UgsepError(f"{served.root}: {result.worst or 'no fixture was compared'}; {fix}")


def _scores(ranker: Ranker, request: ScoreRequest) -> Mapping[str, Array]:
    (scored,) = ranker.score_requests([request])
    if isinstance(scored, Exception):
        raise scored
    return scored.scores
