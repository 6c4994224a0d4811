"""Classes that a checkpoint was never taught: not asked, not drawn, not absent, and of no effect on the others."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lasagna import ClassQuery, Lasagna
from lasagna.checkpoint.folder import Calibration
from lasagna.checkpoint.vocabulary import Taught, Vocabulary
from lasagna.masks.segmentation import ClassAnswer, Segmentation

KNOWN = [f"thing {i}" for i in range(12)]
STRANGE = ["kitchen", "a, b", "<SEG>", "日本", "x" * 300]


@pytest.fixture(scope="module")
def model() -> Lasagna:
    found = Lasagna.random(seed=1)
    found.vocabulary = Vocabulary({name: Taught(5) for name in KNOWN}, {"gadget": "thing 3"})
    return found


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def same(one: ClassAnswer, other: ClassAnswer) -> bool:
    masks = [None if answer.mask is None else answer.mask.tobytes() for answer in (one, other)]
    return (one.name, one.probability, one.stability, masks[0]) == (
        other.name,
        other.probability,
        other.stability,
        masks[1],
    )


def test_the_third_state(model: Lasagna) -> None:
    answer = model.segment(photo(), ["thing 1", "kitchen", "thing 2"])
    found = answer["kitchen"]
    assert [one.name for one in answer] == ["thing 1", "kitchen", "thing 2"]
    assert (found.state, found.mask, found.area, found.is_present) == ("unknown", None, 0, False)
    assert math.isnan(found.probability)
    assert answer.unknown == (found,)
    assert found not in answer.absent
    assert found not in answer.present
    assert len(answer.present) + len(answer.absent) == 2


@pytest.mark.parametrize(
    "values", [("sky", math.nan, None), ("sky", 0.5, None, None, True), ("sky", math.nan, np.ones((2, 2), bool), 1.0)]
)
def test_no_answer_is_half_unknown(values: tuple) -> None:
    with pytest.raises(ValueError, match="an unknown class has neither"):
        ClassAnswer(*values)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.sampled_from([*KNOWN, *STRANGE, "Thing-3", "gadget"]), min_size=1, max_size=12),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
    st.sampled_from([None, 0.2, 0.8]),
)
def test_unknown_names_change_no_other_answer(
    model: Lasagna, names: list[str], chunk_size: int | None, exclusive: bool, own: float | None
) -> None:
    asked = [ClassQuery(name, threshold=own if i % 3 == 0 else None) for i, name in enumerate(names)]
    known = [query for query in asked if query.name not in STRANGE]
    options = {"chunk_size": chunk_size, "exclusive": exclusive, "threshold": 0.5}
    mixed = model.segment(photo(), asked, **options)
    assert [answer.name for answer in mixed] == names
    assert [answer.name for answer in mixed.unknown] == [name for name in names if name in STRANGE]
    rest = [answer for answer in mixed if not answer.is_unknown]
    alone = model.segment(photo(), known, **options) if known else Segmentation((48, 64), ())
    assert len(rest) == len(alone)
    assert all(map(same, rest, alone))


def test_nothing_known_is_still_an_answer(model: Lasagna) -> None:
    answers = model.segment_batch([photo(1), photo(2)], [STRANGE, ["thing 1"]])
    assert [one.state for one in answers[0]] == ["unknown"] * len(STRANGE)
    assert answers[0].size == (48, 64)
    alone = model.segment(photo(2), ["thing 1"]).classes[0]
    assert answers[1].classes[0].probability == pytest.approx(alone.probability, abs=1e-5)
    assert len(model.segment(photo(), STRANGE).unknown) == len(STRANGE)


def test_other_words_are_read_as_what_was_taught(model: Lasagna) -> None:
    plain = model.segment(photo(), ["thing 3"]).classes[0]
    for word in ("gadget", "Thing_3", "gadgets"):
        assert model.segment(photo(), [word]).classes[0].probability == plain.probability
    assert model.segment(photo(), [ClassQuery("Ding", "gadget")])["Ding"].probability == plain.probability
    assert model.segment(photo(), [ClassQuery("thing 3", "kitchen")])["thing 3"].is_unknown


def test_guessing_asks_everything_as_without_a_vocabulary(model: Lasagna) -> None:
    plain = Lasagna.random(seed=1)
    names = ["thing 1", "kitchen", "日本"]
    guessed, expected = model.segment(photo(), names, guess_unknown=True), plain.segment(photo(), names)
    assert not guessed.unknown
    assert all(map(same, guessed, expected))
    assert not plain.segment(photo(), names).unknown


def test_a_vocabulary_travels_with_the_model(model: Lasagna) -> None:
    assert pickle.loads(pickle.dumps(model)).segment(photo(), ["kitchen"]).unknown


# --- The instant head -------------------------------------------------------------------------------------------------


def made(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
    """A photo of a bright disc on dark ground, and its masks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :128]
    disc = (y - rng.integers(25, 70)) ** 2 + (x - rng.integers(30, 100)) ** 2 < rng.integers(12, 22) ** 2
    image = np.where(disc[..., None], [230, 200, 60], [40, 60, 90]) + rng.normal(size=(96, 128, 3)) * 12
    return image.clip(0, 255).astype(np.uint8), {"disc": disc, "ground": ~disc, "nothing": None}


def test_corrections_make_a_class_known() -> None:
    model = Lasagna.random(seed=1)
    model.vocabulary = Vocabulary({"ground": Taught(5)})
    image, truth = made(99)
    asked = ["disc", "ground", "nothing", "kitchen"]
    assert [one.name for one in model.segment(image, asked).unknown] == ["disc", "nothing", "kitchen"]
    for seed in range(8):
        model.learn(*made(seed), id=f"photo {seed}")
        if not model.head.serves:  # type: ignore[union-attr]
            assert model.segment(image, asked)["disc"].is_unknown, "while the model draws, it knows no more than before"
    assert model.head is not None
    assert model.head.serves
    answer = model.segment(image, asked)
    assert [one.state for one in answer] == ["present", "present", "unknown", "unknown"]
    found, drawn = answer["disc"].mask, truth["disc"]
    assert found is not None
    assert drawn is not None
    assert (found & drawn).sum() / (found | drawn).sum() > 0.85
    without = model.segment(image, ["disc", "ground"])
    assert all(map(same, [answer["disc"], answer["ground"]], without))
    model.use_head(None)
    assert model.segment(image, asked)["disc"].is_unknown


def test_a_guess_is_no_answer_that_a_head_must_beat(model: Lasagna) -> None:
    """While the model draws it is not asked for what it was never taught: nothing is drawn there."""
    names = ["thing 1", "kitchen"]
    masks = {name: np.ones((48, 64), bool) for name in names}
    everything = Lasagna.random(seed=1)
    everything.calibration = model.calibration = Calibration(offset=-100.0)  # it says everything
    try:
        answer, guessed = (each.observe(photo(), masks, "1").answer for each in (model, everything))
    finally:
        model.calibration = Calibration()
    assert answer is not None
    assert guessed is not None
    assert guessed.said.tolist() == [True, True]
    assert answer.said.tolist() == [True, False]
    assert torch.equal(answer.mask_logits, guessed.mask_logits)
    assert torch.equal(answer.probability, guessed.probability)
