"""The gate: a case for every rule, on scores made by hand, and real masks through `score_images`."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lasagna import ClassAnswer, ClassQuery, Lasagna, Segmentation
from lasagna.checkpoint.folder import Calibration
from lasagna.errors import DataError
from lasagna.masks.objects import Objects
from training.data.records import OTHER, UNKNOWN, Record, stack_masks
from training.evaluation.gate import Limits, Verdict, judge
from training.evaluation.metrics import PresenceMetrics
from training.evaluation.paired import sign_test
from training.evaluation.scores import ImageScore, Latency, measure_latency, objects_in_words, score_images
from training.evaluation.scoring import ClassScore

LIMITS = Limits(resamples=500)
PIXELS = 1000


def photo(number: int, ious: dict[str, float], false: Sequence[str] = (), absent: Sequence[str] = ()) -> ImageScore:
    """A photo with these classes, drawn with these IoUs (0: said absent), and absent classes, some said present."""
    classes = [
        ClassScore(name, round(iou * PIXELS), PIXELS, PIXELS, True, iou > 0, 0.9 if iou else 0.1)
        for name, iou in ious.items()
    ]
    for name in absent:
        said = name in false
        classes.append(ClassScore(name, 0, 100 * said, 0, False, said, 0.8 if said else 0.2))
    return ImageScore(f"photo-{number}", tuple(classes), 0.1)


def photos(*rows: dict[str, float], **more: Any) -> list[ImageScore]:
    return [photo(i, row, **more) for i, row in enumerate(rows)]


def failed(verdict: Verdict) -> set[str]:
    return {reason.rule for reason in verdict.reasons if not reason.passed}


WEAK = photos(*[{"cat": 0.4, "sky": 0.5}] * 8, absent=["car"])
BETTER = photos(*[{"cat": 0.6, "sky": 0.6}] * 8, absent=["car"])


def test_a_better_candidate_passes() -> None:
    verdict = judge(WEAK, BETTER, latency=Latency(((0.2, 0.21),) * 12), limits=LIMITS)
    assert verdict.passed
    assert verdict.in_words().startswith("Passed: mIoU got better")
    assert "0.450 → 0.600 (+0.150" in verdict.in_words()
    assert [reason.rule for reason in verdict.reasons] == [
        "photos", "better", "class", "false positives", "replay", "latency",
    ]  # fmt: skip


def test_an_equal_candidate_fails() -> None:
    verdict = judge(WEAK, WEAK, limits=LIMITS)
    assert failed(verdict) == {"better"}
    assert "Neither mIoU nor presence is better" in verdict.in_words()


def test_better_presence_alone_is_enough() -> None:
    missing = photos(*[{"cat": 0.4, "sky": 0.5}] * 6, *[{"cat": 0.0, "sky": 0.5}] * 6)
    found = photos(*[{"cat": 0.4, "sky": 0.5}] * 6, *[{"cat": 0.001, "sky": 0.5}] * 6)
    verdict = judge(missing, found, limits=LIMITS)
    assert verdict.passed
    assert "F1 of presence got better" in verdict.in_words()


def test_a_gain_within_chance_fails() -> None:
    up_and_down = [{"cat": 0.4 + change} for change in (0.3, -0.25, 0.2, -0.3, 0.25, -0.15)]
    verdict = judge(photos(*[{"cat": 0.4}] * 6), photos(*up_and_down), limits=LIMITS)
    assert verdict.figures["miou"].difference == pytest.approx(0.05 / 6)
    assert failed(verdict) == {"better"}


def test_worse_presence_stops_better_masks() -> None:
    silent = photos(*[{"cat": 0.0, "sky": 0.9}] * 3, *[{"cat": 0.9, "sky": 0.9}] * 5)
    verdict = judge(WEAK_TWO, silent, limits=LIMITS)
    assert failed(verdict) == {"better"}
    assert "F1 of presence got worse" in verdict.in_words()


WEAK_TWO = photos(*[{"cat": 0.4, "sky": 0.5}] * 8)


@pytest.mark.parametrize(("count", "passes"), [(3, False), (4, True)])
def test_too_few_photos_fail(count: int, passes: bool) -> None:
    verdict = judge(WEAK[:count], BETTER[:count], limits=LIMITS)
    assert verdict.passed == passes
    assert failed(verdict) == (set() if passes else {"photos"})


@pytest.mark.parametrize(
    ("lost", "rules"),
    [
        pytest.param(0.04, set(), id="within-tolerance"),
        pytest.param(0.2, {"class"}, id="lost"),
    ],
)
def test_no_class_may_lose(lost: float, rules: set[str]) -> None:
    champion = photos(*[{"cat": 0.4, "sky": 0.5}] * 8)
    candidate = photos(*[{"cat": 0.9, "sky": 0.5 - lost}] * 8)
    verdict = judge(champion, candidate, limits=LIMITS)
    assert failed(verdict) == rules
    if rules:
        assert "sky lost more than 0.05 IoU: 0.500 → 0.300" in verdict.in_words()


def test_a_loss_by_chance_in_one_class_is_none() -> None:
    champion = photos(*[{"cat": 0.4, "sky": 0.5}] * 4)
    losses = (0.5, -0.1, -0.05, -0.05)
    candidate = photos(*[{"cat": 0.9, "sky": 0.5 - loss} for loss in losses])
    verdict = judge(champion, candidate, limits=LIMITS)
    assert verdict.passed
    sky = next(one for one in verdict.classes if one.name == "sky")
    assert sky.iou.difference == pytest.approx(-0.075)  # over the tolerance, but of one photo


@pytest.mark.parametrize(
    ("rare", "rules"),
    [
        pytest.param(0.6, set(), id="kept"),
        pytest.param(0.0, {"rare classes"}, id="all-lost"),
    ],
)
def test_classes_in_few_photos_are_judged_together(rare: float, rules: set[str]) -> None:
    names = ["a", "b", "c", "d", "e", "f", "g", "h"]
    champion = photos(*[{"cat": 0.2, name: 0.6} for name in names])
    candidate = photos(*[{"cat": 0.9, name: max(rare, 0.001)} for name in names])
    verdict = judge(champion, candidate, limits=replace(LIMITS, class_tolerance=0.05))
    assert not any(one.judged_alone for one in verdict.classes if one.name != "cat")
    assert rules <= failed(verdict)
    assert ("rare classes" in failed(verdict)) == bool(rules)


@pytest.mark.parametrize(
    ("wrong", "rules"),
    [
        pytest.param(1, set(), id="one-photo-is-chance"),
        pytest.param(6, {"false positives"}, id="six-of-eight"),
    ],
)
def test_absent_classes_may_not_be_said_more_often(wrong: int, rules: set[str]) -> None:
    row = {"cat": 0.6, "sky": 0.6}
    candidate = [photo(i, row, false=["car"] if i < wrong else [], absent=["car"]) for i in range(8)]
    verdict = judge(WEAK, candidate, limits=LIMITS)
    assert ("false positives" in failed(verdict)) == bool(rules)
    assert verdict.classes[2].false_positives == (0, wrong)
    if rules:
        assert "car is said in 6 photos more that lack it" in verdict.in_words()


def test_one_class_is_named_though_false_positives_fell_over_all() -> None:
    row, absent = {"cat": 0.4}, ["car", "dog", "cow"]
    champion = [photo(i, row, false=["car", "dog"], absent=absent) for i in range(8)]
    candidate = [photo(i, {"cat": 0.6}, false=["cow"], absent=absent) for i in range(8)]
    verdict = judge(champion, candidate, limits=LIMITS)
    assert failed(verdict) == {"false positives"}
    assert "cow is said in 8 photos more" in verdict.in_words()


@pytest.mark.parametrize(("new", "gone", "chance"), [(0, 0, 1.0), (5, 0, 1 / 32), (3, 1, 5 / 16)])
def test_sign_test(new: int, gone: int, chance: float) -> None:
    assert sign_test(new, gone) == pytest.approx(chance)


@pytest.mark.parametrize(
    ("iou", "missed", "rules"),
    [
        pytest.param(0.49, 0, set(), id="within"),
        pytest.param(0.47, 0, {"replay"}, id="masks-forgotten"),
        pytest.param(0.6, 3, {"replay"}, id="presence-forgotten"),
    ],
)
def test_replay(iou: float, missed: int, rules: set[str]) -> None:
    before = photos(*[{"tree": 0.5}] * 10)
    after = photos(*[{"tree": 0.0 if i < missed else iou / (1 - missed / 10)} for i in range(10)])
    verdict = judge(WEAK, BETTER, before, after, limits=LIMITS)
    assert failed(verdict) == rules
    assert verdict.photos == (8, 10)


def test_what_was_not_measured_is_said() -> None:
    words = " ".join(reason.text for reason in judge(WEAK, BETTER, limits=LIMITS).reasons)
    assert "what may be forgotten was not measured" in words
    assert "Latency was not measured" in words


def noisy(factor: float, seed: int, pairs: int = 12) -> Latency:
    """Pairs as a busy machine gives them: the ratio of two medians of four of the same model ran from 0.61 to 1.30."""
    rng = np.random.default_rng(seed)
    champion, noise = rng.uniform(0.2, 0.9, pairs), np.exp(rng.normal(0, 0.25, pairs))
    return Latency(tuple(zip(champion, champion * factor * noise, strict=True)))


@pytest.mark.parametrize(
    ("latency", "limit", "rules"),
    [
        pytest.param(Latency(((0.2, 0.29),) * 12), None, set(), id="within"),
        pytest.param(Latency(((0.2, 0.31),) * 12), None, {"latency"}, id="slower"),
        pytest.param(Latency(((0.2, 0.25),) * 12), 0.22, {"latency"}, id="over-the-limit"),
        pytest.param(Latency(((0.313, 0.92), *((0.3, 0.31),) * 11)), None, set(), id="one-chance-timing"),
        pytest.param(Latency(((0.3, 3.1),) * 3 + ((0.3, 0.3),) * 9), None, set(), id="three-of-twelve"),
        pytest.param(Latency(((0.2, 0.31), (0.2, 0.28)) * 6), None, set(), id="not-certainly-slower"),
        pytest.param(noisy(2.5, 0), None, {"latency"}, id="far-slower-on-a-busy-machine"),
        pytest.param(Latency(((0.2, 0.15), (0.2, 0.3)) * 6), 0.22, set(), id="not-certainly-over-the-limit"),
    ],
)
def test_latency(latency: Latency, limit: float | None, rules: set[str]) -> None:
    limits = replace(LIMITS, latency_seconds=limit)
    verdict = judge(WEAK, BETTER, latency=latency, limits=limits)
    assert failed(verdict) == rules
    assert "interval" in next(reason.text for reason in verdict.reasons if reason.rule == "latency")


@pytest.mark.parametrize("pairs", [8, 12])
def test_a_candidate_of_the_same_size_is_not_refused_on_a_busy_machine(pairs: int) -> None:
    for seed in range(200):
        assert not failed(judge(WEAK, BETTER, latency=noisy(1.0, seed, pairs), limits=LIMITS))


def test_latency_that_an_earlier_release_wrote_is_read() -> None:
    found = Latency.from_json([0.2, 0.31])
    assert (found.champion, found.candidate) == (0.2, 0.31)
    assert Latency.from_json(found.as_json()) == found
    with pytest.raises(ValueError, match="positive"):
        Latency(((0.0, 0.1),))


def test_the_figures_are_those_of_the_metrics() -> None:
    rng = np.random.default_rng(1)
    names, presence = ["a", "b", "c"], PresenceMetrics(3)
    scores = []
    for i in range(6):
        present, said = rng.random(3) < 0.6, rng.random(3) < 0.5
        presence.update(present.tolist(), said.tolist(), [0.5] * 3)
        rows = zip(names, present.tolist(), said.tolist(), strict=True)
        classes = [ClassScore(name, 0, 10, 10 * p, p, s, 0.5) for name, p, s in rows]
        scores.append(ImageScore(f"photo-{i}", tuple(classes)))
    figures = judge(scores, scores, limits=LIMITS).figures
    assert figures["f1"].champion == pytest.approx(presence.f1())
    assert figures["false_positive_rate"].champion == pytest.approx(presence.absent_false_positive_rate())


def test_the_verdict_is_the_same_every_time_and_goes_into_json() -> None:
    noisy = photos(*[{"cat": 0.4 + 0.05 * i, "sky": 0.3} for i in range(8)], absent=["car"])
    texts = [json.dumps(judge(WEAK, noisy, limits=LIMITS).as_dict()) for _ in range(2)]
    assert texts[0] == texts[1]
    found = json.loads(texts[0])
    assert found["passed"] == judge(WEAK, noisy, limits=LIMITS).passed
    assert {"reasons", "classes", "flips", "limits", "figures", "summary"} <= found.keys()
    assert found["figures"]["miou"]["interval"]
    assert "answers" not in found


def test_flips_name_what_changed_sides() -> None:
    candidate = photos({"cat": 0.0, "sky": 0.6}, *[{"cat": 0.6, "sky": 0.6}] * 7, absent=["car"], false=["car"])
    flips = judge(WEAK, candidate, limits=LIMITS).flips
    assert len(flips) == 9
    assert [(flip.image_id, flip.name, flip.said, flip.is_right) for flip in flips[:2]] == [
        ("photo-0", "cat", False, False),
        ("photo-0", "car", True, False),
    ]


@pytest.mark.parametrize(
    ("champion", "candidate", "message"),
    [
        pytest.param([], [], "there is none", id="none"),
        pytest.param(WEAK, WEAK[:5], "different held-out photos .photo-5, photo-6", id="other-photos"),
        pytest.param(WEAK, WEAK_TWO, "different classes of photo photo-0", id="other-classes"),
    ],
)
def test_what_cannot_be_compared_is_named(champion: Any, candidate: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        judge(champion, candidate, limits=LIMITS)


# --- score_images -----------------------------------------------------------------------------------------------------

SIZE = (24, 32)
NAMES = ("sky", "cat", "car")


def half(side: str) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    {"top": mask[:12], "left": mask[:, :16], "right": mask[:, 16:]}[side][:] = True
    return mask


class Painter:
    """Answers every photo alike: masks by name; other names are absent."""

    def __init__(self, masks: dict[str, np.ndarray]) -> None:
        self.masks = masks
        self.calls: list[int] = []

    def segment_batch(self, images: Any, class_lists: Any, /, **_: Any) -> list[Segmentation]:
        self.calls.append(len(images))
        return [
            Segmentation(
                SIZE,
                tuple(ClassAnswer(n, 0.9 if n in self.masks else 0.1, self.masks.get(n)) for n in names),
            )
            for names in class_lists
        ]


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Six photos: sky above, a cat on the left, which overlap; a car is certainly absent; void in the first columns."""
    labels = stack_masks(SIZE, [(0, half("top")), (1, half("left"))])
    assert len(labels) == 2
    labels[0, :, :2] = UNKNOWN
    assert OTHER in labels
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "photo.png")
    return [Record("test", str(i), tmp_path / "photo.png", NAMES, labels=lambda: labels) for i in range(6)]


