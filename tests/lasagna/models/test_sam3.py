"""SAM 3 behind the contract: blocks and presence first give what the whole network gives for one name at a time."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lab.bench.peer_models import write_model
from lasagna import ClassQuery
from lasagna.checkpoint.folder import Calibration
from lasagna.contract.check import broken
from lasagna.errors import QueryError
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


def with_tracker(source: Path, folder: Path) -> Path:
    """The released layout: the video model's, with the detector of a folder and a tracker of the same backbone."""
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text())
    vision = config["vision_config"]
    small = {"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 32}
    prompts = {"hidden_size": 32, "image_size": vision["backbone_config"]["image_size"], "patch_size": 14}
    tracker = {"vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": small}
    torch.manual_seed(1)
    made = Sam3TrackerModel(Sam3TrackerConfig(**tracker))
    weights = {f"detector_model.{name}": value for name, value in load_file(source / "model.safetensors").items()}
    for name, value in made.state_dict().items():
        if name.startswith("vision_encoder.neck."):
            weights[name.replace("vision_encoder.neck.", "tracker_neck.")] = value.clone()
        elif not name.startswith("vision_encoder."):
            weights[f"tracker_model.{name}"] = value.clone()
    saved = {"model_type": "sam3_video", "detector_config": config, "tracker_config": made.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(saved))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_clicks_are_the_trackers_of_the_video_model(model: Sam3, tmp_path: Path) -> None:
    from transformers import Sam3TrackerModel, Sam3TrackerProcessor

    assert model.folder is not None
    folder = with_tracker(model.folder, tmp_path / "sam3-video")
    found = load_model(folder, device="cpu")
    assert isinstance(found, Sam3)
    assert found.abilities.clicks
    assert "answer clicks and boxes" not in found.abilities.missing
    assert broken(found) == []
    assert found.clicks is not None
    assert found.clicks.network.vision_encoder.backbone is found.network.vision_encoder.backbone
    plain = Sam3TrackerModel.from_pretrained(folder).eval()
    processor = Sam3TrackerProcessor(model.processor.image_processor)
    encoded, shares = found.encode_image(photo()), list[float]()
    for points, box in (
        ([(40.0, 20.0, True)], None),
        ([(40.0, 20.0, True), (10.0, 50.0, False)], None),
        ([], (5.0, 8.0, 60.0, 50.0)),
        ([(30.0, 30.0, True)], (5.0, 8.0, 60.0, 50.0)),
    ):
        asked: dict[str, Any] = {}
        if points:
            asked["input_points"] = [[[[x, y] for x, y, _ in points]]]
            asked["input_labels"] = [[[int(inside) for *_, inside in points]]]
        if box:
            asked["input_boxes"] = [[list(box)]]
        given = processor(images=photo(), return_tensors="pt", **asked)
        with torch.inference_mode():
            sizes = given.pop("original_sizes")
            raw = plain(**given, multimask_output=box is None and len(points) == 1)
        best = int(raw.iou_scores[0, 0].argmax())
        wanted = processor.post_process_masks(raw.pred_masks, sizes)[0][0, best].numpy()
        mask, score = found.segment_prompt(encoded, points=points, box=box)
        assert (mask == wanted).mean() > 0.999
        shares.append(float(mask.mean()))
        assert score == pytest.approx(float(raw.iou_scores[0, 0, best].clamp(0, 1)), abs=1e-4)
    assert any(0 < share < 1 for share in shares), "a mask that says something"
    with pytest.raises(QueryError, match="outside of the image"):
        found.segment_prompt(encoded, points=[(500.0, 1.0, True)])
    wanted_names = model.segment(photo(), NAMES)
    found.calibration = model.calibration
    said = found.segment_batch([encoded], [NAMES])[0]
    assert [one.probability for one in said] == pytest.approx([one.probability for one in wanted_names], abs=1e-5)


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
