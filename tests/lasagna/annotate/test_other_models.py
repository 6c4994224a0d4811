"""`lasagna annotate` with other makers' models: licence and abilities are said, labels outside a list are unknown."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lab.bench.peer_models import write_model
from lasagna.commands.cli import main

from .made import read


@pytest.mark.parametrize(("kind", "unknown"), [("eomt", ["kitchen"]), ("sam3", [])])
def test_a_folder_of_photos(kind: str, unknown: list[str], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    model = write_model(kind, tmp_path / kind)
    given = ["--labels", "sky,couch,kitchen", "--model", str(model), "--device", "cpu", "--threshold", "0.01"]
    result = CliRunner().invoke(main, ["annotate", str(photos), *given, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "licence apache-2.0" in result.stderr
    assert "cannot answer clicks and boxes" in result.stderr
    report = read(tmp_path / "out" / "report.json")
    assert report["unknown"] == unknown
    assert report["model_version"].startswith(f"{kind}-")
    for image in report["images"]:
        said = {row["name"]: row["probability"] for row in image["classes"]}
        assert [name for name, probability in said.items() if probability is None] == unknown
    assert ("does not have in its list 'kitchen'" in result.stdout) == bool(unknown)
    assert "guess-unknown" not in result.stdout
    guessed = CliRunner().invoke(
        main, ["annotate", str(photos), *given, "--guess-unknown", "--out", str(tmp_path / "guessed")]
    )
    assert guessed.exit_code == 0, guessed.output
    assert read(tmp_path / "guessed" / "report.json")["unknown"] == unknown, "a closed list cannot guess"
    again = CliRunner().invoke(main, ["annotate", str(photos), *given, "--out", str(tmp_path / "out")])
    assert "2 known before" in again.stdout
