"""What is kept of a corrected photo: labels on the grid, samples, size, and the file."""

import numpy as np
import pytest
import torch

from lasagna.errors import DataError
from lasagna.instant.correction import LARGEST, Correction, ModelAnswer, make_correction
from lasagna.instant.features import FeatureMaps
from lasagna.instant.statistics import NONE
from tests.lasagna.instant.instant_world import CLASSES, ENCODER, SIZE, made_correction, made_maps, made_masks


def test_a_file_gives_the_correction_back():
    one = made_correction(3)
    other = Correction.from_bytes(one.to_bytes())
    assert other.to_bytes() == one.to_bytes()
    assert other.digest == one.digest
    assert (other.id, other.order, other.classes, other.version) == ("photo 3", 3, CLASSES, "model-1")
    assert torch.equal(other.statistics.moment, one.statistics.moment)


def test_its_place_in_time_is_not_part_of_its_digest():
    one = made_correction(3)
    assert one.numbered(99).digest == one.digest != made_correction(4).digest


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_damaged_file_says_so(cut):
    with pytest.raises(DataError, match=r"cannot be read .*; remove it"):
        Correction.from_bytes(made_correction(1).to_bytes()[:cut])


def test_labels_are_those_at_the_cells_centres():
    masks = made_masks(2)
    made = make_correction("a", made_maps(2, masks), masks, SIZE, encoder=ENCODER)
    counts = dict(zip(made.statistics.names, made.statistics.counts.tolist(), strict=True))
    for name, mask in masks.items():
        assert counts.get(name, 0) == mask[2::4, 2::4].sum()
    assert counts[NONE] == sum(counts.values()) - sum(int(m[2::4, 2::4].sum()) for m in masks.values())


def test_of_overlapping_masks_the_smaller_counts():
    masks = {name: np.zeros(SIZE, bool) for name in CLASSES}
    masks["soil"][:] = True
    masks["weed"][8:40, 8:40] = True
    made = make_correction("a", made_maps(0, masks), masks, SIZE, encoder=ENCODER)
    assert made.statistics.names == ("soil", "weed")
    assert made.statistics.counts[1] == 64


def test_undecided_pixels_are_in_neither_statistics_nor_samples():
    masks = made_masks(2)
    undecided = np.zeros(SIZE, bool)
    undecided[:, :64] = True
    made = make_correction("a", made_maps(2, masks), masks, SIZE, encoder=ENCODER, undecided=undecided)
    assert made.statistics.pixels == 24 * 16
    assert made.weight.sum().item() == pytest.approx(24 * 16)


def test_all_undecided_is_an_empty_correction():
    masks = made_masks(2)
    made = make_correction("a", made_maps(2, masks), masks, SIZE, encoder=ENCODER, undecided=np.ones(SIZE, bool))
    assert made.statistics.pixels == 0
    assert len(made.samples) == 0
    assert Correction.from_bytes(made.to_bytes()).statistics.names == ()


def test_samples_stand_for_all_cells_of_their_class():
    made = made_correction(5)
    cells = dict(zip(made.statistics.names, made.statistics.counts.tolist(), strict=True))
    for index, name in enumerate((*CLASSES, NONE)):
        assert made.weight[made.truth == index].sum().item() == pytest.approx(cells.get(name, 0))


@pytest.mark.parametrize(("channels", "classes"), [(531, 5), (531, 150), (515, 37), (100, 1)])
def test_it_is_never_over_its_size(channels, classes):
    grid = (128, 128)
    maps = FeatureMaps((torch.randn(channels, *grid),), grid, (512, 512), 4)
    names = [f"class {i}" for i in range(classes)]
    rng = np.random.default_rng(0)
    owner = np.kron(rng.integers(0, min(classes, 30), (16, 16)), np.ones((32, 32), int))
    answer = ModelAnswer("m", torch.rand(classes), torch.ones(classes, dtype=torch.bool), torch.randn(classes, *grid))
    made = make_correction(
        "a", maps, {name: owner == i for i, name in enumerate(names)}, (512, 512), encoder=ENCODER, answer=answer
    )
    assert len(made.to_bytes()) <= LARGEST
    assert len(made.samples) >= 100


@pytest.mark.parametrize(
    ("masks", "undecided", "message"),
    [
        ({}, None, "needs the classes"),
        ({" ": None}, None, "blank"),
        ({"a": np.zeros((5, 5), bool)}, None, r"mask of 'a' is bool \(5, 5\), the photo needs bool \(96, 128\)"),
        ({"a": np.zeros(SIZE, np.uint8)}, None, "uint8"),
        ({"a": None}, np.zeros((4, 4), bool), "what is undecided"),
    ],
    ids=["no class", "blank", "size", "type", "undecided"],
)
def test_bad_masks_are_refused(masks, undecided, message):
    with pytest.raises(DataError, match=message):
        make_correction("a", made_maps(0, {}), masks, SIZE, encoder=ENCODER, undecided=undecided)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_teach_nothing(value):
    masks = made_masks(2)
    maps = made_maps(2, masks)
    maps.parts[0][0, 0, 0] = value
    with pytest.raises(DataError, match="not finite"):
        make_correction("a", maps, masks, SIZE, encoder=ENCODER)
