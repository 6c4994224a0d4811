"""Packages that only some jobs need: the extras of pyproject.toml.

What always holds: where one is missing, the user reads what needs it and what to type, before any work is done.
"""

import importlib
from typing import Any

from lasagna.errors import ConfigError


def load_extra(module: str, extra: str, needed_by: str) -> Any:
    """Imports a module that an extra of this package brings.

    Args:
        module: Its name, such as "s3fs".
        extra: The extra's name in pyproject.toml.
        needed_by: What cannot be done without it, as a sentence begins: "s3://".

    Returns:
        The module.

    Raises:
        ConfigError: It, or a package that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        raise ConfigError(
            f"{needed_by} needs the package {package}, which is not installed: pip install 'lasagna-assist[{extra}]'"
        ) from error
