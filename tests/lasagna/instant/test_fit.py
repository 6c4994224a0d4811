"""Corrections to a head: what it depends on, what the gate lets in, and what it refuses."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lasagna.errors import CheckpointError, DataError
from lasagna.instant.correction import Correction, ModelAnswer
from lasagna.instant.fit import Learner, fit_head
from lasagna.instant.gate import decide
from lasagna.instant.head import Head
from lasagna.instant.statistics import NONE
from lasagna.instant.tally import Tally
from tests.lasagna.instant.instant_world import CHANNELS, CLASSES, made_correction, made_maps, made_masks


@pytest.fixture(scope="module")
def corrections():
    return [made_correction(seed, skill=0.3) for seed in range(12)]


@pytest.mark.slow
@given(st.permutations(range(12)), st.lists(st.integers(0, 11), max_size=4))
@settings(deadline=None, max_examples=15)
def test_a_head_depends_on_the_corrections_alone(corrections, order, replaced):
    """Whatever the order in which they come, and whatever was there before and taken away: the same file."""
    learner = Learner()
    for index in order:
        learner.put(corrections[index])
    for index in replaced:
        learner.remove(corrections[index].id)
        learner.put(corrections[index])
    assert learner.fit().to_bytes() == fit_head(corrections).to_bytes()


def test_a_correction_replaces_that_of_its_id(corrections):
    other = dataclasses.replace(made_correction(99, skill=0.3), id=corrections[0].id, order=0)
    learner = Learner()
    for correction in [other, *corrections]:
        learner.put(correction)
    assert len(learner) == 12
    assert learner.fit().to_bytes() == fit_head(corrections).to_bytes()


@pytest.mark.slow
def test_only_the_newest_are_kept_in_memory():
    every = {f"photo {seed}": made_correction(seed) for seed in range(50)}
    read: list[str] = []

    def reader(id):
        read.append(id)
        return every[id]

    thin, full = Learner(reader), Learner()
    for correction in every.values():
        thin.put(correction)
        full.put(correction)
    assert not read
    assert thin.fit().to_bytes() == full.fit().to_bytes()
    thin.remove("photo 3")
    full.remove("photo 3")
    assert read == ["photo 3"]
    assert thin.fit().to_bytes() == full.fit().to_bytes()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_below_five_corrections_the_model_draws(corrections, count):
    decision = fit_head(corrections[:count]).decision
    assert not decision.serves
    assert f"{count} correction" in decision.reason
    assert "at least 5" in decision.reason


def test_a_better_head_is_let_in(corrections):
    decision = fit_head(corrections, previous=fit_head(corrections[:9]).decision).decision
    assert decision.serves
    assert decision.reason.startswith("serves since correction 9: +")
    assert decision.head > decision.model + 0.05
    assert 0 < decision.low < decision.head - decision.model < decision.high


def test_a_good_model_keeps_drawing():
    decision = fit_head([made_correction(seed, skill=20) for seed in range(12)]).decision
    assert not decision.serves
    assert decision.reason.startswith("the model draws: the head would give")


def test_swapped_classes_do_not_get_in():
    """Half of the corrections have two classes exchanged: they contradict the others."""
    made = [made_correction(seed, swapped=seed % 2 == 0, skill=4) for seed in range(12)]
    assert not fit_head(made).decision.serves


def test_photos_that_the_model_was_trained_on_are_no_evidence(corrections):
    trained = [dataclasses.replace(c, is_evidence=i < 4) for i, c in enumerate(corrections)]
    decision = fit_head(trained).decision
    assert not decision.serves
    assert "4 of 12 corrections say how good the model is" in decision.reason


def test_a_head_alone_serves_from_the_first():
    head = fit_head([made_correction(0, model=False)])
    assert head.serves
    assert head.version == ""
    assert not head.reads_masks


def test_corrections_of_two_models_are_not_mixed(corrections):
    learner = Learner()
    learner.put(corrections[0])
    with pytest.raises(DataError, match=r"model-1 .* and of no model .* cannot be learnt together"):
        learner.put(made_correction(3, model=False))
    with pytest.raises(DataError, match="cannot be learnt together"):
        learner.put(dataclasses.replace(corrections[1], encoder="f" * 16))
    assert len(learner) == 1


def test_nothing_to_learn_from_is_said():
    with pytest.raises(DataError, match="at least one corrected photo"):
        Learner().fit()


def test_a_file_gives_the_head_back(corrections, tmp_path):
    head = fit_head(corrections, number=12)
    (tmp_path / "head").write_bytes(head.to_bytes())
    other = Head.load(tmp_path / "head")
    assert other.to_bytes() == head.to_bytes()
    assert other.decision == head.decision
    assert other.suffix == "h12"


def test_a_damaged_or_missing_file_says_so(corrections, tmp_path):
    with pytest.raises(CheckpointError, match="no head can be read there"):
        Head.load(tmp_path / "none")
    (tmp_path / "head").write_bytes(fit_head(corrections).to_bytes()[:-7])
    with pytest.raises(CheckpointError, match="lasagna learn"):
        Head.load(tmp_path / "head")


def test_a_head_of_another_encoder_or_model_is_refused(corrections):
    head = fit_head(corrections)
    head.check(head.encoder, "model-1")
    with pytest.raises(CheckpointError, match=r"features of another encoder .*learn from the corrected photos again"):
        head.check("f" * 16, "model-1")
    with pytest.raises(CheckpointError, match="made beside model-1, the model is model-2"):
        head.check(head.encoder, "model-2")


def test_what_no_correction_has_keeps_the_models_probability(corrections):
    head = fit_head(corrections[:3])
    masks = made_masks(30)
    names = [*CLASSES, "never seen"]
    judged = head.judge(made_maps(30, masks), names, np.full(4, 0.37), np.zeros(4, bool))
    assert not head.serves
    assert judged.probability[3] == 0.37
    assert not judged.present.any()
    assert (judged.probability < 0.5).all()


def test_the_models_answer_about_classes_without_a_correction_is_refined() -> None:
    """Of a name that was asked sixteen times and never drawn, though the model said 0.8, little is left."""
    made = []
    for seed in range(16):
        one = made_correction(seed, skill=0.3)
        answer = one.answer
        extra = ModelAnswer(
            answer.version,
            torch.cat([answer.probability, torch.tensor([0.8])]),
            torch.cat([answer.said, torch.tensor([True])]),
            torch.cat([answer.mask_logits, torch.full((len(one.truth), 1), 2.0).half()], 1),
        )
        made.append(
            dataclasses.replace(
                one,
                classes=(*one.classes, "never drawn"),
                truth=torch.where(one.truth == 3, 4, one.truth),
                present=torch.cat([one.present, torch.tensor([False])]),
                answer=extra,
            )
        )
    head = fit_head(made)
    assert head.serves
    judged = head.judge(made_maps(30, made_masks(30)), [*CLASSES, "never drawn"], np.full(4, 0.8), np.ones(4, bool))
    assert judged.probability[3] < 0.5
    assert not judged.present[3]


def with_probability(correction: Correction, there: float, absent: float) -> Correction:
    """A correction of a good model that gives these probabilities."""
    answer = correction.answer
    assert answer is not None
    given = torch.where(correction.present, there, absent).float()
    return dataclasses.replace(correction, answer=dataclasses.replace(answer, probability=given, said=given >= 0.5))


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_model_that_draws_and_is_right_keeps_its_probabilities(count: int) -> None:
    head = fit_head(with_probability(made_correction(seed, skill=6.0), 0.995, 0.005) for seed in range(count))
    assert not head.serves
    maps = made_maps(70, made_masks(70))
    given = np.array([0.995, 0.005, 0.7])
    judged = head.judge(maps, list(CLASSES), given, given >= 0.5)
    np.testing.assert_allclose(judged.probability, given, atol=1e-6)


def test_a_model_that_draws_and_does_not_know_is_refined() -> None:
    """Its probabilities say nothing of what is there; those of the head do, on the side of the model's decision."""
    known = [with_probability(made_correction(seed, skill=6.0), 0.4, 0.4) for seed in range(4)]
    head = fit_head(known)
    assert not head.serves
    masks, given = made_masks(71), np.full(3, 0.4)
    judged = head.judge(made_maps(71, masks), list(CLASSES), given, given >= 0.5)
    there = np.array([mask.any() for mask in masks.values()])
    assert there.any()
    assert (judged.probability[there] > 0.45).all()
    assert (judged.probability < 0.5).all()


