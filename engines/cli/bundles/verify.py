"""``ugsep verify``: check the files of a bundle against its manifest."""

from __future__ import annotations

from pathlib import Path

import click

from engines.bundle.bundle import Bundle
from engines.bundle.files import unlisted_files
from engines.cli.command_entry import missing_package
from engines.cli.group import echo_text
from graphs.base.errors import UgsepError


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--digest", metavar="HEX", help="Refuse any bundle but the one with this digest.")
@click.option("--print-digest", is_flag=True, help="Print only the digest of BUNDLE, to pin it by.")
def verify_command(bundle: Path, digest: str | None, print_digest: bool) -> None:
    """Check every file of BUNDLE against its manifest, and that against its digest; unlisted ones are errors."""
    opened = Bundle.open(bundle, digest)
    manifest = opened.manifest
    if strange := unlisted_files(bundle, manifest.files):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise UgsepError(
            f"{bundle}: {ascii(strange[0])[1:-1]}{more} not in the manifest; remove it or rebuild the bundle"
        )
    unchecked = _check_graphs(opened)
    if print_digest:
        click.echo(manifest.digest)
        return
    echo_text(f"{bundle}: {len(manifest.files)} files of '{manifest.model}' match the manifest{unchecked}")


def _check_graphs(bundle: Bundle) -> str:
    """Check the graphs where that is possible; return what to say if it is not."""
    try:
        bundle.check_graphs()
    except ModuleNotFoundError as error:
        return f"; graphs not checked: {missing_package(error, 'build')}"
    return ""
