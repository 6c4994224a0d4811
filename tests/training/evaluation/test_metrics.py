"""Metrics: cases worked out by hand, and equality with slow, obvious references on random input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lasagna.masks.segmentation import ClassAnswer, Segmentation
from lasagna.network.compat import ensure_torchvision
from training.data.records import OTHER, UNKNOWN
from training.evaluation.metrics import (
    PresenceMetrics,
    SegmentationMetrics,
    average_precision,
    expected_calibration_error,
    reliability,
)
from training.evaluation.scoring import score_photo

CLASSES = 3


def labels(rows: list[list[int]]) -> np.ndarray:
    """What is drawn; `labels(...)[None]` is a truth of one layer."""
    return np.array(rows, np.int16)


def answer(drawn: np.ndarray, classes: int) -> Segmentation:
    """The answer that draws a class at each pixel that has its index, and says so of no other."""
    masks = [drawn == index for index in range(classes)]
    found = (ClassAnswer(str(i), 0.5, mask if mask.any() else None) for i, mask in enumerate(masks))
    return Segmentation(drawn.shape, tuple(found))


def add(metrics: SegmentationMetrics, truth: np.ndarray, drawn: np.ndarray) -> None:
    metrics.update(score_photo(truth, answer(drawn, len(metrics.truth))))


def test_iou_by_hand() -> None:
    metrics = SegmentationMetrics(3)
    add(metrics, labels([[0, 0, 1, 1], [0, 0, 1, UNKNOWN]])[None], labels([[0, 0, 0, 1], [0, 1, 1, 1]]))
    # class 0: 4 and 4 pixels, 3 common; class 1: 3 and 3, 2 common (the void pixel is no false positive)
    assert metrics.iou == [3 / 5, 2 / 4, None]
    assert metrics.miou == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert metrics.pixel_accuracy == pytest.approx(5 / 7)


def test_iou_is_of_all_images_together_not_a_mean_over_images() -> None:
    metrics = SegmentationMetrics(1)
    add(metrics, np.zeros((1, 10, 10), np.int16), np.zeros((10, 10), np.int16))
    add(metrics, labels([[0]])[None], labels([[OTHER]]))
    assert metrics.iou == [100 / 101]


def test_a_class_over_background_is_wrong_there() -> None:
    metrics = SegmentationMetrics(2)
    add(metrics, labels([[0, OTHER, OTHER]])[None], labels([[0, 0, OTHER]]))
    assert metrics.iou == [1 / 2, None]
    assert metrics.miou == 1 / 2
    assert metrics.pixel_accuracy == pytest.approx(2 / 3)


def test_a_class_that_is_predicted_but_never_true_counts_as_zero() -> None:
    metrics = SegmentationMetrics(3)
    add(metrics, labels([[0, 0]])[None], labels([[0, 1]]))
    assert metrics.iou == [1 / 2, 0.0, None]
    assert metrics.miou == pytest.approx(1 / 4)


def test_void_alone_scores_nothing() -> None:
    metrics = SegmentationMetrics(2)
    add(metrics, labels([[UNKNOWN, UNKNOWN]])[None], labels([[0, 1]]))
    assert metrics.iou == [None, None]
    assert metrics.miou is None
    assert metrics.pixel_accuracy is None


def test_a_pixel_of_two_classes_is_right_for_either() -> None:
    metrics = SegmentationMetrics(2)
    truth = np.stack([labels([[0, 0, 0, OTHER]]), labels([[1, 1, 0, OTHER]])])  # the third is of class 0 twice
    add(metrics, truth, labels([[0, 1, 0, OTHER]]))
    assert metrics.truth.tolist() == [3, 2]
    assert metrics.iou == [2 / 3, 1 / 2]
    assert metrics.pixel_accuracy == 1.0


def test_a_pixel_that_is_void_in_one_layer_is_not_scored() -> None:
    metrics = SegmentationMetrics(2)
    add(metrics, np.stack([labels([[0, 0]]), labels([[UNKNOWN, OTHER]])]), labels([[0, 1]]))
    assert metrics.iou == [0.0, 0.0]


def test_the_mean_over_some_classes() -> None:
    metrics = SegmentationMetrics(4)
    add(metrics, labels([[0, 0, 1, 2]])[None], labels([[0, 0, 1, 1]]))
    assert metrics.mean_iou([0, 1]) == pytest.approx(3 / 4)
    assert metrics.mean_iou([2, 3]) == 0.0
    assert metrics.mean_iou([3]) is None


def test_an_answer_of_another_size_is_refused() -> None:
    for truth in (labels([[0]])[None], labels([[0, 0]]), labels([[0], [0]])[None]):
        with pytest.raises(ValueError, match=r"expected an annotation \(layers, 1, 2\), found"):
            score_photo(truth, answer(labels([[0, 0]]), 2))


def test_masks_of_distractors_take_part_without_being_a_class_of_a_pixel() -> None:
    """Over a class they are one that is missed, over nothing they are nothing."""
    score = score_photo(labels([[0, 0, OTHER, UNKNOWN]])[None], answer(labels([[0, 1, 1, 1]]), 2), own=1)
    assert [(one.intersection, one.union, one.truth, one.present) for one in score.classes] == [
        (1, 2, 2, True),
        (0, 2, 0, False),
    ]
    assert (score.pixels, score.right) == (3, 2)


def test_classes_of_an_image_are_found_by_their_place() -> None:
    metrics = SegmentationMetrics(3)
    metrics.update(score_photo(labels([[0, 1]])[None], answer(labels([[0, 0]]), 2)), [2, 0])
    assert metrics.iou == [0.0, None, 1 / 2]
    assert metrics.truth.tolist() == [1, 0, 1]


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=10)
def test_iou_equals_torchmetrics(seed: int) -> None:
    import torch

    ensure_torchvision()
    from torchmetrics.functional.classification import multiclass_jaccard_index

    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, 4, (2, 3, 12, 12)).astype(np.int16)
    truth[rng.random(truth.shape) < 0.2] = UNKNOWN
    metrics = SegmentationMetrics(4)
    for t, p in zip(truth, prediction, strict=True):
        add(metrics, t[None], p)
    theirs = multiclass_jaccard_index(
        torch.tensor(prediction).long(), torch.tensor(truth).long(), 4, ignore_index=UNKNOWN, average=None
    )
    assert metrics.iou == pytest.approx(theirs.tolist())


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=10)
def test_ranking_and_calibration_equal_torchmetrics(seed: int) -> None:
    import torch

    ensure_torchvision()
    from torchmetrics.functional.classification import binary_average_precision, binary_calibration_error

    rng = np.random.default_rng(seed)
    truth = rng.random(200) < 0.3
    score = (rng.integers(0, 40, 200) / 40 + 0.003).astype(np.float32)  # ties, and no score on the border of a bin
    theirs = float(binary_average_precision(torch.tensor(score), torch.tensor(truth).long()))
    assert average_precision(truth, score.astype(np.float64)) == pytest.approx(theirs, abs=1e-5)
    # Theirs is of the confidence in the likelier answer; of probabilities over one half that is the same.
    sure = 0.5 + score / 2
    theirs = float(binary_calibration_error(torch.tensor(sure), torch.tensor(truth).long(), n_bins=15, norm="l1"))
    assert expected_calibration_error(truth, sure.astype(np.float64)) == pytest.approx(theirs, abs=1e-5)


pixel = st.sampled_from([0, 1, 2, OTHER, UNKNOWN])
image = st.lists(st.tuples(pixel, pixel.filter(lambda label: label != UNKNOWN)), min_size=1, max_size=30)


@given(st.lists(image, min_size=1, max_size=4))
@settings(deadline=None)
def test_segmentation_metrics_equal_a_pixel_by_pixel_count(images: list[list[tuple[int, int]]]) -> None:
    metrics = SegmentationMetrics(CLASSES)
    for pixels in images:
        add(metrics, labels([[t for t, _ in pixels]])[None], labels([[p for _, p in pixels]]))
    scored = [(t, p) for pixels in images for t, p in pixels if t != UNKNOWN]
    ious = []
    for c in range(CLASSES):
        both = sum(t == c and p == c for t, p in scored)
        either = sum(t == c or p == c for t, p in scored)
        ious.append(both / either if either else None)
    assert metrics.iou == pytest.approx(ious)
    defined = [iou for iou in ious if iou is not None]
    assert metrics.miou == (pytest.approx(sum(defined) / len(defined)) if defined else None)
    right = sum(t == p for t, p in scored)
    assert metrics.pixel_accuracy == (pytest.approx(right / len(scored)) if scored else None)


def test_presence_by_hand() -> None:
    metrics = PresenceMetrics(3)
    metrics.update([True, False, False], [True, True, False], [0.9, 0.8, 0.1])
    metrics.update([True, True, False], [False, True, False], [0.3, 0.7, 0.2])
    # TP 2, FP 1, FN 1, TN 2
    assert metrics.precision() == pytest.approx(2 / 3)
    assert metrics.recall() == pytest.approx(2 / 3)
    assert metrics.f1() == pytest.approx(2 / 3)
    assert metrics.absent_false_positive_rate() == pytest.approx(1 / 3)
    assert metrics.absent_false_positive_rate(slice(1, 3)) == pytest.approx(1 / 3)
    assert metrics.absent_false_positive_rate(slice(2, 3)) == 0.0
    assert (metrics.precision(0), metrics.recall(0), metrics.f1(0)) == pytest.approx((1, 1 / 2, 2 / 3))
    assert (metrics.precision(1), metrics.recall(1)) == (1 / 2, 1)
    assert (metrics.precision(2), metrics.recall(2), metrics.f1(2)) == (None, None, None)
    # ranked: 0.9 +, 0.8 -, 0.7 +, 0.3 +, 0.2 -, 0.1 -
    assert metrics.average_precision() == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


@pytest.mark.parametrize(
    ("truth", "score", "expected"),
    [
        ([1, 0], [0.9, 0.1], 1.0),
        ([0, 1], [0.9, 0.1], 0.5),
        ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 5 / 6),  # the example of scikit-learn's documentation: 0.83
        ([1, 0, 0, 1], [0.5, 0.5, 0.5, 0.5], 0.5),  # all tied: the share of positives
        ([1, 0, 1], [0.7, 0.7, 0.2], (1 / 2 + 2 / 3) / 2),  # a tie at the top comes in as one
        ([0, 0], [0.3, 0.2], None),
        ([1], [0.0], 1.0),
    ],
    ids=["right", "wrong", "scikit-learn", "tied", "tie-on-top", "none", "single"],
)
def test_average_precision_by_hand(truth: list[int], score: list[float], expected: float | None) -> None:
    found = average_precision(np.array(truth, bool), np.array(score))
    assert found == (expected if expected is None else pytest.approx(expected))


pairs = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40)


@given(pairs, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_average_precision_equals_its_definition_and_ignores_order(pairs: list[tuple[bool, int]], random) -> None:
    truth = np.array([t for t, _ in pairs])
    score = np.array([s / 6 for _, s in pairs])
    positives = truth.sum()
    expected, recall_before = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        said = score >= threshold
        recall = (truth & said).sum() / positives if positives else 0.0
        expected += (recall - recall_before) * (truth & said).sum() / said.sum()
        recall_before = recall
    found = average_precision(truth, score)
    assert found == (pytest.approx(expected) if positives else None)
    shuffled = list(range(len(pairs)))
    random.shuffle(shuffled)
    again = average_precision(truth[shuffled], score[shuffled])
    assert again == (pytest.approx(found) if positives else None)


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=2), min_size=1, max_size=8))
@settings(deadline=None)
def test_presence_figures_equal_counts_over_all_pairs(images: list[list[tuple[bool, bool]]]) -> None:
    metrics = PresenceMetrics(2)
    for pairs in images:
        metrics.update([t for t, _ in pairs], [s for _, s in pairs], [0.5, 0.5])
    everything = [pair for pairs in images for pair in pairs]
    tp, fp = everything.count((True, True)), everything.count((False, True))
    fn, tn = everything.count((True, False)), everything.count((False, False))
    assert metrics.precision() == (pytest.approx(tp / (tp + fp)) if tp + fp else None)
    assert metrics.recall() == (pytest.approx(tp / (tp + fn)) if tp + fn else None)
    assert metrics.absent_false_positive_rate() == (pytest.approx(fp / (fp + tn)) if fp + tn else None)
    precision, recall = metrics.precision(), metrics.recall()
    if precision and recall:
        assert metrics.f1() == pytest.approx(2 / (1 / precision + 1 / recall))


def test_presence_without_images_or_with_wrong_shapes() -> None:
    metrics = PresenceMetrics(2)
    assert (metrics.precision(), metrics.average_precision(), metrics.absent_false_positive_rate()) == (
        None,
        None,
        None,
    )
    with pytest.raises(ValueError, match="expected"):
        metrics.update([True], [True], [0.5])
    with pytest.raises(ValueError, match="probabilities"):
        metrics.update([True, False], [True, False], [1.5, float("nan")])


def test_calibration_error_by_hand() -> None:
    # two bins: 0.2 and 0.4 with no positive, a gap of 0.3; 0.6, 0.7, 0.8 with two of three positive, a gap of 0.1 / 3
    truth, probability = np.array([0, 0, 1, 0, 1], bool), np.array([0.2, 0.4, 0.6, 0.7, 0.8])
    expected = 2 / 5 * 0.3 + 3 / 5 * (0.7 - 2 / 3)
    assert expected_calibration_error(truth, probability, bins=2) == pytest.approx(expected)
    assert expected_calibration_error(np.ones(3, bool), np.ones(3)) == 0


def test_presence_has_no_calibration_error_before_the_first_image() -> None:
    metrics = PresenceMetrics(2)
    assert metrics.calibration_error() is None
    metrics.update([True, False], [True, True], [0.75, 0.75])
    assert metrics.calibration_error() == pytest.approx(0.25)


def test_halves_that_calibrate_each_other() -> None:
    rng = np.random.default_rng(1)
    metrics = PresenceMetrics(10)
    for _ in range(400):
        logits = rng.normal(-1, 2, 10)
        truth = rng.random(10) < 1 / (1 + np.exp(-logits))
        said = 1 / (1 + np.exp(-(3 * logits + 2)))  # over-confident, and too often present
        metrics.update(truth.tolist(), (said > 0.5).tolist(), said.tolist())
    before, after = metrics.calibration_error(), metrics.calibration_error_of_halves()
    assert before is not None
    assert after is not None
    assert before > 0.1
    assert after < 0.03
    nothing = PresenceMetrics(2)
    assert nothing.calibration_error_of_halves() is None
    for _ in range(4):
        nothing.update([True, True], [True, True], [0.9, 0.8])
    assert nothing.calibration_error_of_halves() is None


def test_only_some_classes_may_be_asked_of_an_image() -> None:
    metrics = PresenceMetrics(3)
    metrics.update([True, False], [True, True], [0.9, 0.8], asked=[2, 0])
    metrics.update([False, True, True], [False, True, True], [0.1, 0.7, 0.6])
    assert metrics.true_positives.tolist() == [0, 1, 2]
    assert metrics.false_positives.tolist() == [1, 0, 0]
    assert metrics.true_negatives.tolist() == [1, 0, 0]
    assert metrics.average_precision([0, 1]) == pytest.approx(1 / 2)  # 0.8 -, 0.7 +, 0.1 -
    assert metrics.average_precision([2]) == 1.0
    assert metrics.average_precision([]) is None


def test_reliability_by_hand() -> None:
    found = reliability(np.array([0, 0, 1, 1], bool), np.array([0.1, 0.3, 0.4, 1.0]), bins=4)
    assert found.count.tolist() == [1, 2, 0, 1]
    assert found.predicted.tolist() == pytest.approx([0.1, 0.35, np.nan, 1.0], nan_ok=True)
    assert found.observed.tolist() == pytest.approx([0.0, 0.5, np.nan, 1.0], nan_ok=True)
    assert found.error == pytest.approx((0.1 + 2 * 0.15 + 0) / 4)
