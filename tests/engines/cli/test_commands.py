"""The table of commands against the commands."""

from __future__ import annotations

import click
import pytest

from engines.cli.commands import COMMANDS
from engines.cli.main import main


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_line_of_a_command_is_the_first_of_its_help(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    shown = click.Command(name, help=COMMANDS[name].help).get_short_help_str(1000)
    assert shown == command.get_short_help_str(1000)