def test_weights_apply_to_parts_as_to_dense_features(corrections):
    head = fit_head(corrections)
    maps = made_maps(5, made_masks(5))
    dense = maps.dense() @ head.weight.T
    assert NONE in head.names
    assert head.weight.shape == (4, CHANNELS)
    torch.testing.assert_close(maps.project(head.weight).flatten(1).T, dense, rtol=1e-4, atol=1e-4)


def test_a_photo_is_left_out_of_the_weights_and_of_nothing_else(corrections):
    learner = Learner()
    for correction in corrections:
        learner.put(correction)
    head = learner.fit(number=5)
    gone = [corrections[2].id, corrections[7].id, "never learnt"]
    left = learner.without(gone, head)
    others = fit_head([correction for correction in corrections if correction.id not in gone])
    assert left.names == others.names
    if others.shrinkage == head.shrinkage:
        assert torch.equal(left.weight, others.weight)
        assert torch.equal(left.bias, others.bias)
    assert not torch.equal(left.weight, head.weight)
    kept = ("number", "shrinkage", "stacking", "presence", "unseen_presence", "decision", "digest")
    assert all(
        getattr(left, name) is getattr(head, name) or getattr(left, name) == getattr(head, name) for name in kept
    )
    assert learner.fit(number=5).to_bytes() == head.to_bytes()


