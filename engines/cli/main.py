"""The ``ugsep`` command and the table of its subcommands."""

from __future__ import annotations

import click

from engines.cli.build import build_command
from engines.cli.bundles.bench import bench_command
from engines.cli.bundles.bisect import bisect_command
from engines.cli.bundles.inspect import inspect_command
from engines.cli.bundles.routing import routing_command
from engines.cli.bundles.schemes import schemes_command
from engines.cli.bundles.validate import validate_command
from engines.cli.bundles.verify import verify_command
from engines.cli.cache import cache_command
from engines.cli.group import CommandGroup
from engines.cli.models import models_command
from engines.cli.random_checkpoint import random_checkpoint_command
from engines.cli.split import split_command
from engines.cli.stream import stream_command
from quant.telemetry import disable_telemetry

COMMANDS: tuple[click.Command, ...] = (
    # models
    models_command,
    split_command,
    # build
    build_command,
    stream_command,
    random_checkpoint_command,
    cache_command,
    # inspect, verify and debug bundles
    inspect_command,
    verify_command,
    validate_command,
    bisect_command,
    routing_command,
    # compare
    bench_command,
    schemes_command,
)


@click.group(cls=CommandGroup)
@click.version_option(package_name="ugsep")
def main() -> None:
    """Turn a PyTorch ranking model into a user engine, run once per request, and an item engine for candidates."""
    disable_telemetry()


for command in COMMANDS:
    main.add_command(command)


if __name__ == "__main__":
    main()
