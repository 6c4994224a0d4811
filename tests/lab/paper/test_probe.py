"""The linear probe: chosen inside train, equal to a plain scikit-learn model, honest about what it cannot learn."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from lab.paper.probe import POOLINGS, STRENGTHS, Pooled, choose_probe, fit_probe, score_probe
from lasagna.commands.cli import main


def make_pooled(images: int, rng: np.random.Generator, informative: str = "max") -> Pooled:
    """Two classes that one channel each of one pooling tells; a third in every image, a fourth in none."""
    noise = {name: rng.normal(size=(images, 30)) for name in ("mean", "max")}
    present = np.zeros((images, 4), bool)
    present[:, :2] = rng.random((images, 2)) < 0.4
    present[:, 2] = True
    noise[informative][:, :2] += 4 * present[:, :2]
    return Pooled(noise["mean"], noise["max"], present)


def test_rotating_the_features_changes_no_probability() -> None:
    train = make_pooled(20, np.random.default_rng(0))
    features = train.pooled("mean+max")
    assert features.shape == (20, 60)  # more channels than images
    (probe,) = fit_probe(features, train.present, (0.1,))
    scaler = StandardScaler().fit(features)
    plain = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(scaler.transform(features), train.present[:, 0])
    new = np.random.default_rng(1).normal(size=(50, 60))
    expected = plain.predict_proba(scaler.transform(new))[:, 1]
    np.testing.assert_allclose(probe.probabilities(new)[:, 0], expected, atol=2e-3)


def test_a_class_without_examples_of_both_kinds_has_its_frequency() -> None:
    train = make_pooled(18, np.random.default_rng(0))
    (probe,) = fit_probe(train.mean, train.present, (0.1,))
    assert probe.probabilities(train.mean)[:, 2:].tolist() == [[19 / 20, 1 / 20]] * 18


@pytest.mark.parametrize("informative", ["mean", "max"])
def test_the_choice_is_made_inside_train_and_finds_what_tells_the_classes(informative: str) -> None:
    rng = np.random.default_rng(3)
    train, test = make_pooled(80, rng, informative), make_pooled(60, rng, informative)
    fits: list[None] = []
    choice = choose_probe(train, lambda: fits.append(None))
    assert len(fits) == 5 * len(POOLINGS)
    assert informative in choice.pooling
    assert choice.strength in STRENGTHS
    metrics = score_probe(train, test, choice)
    (probe,) = fit_probe(train.pooled(choice.pooling), train.present, (choice.strength,))
    scores = probe.probabilities(test.pooled(choice.pooling))
    expected = average_precision_score(test.present.ravel(), scores.ravel())
    assert metrics.average_precision() == pytest.approx(expected)
    assert metrics.average_precision() > 0.9


@pytest.mark.slow
def test_the_command_on_real_photos(shared_data: Path, random_checkpoint: Path) -> None:
    arguments = ["--data", shared_data / "cwfid", "--image-size", 96, "--against", random_checkpoint, "--json"]
    result = CliRunner().invoke(main, ["experiment", "probe", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)["sets"]["cwfid"]
    assert (row["train_images"], row["images"], row["classes"]) == (39, 21, 2)
    assert 0 < row["average_precision"] <= 1
    assert row["model"]["images"] == 21
