"""`lasagna annotate` run as a user runs it, with a small random model."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lasagna.commands.cli import main

from .made import CLASSES, Run, picture


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, as a checkpoint folder. With this seed it finds some classes and not others."""
    from lasagna import Lasagna

    folder = tmp_path_factory.mktemp("models") / "tiny"
    Lasagna.random(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Run:
    """Runs the command; the output goes to `out` below the test's folder unless --out says otherwise."""

    def invoke(*arguments: str | Path, out: Path = tmp_path / "out", labels: str | None = ",".join(CLASSES)) -> Result:
        words = ["annotate", *map(str, arguments), "--out", str(out), "--model", str(model), "--device", "cpu"]
        if labels is not None:
            words += ["--labels", labels]
        result = CliRunner().invoke(main, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six photos, two of them with the same stem in different folders and two with the same content."""
    photos = tmp_path / "photos"
    (photos / "north").mkdir(parents=True)
    (photos / "south").mkdir()
    for i, name in enumerate(["a.jpg", "b.png", "north/x.jpg", "south/x.jpg", "south/ä &#1.png"]):
        picture(i).save(photos / name, quality=95)
    shutil.copy(photos / "b.png", photos / "south" / "copy of b.png")
    return photos
