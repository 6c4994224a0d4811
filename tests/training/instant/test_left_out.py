"""A model beside a head, asked about the photos that the head learnt from."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lasagna import Lasagna
from lasagna.masks.image import load_image
from training.data.records import OTHER, UNKNOWN, Record
from training.evaluation.scores import score_images
from training.instant.left_out import LeaveOneOut

CLASSES = ("disc", "ground")
SIZE = (96, 128)


def labels_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (y - rng.integers(30, 60)) ** 2 + (x - rng.integers(30, 100)) ** 2 < 18**2
    return np.where(disc, 0, 1).astype(np.int16)


def record(folder: Path, seed: int) -> Record:
    labels = labels_of(seed)
    colours = np.array([[230, 200, 60], [40, 60, 90]])
    noise = np.random.default_rng(seed).normal(size=(*SIZE, 3)) * 12
    path = folder / f"{seed}.png"
    Image.fromarray((colours[labels] + noise).clip(0, 255).astype(np.uint8)).save(path)
    return Record("made", str(seed), path, classes=CLASSES, labels=lambda: labels[None])


@pytest.fixture(scope="module")
def model() -> Lasagna:
    return Lasagna.random()


def miou(served: object, records: list[Record]) -> float:
    scores = score_images(served, records)  # type: ignore[arg-type]
    found = [one.intersection / max(1, one.union) for score in scores for one in score.classes]
    return float(np.mean(found))


def test_each_photo_is_answered_by_a_head_that_has_not_seen_it(model: Lasagna, tmp_path: Path) -> None:
    records = [record(tmp_path, seed) for seed in range(9)]
    served = LeaveOneOut(model, records[:8], lambda one: True)
    assert served.head is not None
    assert served.head.serves, served.reason
    assert miou(served, records[:8]) > 0.8 > miou(model, records[:8])
    assert model.head is None
    known, new = (load_image(records[i].image_path) for i in (0, 8))
    [left_out] = served.segment_batch([known], [CLASSES])
    [seen] = model.segment_batch([known], [CLASSES], head=served.head)
    assert [one.probability for one in left_out.classes] != [one.probability for one in seen.classes]
    [asked] = served.segment_batch([new], [CLASSES])
    [full] = model.segment_batch([new], [CLASSES], head=served.head)
    assert [one.probability for one in asked.classes] == [one.probability for one in full.classes]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(asked.present, full.present, strict=True))


def test_the_only_photo_of_a_class_tells_nothing_about_itself(model: Lasagna, tmp_path: Path) -> None:
    records = [record(tmp_path, seed) for seed in range(6)]
    void = np.full((1, *SIZE), UNKNOWN, np.int16)
    rare = np.full((1, *SIZE), OTHER, np.int16)
    rare[0, :40, :40] = 2
    asked = (*CLASSES, "rare")
    others = [Record("made", one.image_id, one.image_path, classes=CLASSES, labels=lambda: void) for one in records[1:]]
    alone = Record("made", "0", records[0].image_path, classes=asked, labels=lambda: rare)
    served = LeaveOneOut(model, [alone, *others], lambda one: True)
    assert served.head is not None
    [answer] = served.segment_batch([load_image(alone.image_path)], [asked])
    [own] = model.segment_batch([load_image(alone.image_path)], [asked])
    assert answer["rare"].probability == own["rare"].probability


def test_photos_that_the_model_knows_by_heart_do_not_let_the_head_in(model: Lasagna, tmp_path: Path) -> None:
    records = [record(tmp_path, seed) for seed in range(8)]
    served = LeaveOneOut(model, records, lambda one: int(one.image_id) >= 4)
    assert served.head is not None
    assert not served.head.serves
    assert served.head.decision.compared == 4
    assert served.head.decision.corrections == 8


def test_a_photo_that_cannot_be_read_is_passed_over(
    model: Lasagna, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [record(tmp_path, seed) for seed in range(6)]
    (tmp_path / "2.png").write_bytes(b"no picture")
    asked: list[int] = []
    served = LeaveOneOut(model, records, lambda one: True, lambda: asked.append(1))
    assert len(asked) == 6
    assert served.head is not None
    assert served.head.decision.corrections == 5
    assert "photo 2 is not learnt from" in caplog.text


def test_no_photo_no_head(model: Lasagna, tmp_path: Path) -> None:
    served = LeaveOneOut(model, [], lambda one: True)
    assert served.head is None
    assert served.reason == "nothing to learn from"
    one = record(tmp_path, 0)
    assert miou(served, [one]) == miou(model, [one])
