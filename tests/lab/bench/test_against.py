"""`lasagna bench against`: two processes answer the same, and what differs is counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lab.bench.against import Compared, against
from lasagna import Lasagna, load_image
from lasagna.errors import DataError

CHECKOUT = Path(__file__).resolve().parents[3]


def test_decisions_and_masks_are_held_against_the_other_side() -> None:
    left, all_of_it = np.packbits([1, 1, 0, 0]), np.packbits([1, 1, 1, 1])
    compared = Compared()
    compared.add(([[0.9, 0.2, 0.6]], {"0-0": left}), ([[0.8, 0.9, 0.495]], {"0-0": all_of_it, "0-1": left}))
    assert (compared.decisions, compared.differ, compared.near) == (3, 2, 1)
    assert compared.ious == [0.5]


@pytest.mark.slow
def test_a_checkout_agrees_with_itself(tmp_path: Path) -> None:
    Lasagna.random(0).save_pretrained(tmp_path / "tiny")
    plot = tmp_path / "curve.svg"
    options = ["--code", str(CHECKOUT), "--model", str(tmp_path / "tiny"), "--encoder", "torch", "--classes", "1,5"]
    result = CliRunner().invoke(against, [*options, "--batch", "2", "--repeats", "1", "--plot", str(plot), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["classes"], row["decisions"], row["decisions_differ"]) for row in rows] == [(1, 2, 0), (5, 10, 0)]
    assert {row["mask_iou"] for row in rows} <= {None, 1.0}
    assert all(row["ms_before"] > 0 and row["ms_after"] > 0 for row in rows)
    assert plot.read_text().startswith("<?xml")


@pytest.mark.slow
def test_photos_of_a_folder_on_several_cores(tmp_path: Path, photos: dict[str, Path]) -> None:
    """On the clock, and each photo's answer is that of the checkout, however many are answered at once."""
    Lasagna.random(0).save_pretrained(tmp_path / "tiny")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.roll(load_image(photos["cat"]).resize((96, 64)), number, 1)).save(folder / f"{number}.jpg")
    options = ["--code", str(CHECKOUT), "--model", str(tmp_path / "tiny"), "--encoder", "torch", "--classes", "5"]
    options += ["--photos", str(folder), "--cores", "2", "--repeats", "1", "--json"]
    result = CliRunner().invoke(against, [*options, "--batch", "3"])
    assert result.exit_code == 0, result.output
    [row] = json.loads(result.stdout)["rows"]
    assert (row["decisions"], row["decisions_differ"]) == (15, 0)
    result = CliRunner().invoke(against, [*options, "--batch", "4"])
    assert isinstance(result.exception, DataError)
    assert "has 3 files *.jpg, a batch takes 4" in str(result.exception)
