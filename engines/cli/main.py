"""The ``ugsep`` command."""

from __future__ import annotations

import click

from engines.cli.commands import COMMANDS
from engines.cli.group import LazyGroup
from engines.cli.telemetry import disable_telemetry


@click.group(cls=LazyGroup, table=COMMANDS)
@click.version_option(package_name="ugsep")
def main() -> None:
    """Turn a PyTorch ranking model into a user engine, run once per request, and an item engine for candidates."""
    disable_telemetry()


if __name__ == "__main__":
    main()
