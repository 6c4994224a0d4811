"""The vectors of the released code, which lie beside the checkout; without them these tests skip."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def vectors(shared: Callable[[str], Path]) -> Path:
    """Folder of the vectors (see its README.md)."""
    return shared("facts/parity")
