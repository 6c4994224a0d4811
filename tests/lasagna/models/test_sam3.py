"""SAM 3 behind the contract: blocks and presence first give what the whole network gives for one name at a time."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lab.bench.peer_models import write_model
from lasagna import ClassQuery
from lasagna.checkpoint.folder import Calibration
from lasagna.models.loading import load_model
from lasagna.models.sam3 import Sam3

NAMES = ["sky", "a red car", "person", "日本", "tree", "road"]
STUFF = ("sky", "tree", "road")
SIZE = (60, 84)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Sam3:
    return made("sam3", tmp_path_factory.mktemp("models"))


def made(kind: str, folder: Path) -> Sam3:
    found = load_model(write_model(kind, folder / kind), device="cpu")
    assert isinstance(found, Sam3)
    best = torch.tensor([one.probability for one in found.segment(photo(), NAMES)]).logit()
    found.calibration = Calibration(offset=float(best.median()) - 1e-4)  # some names are present
    return found


@pytest.fixture
def calls(model: Sam3) -> Iterator[dict[str, int]]:
    """Rows that each part of the network has computed so far."""
    rows = dict.fromkeys(("vision_encoder", "text_encoder", "detr_encoder", "mask_decoder"), 0)

    def count(part: str, output: object) -> None:
        first = output.pred_masks if part == "mask_decoder" else output.last_hidden_state  # type: ignore[attr-defined]
        rows[part] += len(first)

    parts = {part: getattr(model.network, part) for part in rows}
    hooks = [one.register_forward_hook(lambda _, __, out, part=part: count(part, out)) for part, one in parts.items()]
    model._texts.clear()
    yield rows
    for hook in hooks:
        hook.remove()


def photo(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8))


def by_transformers(model: Sam3, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All scores and masks (Q, H, W) of one name, and the semantic head's (H, W)."""
    given = model.processor(images=[photo()], text=[name], return_tensors="pt")
    with torch.inference_mode():
        raw = model.network(**{key: given[key] for key in ("pixel_values", "input_ids", "attention_mask")})
    found = model.processor.image_processor.post_process_instance_segmentation(raw, threshold=-1, target_sizes=[SIZE])[
        0
    ]
    semantic = model.processor.image_processor.post_process_semantic_segmentation(raw, target_sizes=[SIZE])[0]
    return found["scores"], found["masks"].bool(), semantic.bool()


@pytest.mark.parametrize("presence_first", [True, False])
@pytest.mark.parametrize("block", [1, 3, 16])
def test_answers_are_those_of_one_name_at_a_time(model: Sam3, block: int, presence_first: bool) -> None:
    model.presence_first = presence_first
    answer = model.segment(photo(), NAMES, chunk_size=block)
    model.presence_first = True
    assert 2 <= len(answer.present) <= 5
    offset = model.calibration.offset
    for one in answer:
        scores, masks, semantic = by_transformers(model, one.name)
        assert one.probability == pytest.approx(float((scores.max().logit() - offset).sigmoid()), abs=1e-4)
        if one.mask is not None:
            wanted = semantic if one.name in STUFF else masks[scores.logit() >= offset - 1e-6].any(0)
            assert (one.mask == wanted.numpy()).mean() > 0.999


def greedily(masks: np.ndarray) -> np.ndarray:
    """Numbers of objects: what a mask (the best first) leaves free of better ones, or a part of one of these."""
    numbers = np.zeros(SIZE, int)
    for mask in masks:
        fresh = mask & (numbers == 0)
        if 2 * fresh.sum() >= mask.sum():
            numbers[fresh] = numbers.max() + 1
        elif fresh.any():
            numbers[fresh] = np.bincount(numbers[mask])[1:].argmax() + 1
    return numbers


@pytest.mark.parametrize("kind", ["sam3", "sam3_lite_text"])
def test_objects_are_the_queries_of_transformers(kind: str, model: Sam3, tmp_path: Path) -> None:
    """Together they are the mask, which is that of transformers."""
    found = model if kind == "sam3" else made(kind, tmp_path)
    assert found.abilities.objects
    answer = found.segment(photo(), [ClassQuery(name, objects=True) for name in NAMES], threshold=0.45)
    assert len(answer.present) >= 2
    several, offset = 0, found.calibration.offset
    for one in answer.present:
        scores, masks, _ = by_transformers(found, one.name)
        kept = scores.logit() >= offset + float(torch.tensor(0.45).logit()) - 1e-6
        assert one.objects is not None
        assert one.mask is not None
        assert (one.mask == masks[kept].any(0).numpy()).mean() > 0.999
        if not one.mask.any():
            continue
        order = scores[kept].argsort(descending=True, stable=True)
        wanted = greedily(masks[kept][order].numpy())
        assert wanted.max() == len(one.objects)
        assert (wanted == one.objects.numbers).mean() > 0.999
        assert sorted(one.objects.scores, reverse=True) == list(one.objects.scores)
        probabilities = (scores[kept].logit() - offset).sigmoid()
        assert all(float((probabilities - score).abs().min()) < 1e-4 for score in one.objects.scores)
        several += len(one.objects) > 1
    assert several, "a name with more than one object"
    plain = found.segment(photo(), NAMES, threshold=0.45)
    assert all(one.objects is None for one in plain)
    whole = found.segment(photo(), [ClassQuery(name, objects=True) for name in NAMES], threshold=0.45, exclusive=True)
    assert sum(one.mask.astype(int) for one in whole.present if one.mask is not None).max() == 1


def test_the_mask_head_runs_for_present_names_alone(model: Sam3, calls: dict[str, int]) -> None:
    answer = model.segment(photo(), NAMES)
    assert calls == {
        "vision_encoder": 1,
        "text_encoder": len(NAMES),
        "detr_encoder": len(NAMES),
        "mask_decoder": len(answer.present),
    }
    model.segment(photo(1), NAMES)
    assert (calls["vision_encoder"], calls["text_encoder"]) == (2, len(NAMES))  # text is kept


def test_a_threshold_keeps_queries_as_it_keeps_names(model: Sam3) -> None:
    few, many = (model.segment(photo(), NAMES, threshold=level) for level in (0.7, 0.1))
    assert len(few.present) <= len(many.present)
    for one in few.present:
        larger = many[one.name].mask
        assert one.mask is not None
        assert larger is not None
        assert not (one.mask & ~larger).any()


def test_a_folder_of_the_video_model_is_read(model: Sam3, tmp_path: Path) -> None:
    """The released folder holds the video model, whose detector this is."""
    source, folder = model.folder, tmp_path / "sam3-video"
    assert source is not None
    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": config}))
    weights = load_file(source / "model.safetensors")
    renamed = {f"detector_model.{name}": value for name, value in weights.items()}
    save_file({**renamed, "tracker_model.x": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    other = load_model(folder, device="cpu")
    other.calibration = model.calibration
    wanted, found = model.segment(photo(), NAMES), other.segment(photo(), NAMES)
    assert [one.probability for one in found] == pytest.approx([one.probability for one in wanted], abs=1e-5)
