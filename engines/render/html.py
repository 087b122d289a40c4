"""Self-contained HTML pages from templates; values are escaped, and a missing one is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines.render.byte_sizes import readable_bytes
from graphs.base.errors import printable_text

TEMPLATES = Path(__file__).with_name("templates")


def render(
    template: str,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., str]] | None = None,
    folder: Path = TEMPLATES,
) -> str:
    """Render a template of ``folder`` with ``values``; the filter ``bytes`` is always available."""
    import jinja2  # most commands render no page

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=_shown,
    )
    environment.filters.update({"bytes": readable_bytes, **(filters or {})})
    return environment.get_template(template).render(values)


def _shown(value: Any) -> Any:
    """Return a value as a page shows it: no character may turn the text around; markup of ours is left alone."""
    return printable_text(value) if type(value) is str else value