def test_scores_keep_overlaps_and_leave_void_out(records: list[Record]) -> None:
    model = Painter({"sky": half("top"), "cat": half("right"), "car": half("left")})
    scores = score_images(model, records, batch_size=4)
    assert model.calls == [4, 2]
    sky, cat, car = scores[0].classes
    assert (sky.intersection, sky.union, sky.truth) == (12 * 30, 12 * 30, 12 * 30)  # also where the cat is
    assert (cat.intersection, cat.union, cat.truth) == (0, 24 * 30, 24 * 14)
    assert (car.present, car.said, car.truth, car.union) == (False, True, 0, 24 * 14)
    assert [ImageScore.from_dict(json.loads(json.dumps(score.as_dict()))) for score in scores] == scores


class Teller(Painter):
    """Answers with a cat on the left, in these objects, where a cat's objects are asked for."""

    def __init__(self, objects: Objects) -> None:
        super().__init__({"cat": half("left")})
        self.objects = objects

    def segment_batch(self, images: Any, class_lists: Any, /, **_: Any) -> list[Segmentation]:
        assert list(class_lists[0]) == ["sky", ClassQuery("cat", objects=True), "car"]
        answers = super().segment_batch(images, [NAMES] * len(images))
        return [
            Segmentation(SIZE, tuple(replace(a, objects=self.objects if a.name == "cat" else None) for a in answer))
            for answer in answers
        ]


