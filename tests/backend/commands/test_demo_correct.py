"""`lasagna demo --correct`: its photos and pictures, and the whole of it in a real Label Studio."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from backend.commands.demo import demo
from backend.demo.correcting import Step, coin_pieces, write_film
from backend.queue.services import free_port
from lab.bench.peer_models import write_model
from lasagna.errors import ConfigError

PROGRAM = [sys.executable, "-c", "from lasagna.commands.cli import main; main()", "demo"]


def test_the_pieces_are_the_same_each_time_and_hold_coins(tmp_path: Path) -> None:
    first, again = coin_pieces(tmp_path / "a"), coin_pieces(tmp_path / "b")
    assert [piece.path.name for piece in first] == [piece.path.name for piece in again]
    assert len({piece.path.read_bytes() for piece in first}) == 12
    for piece, other in zip(first, again, strict=True):
        assert np.array_equal(piece.truth, other.truth)
        with Image.open(piece.path) as photo:
            assert photo.size == piece.truth.shape[::-1]
        assert 0.1 < piece.truth.mean() < 0.6


def test_the_film_has_a_frame_for_each_photo(tmp_path: Path) -> None:
    pieces = coin_pieces(tmp_path)
    steps = [
        Step(piece.path.name, number, f"nano-1+h{number}", piece.truth, 0.0, 0.5) for number, piece in enumerate(pieces)
    ]
    still, moving = write_film(pieces, steps, tmp_path)
    with Image.open(moving) as film, Image.open(still) as strip:
        assert film.n_frames == len(pieces)  # type: ignore[attr-defined]
        assert strip.size == (4 * film.width, 3 * film.height)


def test_its_photos_are_its_own(tmp_path: Path) -> None:
    result = CliRunner().invoke(demo, ["--correct", "--labels", "cat", "--exit"])
    assert result.exit_code != 0
    assert "brings its own photos and label" in str(result.exception or result.output)


def test_a_model_that_does_not_learn_is_refused(tmp_path: Path) -> None:
    folder = write_model("clipseg", tmp_path / "clipseg")
    result = CliRunner().invoke(demo, ["--correct", "--model", str(folder), "--exit"])
    assert isinstance(result.exception, ConfigError)
    assert "clipseg is of the type 'clipseg', which does not" in str(result.exception)


@pytest.mark.label_studio
@pytest.mark.usefixtures("installed_label_studio")
def test_the_next_photo_is_better(tmp_path: Path) -> None:
    report = tmp_path / "correct.json"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LASAGNA_")}
    environ |= {name: os.environ[name] for name in ("LASAGNA_CACHE",) if name in os.environ}
    done = subprocess.run(
        [*PROGRAM, "--correct", "--exit", "--port", str(free_port()), "--json", str(report)],
        env={**environ, "LASAGNA_STATE_DIR": str(tmp_path / "state")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    told = json.loads(report.read_text())
    changes = [step["to_change"] for step in told["corrections"]]
    assert min(changes[:5]) > 0.2
    assert max(changes[5:]) < 0.05
    assert told["corrections"][0]["model_version"].count("+") == 0
    assert told["corrections"][-1]["model_version"].endswith("+h11")
    assert all(Path(path).stat().st_size > 10_000 for path in told["pictures"])
