"""The click group of both command lines: one-line errors, fixed exit statuses, tracebacks on --debug."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Any

import click

from graphs.base.errors import GateFailed, UgsepError, nearest

_DEBUG = "ugsep.debug"


class CommandGroup(click.Group):
    """A click group that ends with 0 (done), 1 (a gate failed) or 2 (bad input or usage).

    Errors are one line on stderr. ``--debug``, accepted before or after the subcommand, shows the traceback.
    Use it as ``@click.group(cls=CommandGroup)``; commands return None.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])  # subcommands take it over
        self.params.append(_debug_option())

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Register a subcommand and give it ``--debug``."""
        if not isinstance(cmd, CommandGroup):
            cmd.params.append(_debug_option())
        super().add_command(cmd, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand; an unknown name is answered with the nearest one."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            hint = nearest(args[0], self.list_commands(ctx))
            raise click.UsageError(f"unknown command '{args[0]}'{hint}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand and turn the errors a user can meet into one line and an exit status."""
        try:
            return super().invoke(ctx)
        except (GateFailed, UgsepError, OSError) as error:
            if ctx.meta.get(_DEBUG) or isinstance(error, BrokenPipeError):
                raise
            click.echo(f"error: {_one_line(error)}", err=True)
            ctx.exit(1 if isinstance(error, GateFailed) else 2)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run with the process's arguments; usage errors are one line too."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            where = f" (see '{error.ctx.command_path} --help')" if error.ctx is not None else ""
            click.echo(f"error: {' '.join(error.format_message().split())}{where}", err=True)
            sys.exit(2)
        except click.ClickException as error:
            click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("aborted", err=True)
            sys.exit(130)
        sys.exit(status if isinstance(status, int) else 0)


def as_typed(ctx: click.Context) -> str:
    """Return what was typed to run a command, but ``--json`` and ``--force``, which change no result."""
    parts = ctx.command_path.split()
    for param in ctx.command.params:
        name = param.name or ""
        given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if not given or name not in ctx.params or name in ("as_json", "force"):
            continue
        value = ctx.params[name]
        if isinstance(param, click.Argument):
            parts.append(str(value))
        elif isinstance(param, click.Option) and param.is_flag:
            parts.append(param.opts[0] if value else param.secondary_opts[0])
        else:
            for one in value if param.multiple else (value,):
                parts += [param.opts[0], str(one)]
    return shlex.join(parts)


def _debug_option() -> click.Option:
    def remember(ctx: click.Context, option: click.Parameter, value: bool) -> None:
        if value:
            ctx.meta[_DEBUG] = True  # meta is shared by a command and its parents

    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Show the traceback of an error.",
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": '{error.filename}'" if error.filename else ""
        return f"{error.strerror}{where}; check the path, its permissions and the free space"
    return " ".join(str(error).split())
