"""Models with a closed list: transformers' own maps, and labels that mean no name of the list are unknown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lab.bench.peer_models import write_model
from lasagna import ClassQuery
from lasagna.checkpoint.closed_lists import closed_synonyms
from lasagna.checkpoint.folder import find_checkpoint
from lasagna.checkpoint.vocabulary import load_vocabulary
from lasagna.errors import CheckpointError
from lasagna.models.closed_list import ClosedList
from lasagna.models.loading import load_model

KINDS = ("eomt", "mask2former", "oneformer")
NAMES = ["sky", "road", "person", "car", "tree-merged", "sofa", "dining table", "airplane"]


def load(kind: str, folder: Path) -> ClosedList:
    found = load_model(write_model(kind, folder / kind, names=NAMES), device="cpu")
    assert isinstance(found, ClosedList)
    return found


def photo(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_scores_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model, image = load(kind, tmp_path), photo(48, 80)
    more: dict[str, Any] = {"task_inputs": ["semantic"]} if kind == "oneformer" else {}
    given = model.processor(images=[image], return_tensors="pt", **more)
    with torch.inference_mode():
        raw = model.network(**given)
    classes = model.processor.post_process_semantic_segmentation(raw, target_sizes=[(48, 80)])[0].numpy()
    best = raw.class_queries_logits.softmax(-1)[..., :-1].flatten(0, 1).amax(0)
    answer = model.segment(image, NAMES, threshold=1e-6)
    assert [one.probability for one in answer] == pytest.approx(best.tolist(), abs=1e-5)
    for number, one in enumerate(answer):
        assert one.mask is not None
        assert (one.mask == (classes == number)).all()
    level = float(best.median())
    assert [one.is_present for one in model.segment(image, NAMES, threshold=level)] == (best >= level).tolist()


def test_a_padded_photo_of_eomt_is_cut_to_its_content(tmp_path: Path) -> None:
    model = load("eomt", tmp_path)
    model.processor.do_split_image, model.processor.do_pad = False, True
    model.processor.size = type(model.processor.size)(shortest_edge=64, longest_edge=64)
    whole, wide = (
        model.segment(photo(64, 64), NAMES, threshold=1e-6),
        model.segment(photo(32, 64), NAMES, threshold=1e-6),
    )
    given = model.processor(images=[photo(64, 64)], return_tensors="pt")
    with torch.inference_mode():
        raw = model.network(pixel_values=given["pixel_values"])
    classes = model.processor.post_process_semantic_segmentation(raw, target_sizes=[(64, 64)])[0].numpy()
    assert all((one.mask == (classes == number)).all() for number, one in enumerate(whole))
    # The lower half of its input is padding: the classes there are in no mask.
    padded = model.processor(images=[photo(32, 64)], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        raw = model.network(pixel_values=padded)
    map = model.processor.post_process_semantic_segmentation(raw, target_sizes=[(64, 64)])[0].numpy()[:32]
    assert np.mean([(one.mask == (map == number)).mean() for number, one in enumerate(wide)]) > 0.97


def test_labels_are_read_as_names_of_the_list_and_others_are_unknown(tmp_path: Path) -> None:
    model = load("eomt", tmp_path)
    labels = ["Cars", "tree", "couch", "aeroplane", "people", "kitchen", "dining_table", "cat"]
    answer = model.segment(photo(48, 48), [*labels, ClassQuery("mein Auto", reads_as="automobile")])
    assert [one.name for one in answer.unknown] == ["kitchen", "cat"]
    assert answer["Cars"].probability == answer["mein Auto"].probability
    assert model.read_text("Cars") == "car"
    assert not model.knows(ClassQuery("kitchen"))
    known = load_vocabulary(find_checkpoint(tmp_path / "eomt"))
    assert known is not None
    assert known.unknown([ClassQuery(label) for label in labels]) == ["kitchen", "cat"]


@pytest.mark.parametrize(
    ("names", "word", "read"),
    [
        (["car;auto;motorcar", "wall"], "motorcar", "car;auto;motorcar"),
        (["tvmonitor"], "television", "tvmonitor"),
        (["wall-other-merged", "wall-brick"], "wall", "wall-other-merged"),
        (["tree-merged", "tree"], "tree", None),
        (["sidewalk", "pavement"], "footpath", None),  # two names that may be meant
        (["road"], "street", None),
    ],
)
def test_synonyms(names: list[str], word: str, read: str | None) -> None:
    assert closed_synonyms(names).get(word) == read


def test_a_folder_without_names_is_refused(tmp_path: Path) -> None:
    folder = write_model("eomt", tmp_path / "eomt")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="write its names there"):
        load_model(folder, device="cpu")
