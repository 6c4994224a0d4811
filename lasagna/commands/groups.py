"""Groups of console commands to which any package adds its own, so that `lasagna` imports nothing upward."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from lasagna.errors import ConfigError


class EntryPointGroup(click.Group):
    """A group whose sub-commands are its own and those of an entry-point group (name = click command), which are
    loaded when they are used.

    Where a command needs a package that is not installed (the image of the web process has no torch), that command says
    so, and the others work.
    """

    def __init__(self, *args: Any, entry_point_group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group = entry_point_group

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self._group)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        point = self._entry_points().get(cmd_name)
        if own is not None or point is None:
            return own
        try:
            return point.load()
        except ModuleNotFoundError as error:
            return _missing(cmd_name, str(error.name))


def missing_package(module: str) -> ConfigError:
    """What is said where a command needs a package that is not installed."""
    return ConfigError(
        f"this command needs the package {module}, which is not installed here; use an installation of lasagna-assist "
        "with all its dependencies"
    )


def _missing(name: str, module: str) -> click.Command:
    words = f"needs the package {module}, which is not installed here"

    def refuse() -> None:
        raise missing_package(module)

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, callback=refuse, help=f"({words})", context_settings=settings, add_help_option=False)
