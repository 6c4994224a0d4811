"""The classifier of taught names: fitted, laid beside the language model, kept by what is trained from it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from lasagna import Lasagna
from lasagna.checkpoint.folder import CLASSIFIER, checkpoint_version, find_checkpoint
from lasagna.checkpoint.vocabulary import Taught, Vocabulary
from lasagna.commands.cli import main
from lasagna.errors import CheckpointError, DataError
from lasagna.instant.classifier import Classifier, load_classifier
from lasagna.instant.features import feature_channels
from lasagna.masks.image import load_image
from training.data.records import OTHER, UNKNOWN, Record
from training.engine.start import _keep_classifier
from training.instant.classifier import SHARES, fit_classifier

SIZE = (96, 128)
NAMES = ("sun", "sea", "sand")
COLOURS = {"sun": (240, 200, 40), "sea": (30, 60, 200), "sand": (210, 180, 150), "": (60, 60, 60)}


class Photos(list[Record]):
    """A source: photos with the sun or without it, over sea or sand."""

    classes = NAMES


def photo(folder: Path, seed: int) -> Record:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    labels = np.full(SIZE, OTHER, np.int16)
    labels[48:] = 1 + seed % 2
    if seed % 3:
        labels[(y - 24) ** 2 + (x - rng.integers(24, 104)) ** 2 < 16**2] = 0
    colours = np.array([COLOURS[name] for name in (*NAMES, "")])[labels]
    labels[:4] = UNKNOWN
    path = folder / f"{seed}.png"
    Image.fromarray((colours + rng.normal(size=(*SIZE, 3)) * 12).clip(0, 255).astype(np.uint8)).save(path)
    return Record("made", str(seed), path, classes=NAMES, labels=lambda: labels[None])


def a_model(seed: int) -> Lasagna:
    model = Lasagna.random(seed)
    model.vocabulary = Vocabulary({name: Taught(9) for name in NAMES}, {"ocean": "sea"})
    return model


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Photos], dict[str, Photos]]:
    folder = tmp_path_factory.mktemp("photos")
    return (
        {"made": Photos(photo(folder, seed) for seed in range(12))},
        {"made": Photos(photo(folder, seed) for seed in range(100, 112))},
    )


@pytest.fixture(scope="module")
def fitted(sets: tuple[dict[str, Photos], dict[str, Photos]]) -> Lasagna:
    """A model whose language model knows nothing, with a classifier."""
    model = a_model(RISING)
    model.classifier, model.calibration = fit_classifier(model, *sets)
    return model


RISING, FALLING = 4, 0
"""Random models whose margins happen to be larger, and smaller, where a class is present."""


def test_what_is_fitted_tells_the_names_apart(fitted: Lasagna, tmp_path: Path) -> None:
    alone = a_model(RISING)
    new = [photo(tmp_path, seed) for seed in range(200, 212)]
    right = {True: 0, False: 0}
    for record in new:
        labels = record.read()[0]
        for model in (fitted, alone):
            answer = model.segment(load_image(record.image_path), NAMES)
            right[model is fitted] += sum(one.is_present == (labels == i).any() for i, one in enumerate(answer.classes))
    assert right[True] >= 34, right  # of 36
    assert right[True] > right[False]


def test_masks_follow_the_evidence(fitted: Lasagna, tmp_path: Path) -> None:
    assert fitted.classifier is not None
    assert fitted.classifier.mask_share in SHARES[1:]
    record = photo(tmp_path, 301)
    features = fitted.encode_image(load_image(record.image_path))
    evidence = fitted.classifier.evidence(fitted.feature_maps(features), ["sun", "sand", "moon"])
    down, across = evidence.shape[1:]
    at = record.read()[0][:: SIZE[0] // down, :: SIZE[1] // across][:down, :across]
    assert evidence[0][torch.from_numpy(at == 0)].mean() > 3 > -3 > evidence[0][torch.from_numpy(at == OTHER)].mean()
    assert not evidence[2].any()


def test_a_name_is_judged_whatever_else_is_asked(fitted: Lasagna, tmp_path: Path) -> None:
    assert fitted.classifier is not None
    maps = fitted.feature_maps(fitted.encode_image(load_image(photo(tmp_path, 302).image_path)))
    together = fitted.classifier.margins(maps, ["moon", *NAMES])
    assert together[0] == 0  # it was never taught
    for name, margin in zip(NAMES, together[1:], strict=True):
        assert torch.equal(fitted.classifier.margins(maps, [name]), margin[None])


def test_other_words_for_a_name_have_its_row(fitted: Lasagna, tmp_path: Path) -> None:
    image = load_image(photo(tmp_path, 303).image_path)
    first, second = (fitted.segment(image, [name]).classes[0] for name in ("sea", "ocean"))
    assert first.probability == second.probability


def test_a_checkpoint_keeps_it(fitted: Lasagna, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "with")
    again = Lasagna.from_pretrained(tmp_path / "with")
    image = load_image(photo(tmp_path, 304).image_path)
    answers = [model.segment(image, NAMES).classes for model in (fitted, again)]
    assert [one.probability for one in answers[0]] == pytest.approx([one.probability for one in answers[1]], abs=1e-3)
    shutil.copytree(tmp_path / "with", tmp_path / "without")
    (tmp_path / "without" / CLASSIFIER).unlink()
    versions = [checkpoint_version(tmp_path / name).rpartition("-")[2] for name in ("with", "without")]
    assert versions[0] != versions[1], "it changes answers, so it is part of the version"
    assert Lasagna.from_pretrained(tmp_path / "without").classifier is None


def test_what_is_trained_from_it_keeps_it(fitted: Lasagna, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "start")
    plain = a_model(RISING)
    plain.save_pretrained(tmp_path / "tuned")
    _keep_classifier(tmp_path / "start", tmp_path / "tuned")
    assert (tmp_path / "tuned" / CLASSIFIER).read_bytes() == (tmp_path / "start" / CLASSIFIER).read_bytes()
    (tmp_path / "start" / CLASSIFIER).unlink()
    _keep_classifier(tmp_path / "start", tmp_path / "tuned")


def test_one_of_another_encoder_or_damaged_is_refused(fitted: Lasagna, tmp_path: Path) -> None:
    assert fitted.classifier is not None
    fitted.save_pretrained(tmp_path)
    channels = feature_channels(fitted.model.encoder)
    assert load_classifier(tmp_path, channels) is not None
    with pytest.raises(CheckpointError, match="the encoder has 7 channels"):
        load_classifier(tmp_path, 7)
    whole = (tmp_path / CLASSIFIER).read_bytes()
    strange: Sequence[Classifier] = [
        replace(fitted.classifier, rows={"sun": 99}),
        replace(fitted.classifier, presence=(0.0,)),
    ]
    for classifier in strange:
        classifier.save(tmp_path)
        with pytest.raises(CheckpointError, match="remove the file"):
            load_classifier(tmp_path, channels)
    for damaged in (b"", whole[:100], b"not a file of tensors"):
        (tmp_path / CLASSIFIER).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="lasagna calibrate"):
            Lasagna.from_pretrained(tmp_path)


def test_a_model_whose_margins_fall_is_refused(sets: tuple[dict[str, Photos], dict[str, Photos]]) -> None:
    with pytest.raises(DataError, match="train the model first"):
        fit_classifier(a_model(FALLING), *sets)
    untold = a_model(RISING)
    untold.vocabulary = None
    with pytest.raises(DataError, match="does not say what it was taught"):
        fit_classifier(untold, *sets)
    with pytest.raises(DataError, match="no photo"):
        fit_classifier(a_model(RISING), {}, sets[1])


def test_the_command_makes_one(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "beach"
    (folder / "masks").mkdir(parents=True)
    (folder / "images").mkdir()
    for seed in range(24):
        record = photo(folder / "images", seed)
        label = record.read()[0]
        Image.fromarray(np.where(label == UNKNOWN, 255, np.where(label == OTHER, 3, label)).astype(np.uint8)).save(
            folder / "masks" / f"{seed}.png"
        )
        (folder / "images" / f"{seed}.png").rename(folder / "images" / f"{seed}.jpg")
    (folder / "classes.json").write_text(json.dumps({"classes": [*NAMES, "background"], "background_index": 3}))
    (folder / "train.txt").write_text("\n".join(map(str, range(24))))
    checkpoint = tmp_path / "run" / "checkpoint"
    a_model(RISING).save_pretrained(checkpoint)
    changes = [f"data={tmp_path / 'data'}", f"output={tmp_path / 'run'}", "tasks.semantic.sets={beach: 1.0}"]
    result = CliRunner().invoke(main, ["calibrate", "nano", *changes, "holdout=0.4", "--classifier"])
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "3 classes under 3 names" in result.output
    made = Lasagna.from_pretrained(checkpoint)
    assert made.classifier is not None
    assert made.calibration.temperature != a_model(RISING).calibration.temperature
    result = CliRunner().invoke(main, ["calibrate", "nano", *changes, "holdout=0", "--classifier"])
    assert "hold more photos out" in result.output + str(result.exception)


def test_the_shipped_model_has_one() -> None:
    folder = find_checkpoint("nano")
    model = Lasagna.from_pretrained(folder)
    assert model.classifier is not None
    assert model.vocabulary is not None
    assert {model.read_text(name) for name in model.vocabulary.names} <= set(model.classifier.rows)
