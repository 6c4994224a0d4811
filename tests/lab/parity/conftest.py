"""The vectors of the released code, which lie beside the checkout; without them these tests skip."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Folder of the vectors (see its README.md)."""
    folder = ROOT.parent / "shared" / "facts" / "parity"
    if not folder.is_dir():
        pytest.skip(f"needs the released code's vectors in {folder}")
    return folder
