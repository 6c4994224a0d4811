"""The console command `lasagna`.

Sub-commands come from the entry-point group `lasagna.commands` (name = click command), so that a package registers its
own and `lasagna` imports nothing upward. A command's module imports no torch at its top, so that `--help` is quick.
"""

import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from lasagna.errors import LasagnaError


class _Commands(click.Group):
    """A group that loads a sub-command when it is used."""

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group="lasagna.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._entry_points())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        point = self._entry_points().get(cmd_name)
        return None if point is None else point.load()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LasagnaError as error:
            click.secho(f"error: {error}", fg="red", err=True)
            sys.exit(error.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lasagna-assist")
def main() -> None:
    """Pre-label images for segmentation with LaSagnA: one query names every class, every class gets an answer."""
