"""The console command `lasagna`.

Sub-commands come from the entry-point group `lasagna.commands` (name = click command), so that a package registers its
own and `lasagna` imports nothing upward. A command's module imports no torch at its top, so that `--help` is quick.
"""

import errno
import sys
from typing import Any

import click

from lasagna.commands.groups import EntryPointGroup, missing_package
from lasagna.errors import LasagnaError

_OURS = {"lasagna", "training", "backend", "lab"}


class _Commands(EntryPointGroup):
    """The top: an error that a user can cause is a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                return super().invoke(ctx)
            except ModuleNotFoundError as error:  # a command imports what it needs when it runs
                module = str(error.name).partition(".")[0]
                if module in _OURS:
                    raise
                raise missing_package(module) from error
        except LasagnaError as error:
            click.secho(f"error: {error}", fg="red", err=True)
            sys.exit(error.exit_code)
        except (MemoryError, ImportError, OSError) as error:
            if not _is_out_of_memory(error):
                raise
            click.secho(
                "error: there is not enough memory; see `ulimit -a` and the limit of the container", fg="red", err=True
            )
            sys.exit(1)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: also where a library could not be loaded into what is left of the address space, which
    the dynamic loader says in words alone, perhaps in an error that another library made of it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    words = ("failed to map segment", "cannot allocate memory")
    if isinstance(error, ImportError | OSError) and any(each in str(error).lower() for each in words):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and _is_out_of_memory(before)


@click.group(
    cls=_Commands, entry_point_group="lasagna.commands", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="lasagna-assist")
def main() -> None:
    """Pre-label images for segmentation with LaSagnA: one query names every class, every class gets an answer."""
