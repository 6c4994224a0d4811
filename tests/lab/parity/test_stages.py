"""Every stage equals the released code within ten times the noise of float32; ids and pixels exactly."""

from pathlib import Path

import pytest

from lab.parity.compare import STAGES
from lab.parity.vectors import Vectors


@pytest.fixture(scope="module")
def loaded(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return Vectors(vectors, tmp_path_factory.mktemp("parity") / "checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_stage(loaded: Vectors, stage: str) -> None:
    rows = list(STAGES[stage](loaded))
    assert rows
    assert not [row for row in rows if not row.passed]
