"""`lasagna bench engines`: what its rows say."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lab.bench.engines import Found, engines
from lasagna.masks.segmentation import ClassAnswer, Segmentation


def answer(*probabilities: float, wide: int = 4) -> Segmentation:
    mask = np.zeros((4, 8), bool)
    mask[:, :wide] = True
    return Segmentation(
        (4, 8), tuple(ClassAnswer(f"c{i}", p, mask if p >= 0.5 else None) for i, p in enumerate(probabilities))
    )


def test_decisions_and_masks_are_held_against_the_first() -> None:
    found, first = Found(3), Found(3)
    found.encoder, found.rest = [0.1, 0.1], [0.1, 0.1]
    first.encoder, first.rest = [0.3, 0.3], [0.1, 0.1]
    found.add(answer(0.9, 0.2, 0.5, wide=2), answer(0.9, 0.6, 0.495))
    row = found.row(("float32", "openvino"), first)
    assert (row["decisions"], row["decisions_differ"], row["of_these_near"]) == (3, 2, 1)
    assert row["mask_iou"] == 0.5
    assert (row["times_faster"], row["encoder_times_faster"]) == (2.0, 3.0)


@pytest.mark.slow
def test_both_engines_answer_real_photos(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASAGNA_CACHE", str(tmp_path))
    options = ["--data", str(shared_data / "camvid"), "--limit", "1", "--dtype", "float32", "--json"]
    result = CliRunner().invoke(engines, options)
    assert result.exit_code == 0, result.output
    plain, fast = json.loads(result.stdout)["rows"]
    assert (plain["encoder"], fast["encoder"]) == ("torch", "openvino")
    assert fast["decisions_differ"] == 0
    assert fast["mask_iou"] > 0.99
    assert fast["miou"] == pytest.approx(plain["miou"], abs=0.01)
