"""Options that several commands share."""

from pathlib import Path
from typing import Any

import click

from lasagna.settings import data_folder


class DataSetFolder(click.ParamType):
    """A data set: its folder, or its name below the folder of data sets (the setting `data`).

    Args:
        file_okay: Whether it may be a file, too.
    """

    name = "folder"

    def __init__(self, file_okay: bool = False) -> None:
        self._file_okay = file_okay

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        below = data_folder() / value
        found = [path for path in (Path(value), below) if path.is_dir() or (self._file_okay and path.is_file())]
        if not found:
            self.fail(
                f"{value} is no folder, nor is {below}; give the folder of a data set, or its name and LASAGNA_DATA, "
                "the folder of your data sets"
            )
        return found[0]


DATA_HELP = "a data set's folder, or its name below LASAGNA_DATA (docs/data.md)"
