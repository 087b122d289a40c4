"""``ugsep verify``: check the files of a bundle against its manifest."""

from __future__ import annotations

from pathlib import Path

import click

from engines.bundle.bundle import Bundle
from engines.bundle.files import unlisted_files
from graphs.base.errors import UgsepError


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
def verify_command(bundle: Path) -> None:
    """Check every file of BUNDLE against its manifest; unlisted files are errors too."""
    manifest = Bundle.open(bundle).manifest
    if strange := unlisted_files(bundle, manifest.files):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise UgsepError(
            f"{bundle}: {ascii(strange[0])[1:-1]}{more} not in the manifest; remove it or rebuild the bundle"
        )
    click.echo(f"{bundle}: {len(manifest.files)} files of '{manifest.model}' match the manifest")
