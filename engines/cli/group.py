"""The click classes behind all commands: one-line errors, fixed exit statuses, tracebacks with --debug."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import click

from engines.cli.aborted import exit_aborted, importing
from engines.cli.command_entry import CommandEntry, missing_package
from graphs.base.errors import GateFailed, UgsepError, nearest, printable_line, printable_text

#: Seeds that both NumPy and PyTorch accept.
SEED = click.IntRange(0, 2**63 - 1)
SHARE = click.FloatRange(0, 1)

_NO_THREAD = "can't start new thread"  # a RuntimeError of its own in CPython
_DEBUG, _DEBUG_FLAG = "ugsep.debug", "--debug"


class Command(click.Command):
    """A click command that exits with 0 (success), 1 (a gate failed) or 2 (bad input or usage).

    Errors are one line on stderr; ``--debug`` shows the traceback. Use it as ``@click.command(cls=Command)``; a
    single-command script then calls ``main()``. The function returns None. ``renamed`` maps old option names to new
    ones, so that an error can suggest the new name.
    """

    def __init__(self, *args: Any, renamed: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.renamed = dict(renamed or {})
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])  # subcommands inherit it
        _add_debug(self)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn expected errors into one line and an exit status."""
        try:
            return super().invoke(ctx)
        except (GateFailed, UgsepError, OSError) as error:
            if ctx.meta.get(_DEBUG) or isinstance(error, BrokenPipeError):
                raise
            click.echo(f"error: {_one_line(error)}", err=True)
            ctx.exit(1 if isinstance(error, GateFailed) else 2)
        except (MemoryError, RuntimeError) as error:
            if ctx.meta.get(_DEBUG) or not (isinstance(error, MemoryError) or str(error) == _NO_THREAD):
                raise
            reason = printable_line(str(error)) or "MemoryError"
            click.echo(f"error: not enough memory ({reason}); free some or raise the limit of the process", err=True)
            ctx.exit(2)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the command line; ``--help`` that cannot be written is one line too."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError:
            raise
        except OSError as error:
            click.echo(f"error: {_one_line(error)}", err=True)
            raise click.exceptions.Exit(2) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command, with ``sys.argv`` by default; usage errors are one line too."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.ClickException as error:
            _exit_with(error)
        except click.Abort:
            exit_aborted()
        sys.exit(status if isinstance(status, int) else 0)


class CommandGroup(Command, click.Group):
    """A command group with the errors and exit statuses of ``Command``.

    ``--debug`` is accepted before and after the subcommand. Use it as ``@click.group(cls=CommandGroup)``.
    """

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Register a subcommand, adding ``--debug`` to it."""
        _add_debug(cmd)
        super().add_command(cmd, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Look up the subcommand; an error for an unknown name suggests the nearest one."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            hint = nearest(args[0], self.list_commands(ctx))
            raise click.UsageError(f"unknown command '{args[0]}'{hint}", ctx=ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(CommandGroup):
    """A command group that imports a subcommand when it is called, so that it needs no package of the others.

    Its help is written from the table alone.
    """

    def __init__(self, *args: Any, table: Mapping[str, CommandEntry], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all subcommands, sorted."""
        return sorted(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand.

        Raises:
            UgsepError: a package that it needs is not installed.
        """
        entry = self.table.get(cmd_name)
        if entry is not None and cmd_name not in self.commands:
            try:
                with importing():
                    module = importlib.import_module(entry.module)
            except ModuleNotFoundError as error:
                raise UgsepError(missing_package(error, entry.extra)) from error
            self.add_command(getattr(module, f"{cmd_name.replace('-', '_')}_command"), cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands as click would, without importing them."""
        width = formatter.width - 6 - max(map(len, self.table))
        entries = [(name, self.table[name]) for name in self.list_commands(ctx)]
        rows = [(name, click.Command(name, help=entry.help).get_short_help_str(width)) for name, entry in entries]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def echo_text(text: str, err: bool = False) -> None:
    """Print lines in which names come from a file: what could control the terminal is escaped."""
    click.echo(printable_text(text), err=err)


def as_typed(ctx: click.Context, without: Collection[str] = ("as_json", "force")) -> str:
    """Return the command line as typed, ``without`` the parameters that, by default, do not affect the result."""
    parts = ctx.command_path.split()
    for param in ctx.command.params:
        name = param.name or ""
        given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if not given or name not in ctx.params or name in without:
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


def _add_debug(command: click.Command) -> None:
    """Add ``--debug`` to a command unless it is there already: a command can belong to several groups."""
    if any(_DEBUG_FLAG in param.opts for param in command.params):
        return

    def remember(ctx: click.Context, option: click.Parameter, value: bool) -> None:
        if value:
            ctx.meta[_DEBUG] = True  # meta is shared by a command and its parents

    command.params.append(
        click.Option(
            [_DEBUG_FLAG],
            is_flag=True,
            expose_value=False,
            callback=remember,
            help="Show a traceback on errors.",
        )
    )


def _exit_with(error: click.ClickException) -> NoReturn:
    text = printable_line(error.format_message())
    if isinstance(error, click.NoSuchOption):
        text = printable_line(f"unknown option '{error.option_name}'{_hint(error)}")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text += f" (see '{error.ctx.command_path} --help')"
    click.echo(f"error: {text}", err=True)
    sys.exit(error.exit_code)


def _hint(error: click.NoSuchOption) -> str:
    command = error.ctx.command if error.ctx is not None else None
    renamed = command.renamed if isinstance(command, Command) else {}
    names = [renamed[error.option_name]] if error.option_name in renamed else list(error.possibilities or ())
    return f", did you mean '{names[0]}'?" if names else ""


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        location = f": '{error.filename}'" if error.filename else ""
        return printable_line(f"{error.strerror}{location}; check the path, its permissions and the free disk space")
    return printable_line(str(error))
