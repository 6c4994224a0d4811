"""The paper's three strategies as switches."""

import random

import pytest

from training.examples.sequences import ClassList, sample_class_list
from training.recipe.sequence import SequenceOptions

POSITIVES = [f"p{i}" for i in range(8)]
NEGATIVES = [f"n{i}" for i in range(30)]


def draw(length: int = 12, seed: int = 0, **options: object) -> ClassList:
    return sample_class_list(POSITIVES, NEGATIVES, length, SequenceOptions(**options), random.Random(seed))


@pytest.mark.parametrize("seed", range(20))
def test_names_are_distinct_and_truthful(seed: int) -> None:
    drawn = draw(seed=seed)
    assert len(set(drawn.names)) == len(drawn.names) == 12
    assert all(present == name.startswith("p") for name, present in zip(drawn.names, drawn.present, strict=True))


def test_without_a_random_list_every_class_is_asked() -> None:
    assert sorted(draw(random_list=False).names) == sorted(POSITIVES + NEGATIVES)


def test_all_positives_is_a_rate() -> None:
    always = [sum(draw(seed=s, all_positives=1.0).present) for s in range(30)]
    never = [sum(draw(seed=s, all_positives=0.0).present) for s in range(30)]
    assert set(always) == {8}
    assert min(never) < 4


def test_without_negatives_only_present_classes_are_answered() -> None:
    drawn = draw(negatives=False)
    assert not all(drawn.present)
    assert {drawn.present[i] for i in drawn.answered} == {True}
    assert len(drawn.answered) == sum(drawn.present)


def test_order_consistency() -> None:
    assert draw(keep_order=True).answered == tuple(range(12))
    shuffled = draw(keep_order=False).answered
    assert sorted(shuffled) == list(range(12)) != list(shuffled)


@pytest.mark.parametrize(("positives", "negatives"), [([], ["a"]), (["a"], []), (["a", "b"], ["c"])])
def test_short_of_names(positives: list[str], negatives: list[str]) -> None:
    for seed in range(10):
        drawn = sample_class_list(positives, negatives, 12, SequenceOptions(), random.Random(seed))
        assert sorted(drawn.names) == sorted(positives + negatives)


def test_without_a_class_list_one_present_class_is_asked() -> None:
    names = {draw(class_list=False, seed=s).names for s in range(40)}
    assert {len(drawn) for drawn in names} == {1}
    assert {name for (name,) in names} == set(POSITIVES)
    assert draw(class_list=False).present == (True,)
    nothing = sample_class_list([], NEGATIVES, 5, SequenceOptions(class_list=False), random.Random(0))
    assert nothing == ClassList((), (), ())


def test_lengths_are_drawn_by_share() -> None:
    options = SequenceOptions(lengths=((3.0, 1, 2), (1.0, 8, 9)))
    drawn = [options.draw_lengths(random.Random(s)) for s in range(400)]
    assert set(drawn) == {(1, 2), (8, 9)}
    assert 0.65 < drawn.count((1, 2)) / 400 < 0.85


def test_most_answered_keeps_every_present_class() -> None:
    """As the released checkpoint was trained: all classes are asked, some absent ones are not answered."""
    for seed in range(20):
        drawn = draw(random_list=False, most_answered=12, keep_order=False, seed=seed)
        assert len(drawn.names) == 38
        assert len(drawn.answered) == len(set(drawn.answered)) == 12
        assert {drawn.names[i] for i in drawn.answered if drawn.present[i]} == set(POSITIVES)
    assert len(draw(random_list=False, most_answered=5).answered) == 5
    assert draw(random_list=False, most_answered=12).answered == tuple(
        sorted(draw(random_list=False, most_answered=12).answered)
    )


@pytest.mark.parametrize("lengths", [((1.0, 5, 2),), (), ((0.0, 1, 2),), ((1.0, 0, 2),)])
def test_lengths_that_make_no_sense(lengths: object) -> None:
    with pytest.raises(ValueError, match="lengths"):
        SequenceOptions(lengths=lengths)
