"""The shipped model: it is there, it is small, it is decoded exactly, and it knows what it was trained on."""

from pathlib import Path

import pytest
import torch

from lab.bench.decoders import bias_for_share, compare_decisions
from lasagna import Lasagna
from lasagna.checkpoint.folder import SHIPPED, shipped_checkpoints
from lasagna.masks.image import load_image
from lasagna.network.decoding import decode_class_lists
from lasagna.network.model import cast_weights
from training.data.concepts import CONCEPTS
from training.data.sources.folder import Folder
from training.evaluation.evaluate import evaluate_dataset


@pytest.fixture(scope="module")
def nano() -> Lasagna:
    return Lasagna.from_pretrained("nano", device="cpu")


def test_it_ships_and_is_small() -> None:
    assert "nano" in shipped_checkpoints()
    assert sum(file.stat().st_size for file in (SHIPPED / "nano").iterdir()) < 40e6
    card = (SHIPPED / "nano" / "README.md").read_text()
    for data_set in ("camvid", "msrc", "coco_panoptic", "coco_things", "ccp", "facade", "atwork", "cwfid"):
        assert data_set in card, "the card lists every data set that the weights were trained on"


def test_it_says_what_it_was_taught(nano: Lasagna, photos: dict[str, Path]) -> None:
    labels = ["cat", "kitchen", "Sofas", "flux capacitor", "sky"]
    answer = nano.segment(load_image(photos["cat"]), labels)
    assert [one.name for one in answer.unknown] == ["kitchen", "flux capacitor"]
    assert nano.vocabulary is not None
    assert nano.vocabulary.reading("Sofas") in ("couch", "sofa")
    known = nano.segment(load_image(photos["cat"]), ["cat", "Sofas", "sky"])
    assert [one.probability for one in known] == [one.probability for one in answer if not one.is_unknown]
    for name in ("person", "car", "road", "tree", "dog", "building", "grass"):
        assert nano.vocabulary.names[name].photos > 0, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("count", [20, pytest.param(133, marks=pytest.mark.slow)])
def test_its_answers_are_those_of_the_sequential_decoder(
    photos: dict[str, Path], dtype: torch.dtype, count: int
) -> None:
    model = Lasagna.from_pretrained("nano", device="cpu")
    cast_weights(model.model, dtype)
    tokens = torch.cat([model.encode_image(load_image(photos[name])).encoded.tokens for name in ("cat", "motorcycle")])
    query = model.prompt.query([model.prompt.encode_name(name) for name in list(CONCEPTS)[:count]])
    bias = bias_for_share(model.model, model.prompt, tokens, query, 0.2)
    found = decode_class_lists(model.model, model.prompt, tokens, [query, query], [0, 1], [bias, bias])
    present = torch.stack([answer.present for answer in found.lists])
    assert 0.05 < present.float().mean() < 0.5
    comparison = compare_decisions(model.model, model.prompt, tokens, query, bias, present)
    assert comparison.identical, comparison
    if dtype == torch.float32:
        assert comparison.differing == 0


def test_common_labels_are_one_or_two_tokens(nano: Lasagna) -> None:
    for name in ("sky", "road", "person", "traffic light", "pedestrian"):
        assert len(nano.prompt.encode_name(name)) <= 2, name


def test_absent_classes_stay_absent(nano: Lasagna, photos: dict[str, Path]) -> None:
    """A cat's portrait asked for the whole of COCO's animals and vehicles."""
    labels = ["airplane", "zebra", "giraffe", "bus", "train", "elephant", "boat", "cat", "truck", "pizza"]
    answer = nano.segment(load_image(photos["cat"]), labels)
    ranked = sorted(answer.classes, key=lambda a: a.probability, reverse=True)
    assert "cat" in [a.name for a in ranked[:3]]
    assert len(answer.absent) >= 7


@pytest.mark.slow
def test_it_knows_street_photos(nano: Lasagna, shared_data: Path) -> None:
    """A floor under the card's figures, on a few photos, so that a broken checkpoint is noticed."""
    result = evaluate_dataset(nano, Folder(shared_data / "camvid", "val"), limit=8).as_dict()
    assert result["presence"]["f1"] > 0.85
    assert result["per_class"]["road"]["iou"] > 0.7
    assert result["per_class"]["sky"]["iou"] > 0.8