def test_nothing_is_left_without_the_only_photo(corrections):
    learner = Learner()
    learner.put(corrections[0])
    with pytest.raises(DataError, match="no pixel is left"):
        learner.without([corrections[0].id], learner.fit())


def test_photos_that_have_nothing_and_show_nothing_say_nothing():
    nothing = Tally(*(np.zeros((1, 3)) for _ in range(3)), np.array([5.0]), np.array([5.0]))
    decision = decide([nothing] * 6, [nothing] * 6, 6)
    assert not decision.serves
    assert decision.compared == 6
    assert "have none of the classes" in decision.reason
    assert decision.model is None


def photos(*hits: float, background: float = 9_000.0, spilt: float = 0.0) -> list[Tally]:
    """Photos of a small thing of 100 pixels, of which so many are found, on a background that is right but for what is
    spilt."""
    return [
        Tally(
            np.array([[hit]]),
            np.array([[100.0]]),
            np.array([[hit + spilt]]),
            np.array([hit + background - spilt]),
            np.array([100 + background]),
        )
        for hit in hits
    ]


def test_small_things_that_are_found_are_enough() -> None:
    """Nearly every pixel is right before and after, so that right pixels say nothing of small things."""
    model = photos(40, 50, 45, 40, 55, 50, 45, 50)
    found = decide(model, photos(70, 80, 75, 70, 85, 70, 75, 80), 8)
    assert found.serves, found.reason
    assert found.accuracy_gain is not None
    assert 0 < found.accuracy_gain < 0.03
    drawn_beside = decide(model, photos(70, 80, 75, 70, 85, 70, 75, 80, spilt=40), 8)
    assert drawn_beside.low is not None
    assert drawn_beside.low < 0.05 or not drawn_beside.serves
    assert not drawn_beside.serves, "pixels are worse"
    little = decide(model, photos(42, 51, 47, 43, 56, 51, 47, 52), 8)
    assert not little.serves, "neither is clear"
    assert "or no fewer, with at least +0.05 mIoU" in little.reason
