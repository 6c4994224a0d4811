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


BLOCKS = [0, 0, 1, 1, 2, 1, 1, 2, 0, 2, 2, 2]
"""Class of each block of a photo in 3 x 4 blocks: of class 0 the two of the first row touch, and one stands alone."""
UNSURE = 8


def sure_of_blocks(module: Any, given: Any, found: Any) -> None:
    """In the place of what random weights say: a query for each block, surer of its class than transformers asks for,
    but for one."""
    masks, classes = found.masks_queries_logits, found.class_queries_logits
    height, width = masks.shape[-2:]
    masks[:], classes[:] = -9.0, -9.0
    for query, number in enumerate(BLOCKS):
        row, column = divmod(query, 4)
        rows = slice(row * height // 3, (row + 1) * height // 3)
        masks[:, query, rows, column * width // 4 : (column + 1) * width // 4] = 9.0
        classes[:, query, number] = 9.0 - query / 10
    classes[:, UNSURE, -1] = classes[:, UNSURE, 0] + 0.5  # "nothing" is likelier, and no other class is likely


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_segments_of_the_panoptic_map(kind: str, tmp_path: Path) -> None:
    model, image = load(kind, tmp_path), photo(64, 64)
    if kind == "eomt":
        assert not model.abilities.objects, "a photo in patches has objects cut by their borders"
        model.processor.do_split_image, model.processor.do_pad = False, True
        model.processor.size = type(model.processor.size)(shortest_edge=64, longest_edge=64)
        model.processor.save_pretrained(tmp_path / kind)
        model = ClosedList(tmp_path / kind, model.network, model.processor)
    assert model.abilities.objects == (kind != "oneformer")
    model.network.register_forward_hook(sure_of_blocks)
    answer = model.segment(image, [ClassQuery(name, objects=True) for name in NAMES[:3]])
    assert all(one.objects is not None for one in answer), "where the model does not tell them apart, by shape"
    sky = answer[NAMES[0]].objects
    assert sky is not None
    if kind == "oneformer":
        assert len(sky) == 2
        return
    more: dict[str, Any] = {} if kind == "eomt" else {"label_ids_to_fuse": set()}
    with torch.inference_mode():
        raw = model.network(pixel_values=model.processor(images=[image], return_tensors="pt")["pixel_values"])
    wanted = model.processor.post_process_panoptic_segmentation(raw, target_sizes=[(64, 64)], **more)[0]
    segments = wanted["segmentation"].numpy()
    assert len(wanted["segments_info"]) == len(BLOCKS) - 1
    for number, one in enumerate(answer):
        own = [row for row in wanted["segments_info"] if row["label_id"] == number]
        assert one.objects is not None
        # Mask2Former's post-processing gives every pixel to a segment, EoMT's only those that a query draws.
        alone = kind == "eomt" and number == BLOCKS[UNSURE]
        assert len(one.objects) == len(own) + alone, "a part that no segment has is an object"
        for row, found in zip(own, one.objects, strict=False):
            assert found.score == pytest.approx(row["score"], abs=1e-4)
            assert (found.mask == (segments == row["id"]) & one.mask).mean() > 0.98
    assert [one.objects for one in model.segment(image, NAMES[:3])] == [None] * 3


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
