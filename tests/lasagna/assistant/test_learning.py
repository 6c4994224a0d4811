"""`Lasagna.learn`, `forget` and `use_head`: a model with an instant head, on real photos where there are any."""

from pathlib import Path

import numpy as np
import pytest

from lasagna import Lasagna
from lasagna.errors import CheckpointError, DataError
from lasagna.instant.head import Head
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import ClassQuery
from training.data.records import UNKNOWN
from training.data.sources.folder import Folder

NAMES = ["disc", "ground", "nothing"]


def made(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
    """A photo of a bright disc on dark ground, and its masks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :128]
    disc = (y - rng.integers(25, 70)) ** 2 + (x - rng.integers(30, 100)) ** 2 < rng.integers(12, 22) ** 2
    image = np.where(disc[..., None], [230, 200, 60], [40, 60, 90]) + rng.normal(size=(96, 128, 3)) * 12
    return image.clip(0, 255).astype(np.uint8), {"disc": disc, "ground": ~disc, "nothing": None}


@pytest.fixture(scope="module")
def taught() -> Lasagna:
    model = Lasagna.random(seed=1)
    for seed in range(8):
        model.learn(*made(seed), id=f"photo {seed}")
    return model


def test_the_version_names_the_head() -> None:
    model = Lasagna.random(seed=1)
    assert model.version == "random-1"
    decision = model.learn(*made(0), id="a")
    assert model.version == "random-1+h1"
    assert decision.reason == "the model draws: 1 correction so far, at least 5 are needed"
    model.learn(*made(1))
    assert model.version == "random-1+h2"
    assert model.forget("a")
    assert model.version == "random-1+h3"
    assert not model.forget("a")
    model.use_head(None)
    assert model.version == "random-1"


def test_the_next_photo_is_better(taught: Lasagna) -> None:
    image, masks = made(99)
    before = Lasagna.random(seed=1).segment(image, NAMES, exclusive=True)
    after = taught.segment(image, NAMES)
    assert taught.head is not None
    assert taught.head.serves
    for name in ("disc", "ground"):
        truth, found = masks[name], after[name].mask
        assert found is not None
        assert (truth & found).sum() / (truth | found).sum() > 0.85
        plain = before[name].mask
        assert plain is None or (truth & plain).sum() / (truth | plain).sum() < 0.85
    assert after["disc"].probability > 0.5
    assert 0 <= after["disc"].stability <= 1
    assert not (after["disc"].mask & after["ground"].mask).any()


def test_answers_keep_the_query(taught: Lasagna) -> None:
    image, _ = made(99)
    asked = ["ground", "never seen", "disc", "ground"]
    answer = taught.segment(image, asked)
    assert [each.name for each in answer.classes] == asked
    assert answer.size == (96, 128)
    assert np.array_equal(answer.classes[0].mask, answer.classes[3].mask)


def test_images_of_a_batch_do_not_change_one_another(taught: Lasagna) -> None:
    images = [made(seed)[0] for seed in (50, 51)]
    together = taught.segment_batch(images, [NAMES, NAMES[:2]])
    apart = [taught.segment(image, names) for image, names in zip(images, (NAMES, NAMES[:2]), strict=True)]
    for one, other in zip(together, apart, strict=True):
        for a, b in zip(one.classes, other.classes, strict=True):
            assert a.probability == pytest.approx(b.probability, abs=1e-4)
            assert a.mask is None or (a.mask == b.mask).mean() > 0.999


def test_a_threshold_moves_decisions_of_a_head(taught: Lasagna) -> None:
    image, _ = made(99)
    for threshold in (0.02, 0.5, 0.98):
        answer = taught.segment(image, NAMES, threshold=threshold)
        assert all((each.probability >= threshold) == each.is_present for each in answer.classes)


def test_a_class_has_a_threshold_of_its_own_with_a_head(taught: Lasagna) -> None:
    image, _ = made(99)
    asked = [ClassQuery("disc", threshold=1 - 1e-12), "ground", ClassQuery("nothing", threshold=1e-12)]
    assert [a.name for a in taught.segment(image, asked).present] == ["ground", "nothing"]


def test_below_five_corrections_masks_and_decisions_are_the_models() -> None:
    model, plain = Lasagna.random(seed=1), Lasagna.random(seed=1)
    for seed in range(4):
        model.learn(*made(seed))
    names = [*NAMES, *(f"thing {i}" for i in range(20))]
    image, _ = made(99)
    with_head, without = model.segment(image, names), plain.segment(image, names)
    assert any(each.is_present for each in without.classes)
    for one, other in zip(with_head.classes, without.classes, strict=True):
        assert one.is_present == other.is_present == (one.probability >= 0.5)
        assert one.mask is None or np.array_equal(one.mask, other.mask)
        if one.name.startswith("thing"):
            assert one.probability == pytest.approx(other.probability)


@pytest.mark.slow
def test_forgetting_is_as_if_it_had_never_been(taught: Lasagna) -> None:
    model = Lasagna.random(seed=1)
    image, masks = made(7)
    model.learn(255 - image, {**masks, "disc": masks["ground"], "ground": masks["disc"]}, id="mistake")
    for seed in range(8):
        model.learn(*made(seed), id=f"photo {seed}")
    assert not np.array_equal(model.head.weight, taught.head.weight)
    model.forget("mistake")
    assert model.head.weight.equal(taught.head.weight)
    model.learn(*made(3), id="photo 3")  # again: it is the newest now, and nothing else
    assert model.head.weight.equal(taught.head.weight)


def test_forgetting_everything_leaves_the_model() -> None:
    model = Lasagna.random(seed=1)
    model.learn(*made(0), id="a")
    model.forget("a")
    assert model.head is None
    assert model.version == "random-1"
    model.learn(*made(0), id="a")
    assert model.version == "random-1+h3"


def test_a_photo_that_is_encoded_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Lasagna.random(seed=1)
    image, masks = made(0)
    features = model.encode_image(image)
    monkeypatch.setattr(model, "encode_image", None)
    model.learn(features, masks)
    assert model.version.endswith("+h1")


def test_a_head_of_a_file(taught: Lasagna, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(taught.head.to_bytes())
    model = Lasagna.random(seed=1)
    model.use_head(Head.load(path))
    image, _ = made(99)
    one, other = (m.segment(image, NAMES) for m in (model, taught))
    assert model.version == taught.version == "random-1+h8"
    assert all(a.probability == b.probability for a, b in zip(one.classes, other.classes, strict=True))
    per_call = Lasagna.random(seed=1).segment(image, NAMES, head=Head.load(path))
    assert per_call["disc"].probability == one["disc"].probability


def test_a_head_of_another_model_is_refused(taught: Lasagna, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(taught.head.to_bytes())
    with pytest.raises(CheckpointError, match="another encoder"):
        Lasagna.from_pretrained("nano", head=path)
    with pytest.raises(CheckpointError, match="another encoder"):
        Lasagna.random(seed=2).segment(made(0)[0], NAMES, head=taught.head)


def test_masks_of_another_size_are_refused(taught: Lasagna) -> None:
    image, _ = made(0)
    with pytest.raises(DataError, match=r"the photo needs bool \(96, 128\)"):
        taught.learn(image, {"disc": np.zeros((12, 12), bool)})
    assert len(taught._learner) == 8


@pytest.mark.slow
def test_swapped_classes_do_not_get_in_on_real_photos(shared_data: Path) -> None:
    """Of ten corrected street photos, those of a careless annotator have road and building exchanged."""
    data, model = Folder(shared_data / "camvid", "train"), Lasagna.from_pretrained("nano")
    swap = {"road": "building", "building": "road"}
    for number, index in enumerate(range(0, 360, 36)):
        photo = data[index]
        (truth,) = photo.read()
        masks = {name: truth == i for i, name in enumerate(data.classes)}
        if number % 2:
            masks = {name: masks[swap.get(name, name)] for name in masks}
        decision = model.learn(np.asarray(load_image(photo.image_path)), masks, undecided=truth == UNKNOWN)
        assert not decision.serves
    assert "the model draws: the head would give" in decision.reason
