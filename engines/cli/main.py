"""The ``ugsep`` command: the table of its subcommands."""

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
    # look at a model
    models_command,
    split_command,
    # build
    build_command,
    stream_command,
    random_checkpoint_command,
    cache_command,
    # look at a bundle, check it, find what is wrong with it
    inspect_command,
    verify_command,
    validate_command,
    bisect_command,
    routing_command,
    # compare it
    bench_command,
    schemes_command,
)


@click.group(cls=CommandGroup)
@click.version_option(package_name="ugsep")
def main() -> None:
    """Compute the user once, the items many times: from a PyTorch ranking model to user and item engines."""
    disable_telemetry()


for command in COMMANDS:
    main.add_command(command)


if __name__ == "__main__":
    main()