def test_objects_are_scored_where_a_project_has_them(records: list[Record]) -> None:
    """Two cats are annotated, one above the other; the one model gives two, the other one over both."""
    cats = Objects.of_masks([half("left") & half("top"), half("left") & ~half("top")], [1.0, 1.0], SIZE)
    told = [replace(record, objects=lambda: {"cat": cats}) for record in records]
    champion = score_images(Teller(Objects.of_masks([half("left")], [0.9], SIZE)), told)
    candidate = score_images(Teller(cats), told)
    assert champion[0].objects["cat"].matched == 0
    assert candidate[0].objects["cat"].matched == 2
    assert [ImageScore.from_dict(json.loads(json.dumps(score.as_dict()))) for score in candidate] == candidate
    words = objects_in_words(champion, candidate)
    assert words.startswith("panoptic quality 0.000 before, 1.000 after, of 12 objects; matched 0 before, 12 after")
    assert objects_in_words(score_images(Painter({}), records), []) == ""


def test_a_photo_that_cannot_be_scored_is_named_and_left_out(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no photo")
    Image.new("RGB", (5, 5)).save(tmp_path / "small.png")
    broken, small = (replace(records[0], image_id=n, image_path=tmp_path / f"{n}.png") for n in ("broken", "small"))
    failures: dict[str, str] = {}
    done: list[int] = []
    rows = [broken, records[1], small, replace(records[2], classes=(), texts=("a cat",))]
    scores = score_images(Painter({}), rows, lambda: done.append(1), on_failure=failures.__setitem__)
    assert [score.image_id for score in scores] == ["1"]
    assert failures.keys() == {"broken", "small", "2"}
    assert "5 x 5" in failures["small"]
    assert len(done) == 4


def test_swapped_labels_fail_and_right_ones_pass(records: list[Record]) -> None:
    champion = score_images(Painter({"sky": half("top"), "cat": half("top")}), records)
    swapped = score_images(Painter({"sky": half("left"), "cat": half("top")}), records)
    right = score_images(Painter({"sky": half("top"), "cat": half("left")}), records)
    assert failed(judge(champion, swapped, limits=LIMITS)) >= {"better", "class"}
    assert judge(champion, right, limits=LIMITS).passed


def test_latency_is_measured_in_turn(records: list[Record]) -> None:
    champion, candidate = Painter({}), Painter({})
    found = measure_latency(champion, candidate, records, photos=3)
    assert champion.calls == candidate.calls == [1] * 7  # the first photo also warms up
    assert len(found.pairs) == 6
    assert found.champion > 0
    assert found.candidate > 0
    with pytest.raises(DataError, match="no photo can be read"):
        measure_latency(champion, candidate, [])


@pytest.mark.slow
def test_latency_is_of_this_process_and_not_of_what_it_waits_for(records: list[Record]) -> None:
    class Waiting(Painter):
        def segment_batch(self, images: Any, class_lists: Any, /, **options: Any) -> list[Segmentation]:
            time.sleep(0.2)  # the processor is another program's meanwhile
            return super().segment_batch(images, class_lists, **options)

    found = measure_latency(Painter({}), Waiting({}), records, photos=1)
    assert found.candidate < 0.1


class Listener:
    """A tiny real model whose answers to each call are kept."""

    def __init__(self, offset: float) -> None:
        self.model = Lasagna.random()
        self.model.calibration = Calibration(offset=offset)
        self.found: list[int] = []

    def segment_batch(self, images: Any, class_lists: Any, /, **options: Any) -> list[Segmentation]:
        answers = self.model.segment_batch(images, class_lists, **options)
        self.found += [len(answer.present) for answer in answers]
        return answers


def test_latency_is_of_the_same_work_whatever_a_model_would_find(records: list[Record]) -> None:
    many = [replace(record, classes=tuple("abcdefghijkl")) for record in records[:2]]
    nothing, everything = Listener(20.0), Listener(-20.0)
    photo = Image.new("RGB", (9, 9))
    assert [len(each.model.segment(photo, ["a", "b"]).present) for each in (nothing, everything)] == [0, 2]
    measure_latency(nothing, everything, many)
    assert nothing.found == everything.found == [8] * 5


def unasked(scores: list[ImageScore], name: str) -> list[ImageScore]:
    """The same photos, of a model that cannot be asked for a class."""

    def lacking(one: ClassScore) -> ClassScore:
        if one.name != name:
            return one
        return replace(one, intersection=0, union=one.truth, said=False, probability=float("nan"), is_unknown=True)

    return [replace(score, classes=tuple(map(lacking, score.classes))) for score in scores]


def test_a_class_that_cannot_be_asked_is_not_drawn_and_never_absent() -> None:
    rows = [{"cat": 0.5, "sky": 0.5}] * 4 + [{"sky": 0.5}] * 4
    both = [photo(i, row, absent=[] if "cat" in row else ["cat"], false=["cat"]) for i, row in enumerate(rows)]
    lacking = unasked(both, "cat")
    lost = judge(both, lacking, limits=LIMITS)
    assert failed(lost) == {"better", "class"}
    drawn = 4 * 500 / (4 * 1000 + 4 * 100)  # the champion also draws where there is no cat
    assert lost.figures["miou"].champion == pytest.approx((drawn + 0.5) / 2)
    assert lost.figures["miou"].candidate == 0.25
    rate = lost.figures["false_positive_rate"]
    assert (rate.champion, rate.candidate) == (1.0, None), "nothing that it was asked for is absent"
    assert not lost.flips
    assert len(lost.answers[0]) == 8
    assert lost.which_better.as_dict() == {
        "masks": {"champion": {"cat": pytest.approx(-drawn)}, "candidate": {}, "neither": ["sky"]},
        "presence": {"champion": {"cat": pytest.approx(-2 / 3)}, "candidate": {}, "neither": ["sky"]},
        "too few photos": [],
        "cannot be asked": {"champion": {}, "candidate": {"cat": 4}},
    }
    json.dumps(lost.as_dict(), allow_nan=False)
    gained = judge(lacking, both, limits=LIMITS)
    assert gained.passed, "saying a class wrongly that the champion could not be asked for is no new false positive"
    assert gained.which_better.in_words(("SAM 3", "nano"))[0] == "nano draws better: cat (0.455)."


def test_which_model_does_which_class_better() -> None:
    names = ("cat", "sky", "road", "rare")
    before = photos(*[dict.fromkeys(names[:3], 0.5)] * 7, {"rare": 0.5})
    after = photos(*[{"cat": 0.7, "sky": 0.3, "road": 0.5}] * 7, {"rare": 0.9})
    better = judge(before, after, limits=LIMITS).which_better
    masks = better.as_dict()["masks"]
    assert masks == {
        "champion": {"sky": pytest.approx(-0.2)},
        "candidate": {"cat": pytest.approx(0.2)},
        "neither": ["road"],
    }
    assert better.in_words() == [
        "champion draws better: sky (0.200).",
        "candidate draws better: cat (0.200).",
        "Neither draws better beyond chance: road.",
        "Neither decides about presence better beyond chance in any of 3 classes.",
        "In too few photos to tell: rare.",
    ]
