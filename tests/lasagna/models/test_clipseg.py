"""CLIPSeg behind the contract: the maps of transformers for one name at a time, computed for a list at once."""

import numpy as np
import pytest
import torch
from PIL import Image

from lab.bench.peer_models import write_model
from lasagna.checkpoint.folder import Calibration
from lasagna.models.clipseg import ClipSeg, peak
from lasagna.models.loading import load_model

NAMES = ["sky", "a road", "person", "日本", "x" * 300]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ClipSeg:
    found = load_model(write_model("clipseg", tmp_path_factory.mktemp("models") / "clipseg"), device="cpu")
    assert isinstance(found, ClipSeg)
    return found


def photo(height: int = 48, width: int = 80) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def maps_of_transformers(model: ClipSeg, image: Image.Image, name: str) -> torch.Tensor:
    given = model.processor(text=[name], images=[image], return_tensors="pt", padding=True, truncation=True)
    with torch.inference_mode():
        logits = model.network(**given).logits
    return logits.reshape(1, *logits.shape[-2:])


def test_a_list_gives_what_transformers_gives_for_one_name_at_a_time(model: ClipSeg) -> None:
    image = photo()
    maps = torch.cat([maps_of_transformers(model, image, name) for name in NAMES])
    model.calibration = Calibration(offset=float(peak(maps).median()))
    large = torch.nn.functional.interpolate(maps[:, None], size=(48, 80), mode="bilinear", align_corners=False)[:, 0]
    wanted = (peak(maps) - model.calibration.offset).sigmoid()
    for block in (1, 2, 16):
        answer = model.segment(image, NAMES, chunk_size=block)
        assert [one.probability for one in answer] == pytest.approx(wanted.tolist(), abs=1e-5)
        assert len(answer.present) in (2, 3)
        for one, logits in zip(answer, large, strict=True):
            if one.mask is not None:
                clear = (logits.abs() > 1e-4).numpy()
                assert (one.mask == (logits > 0).numpy())[clear].all()


def test_text_and_photo_are_encoded_once(model: ClipSeg, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"text": 0, "photo": 0}
    text, vision = model.network.clip.text_model, model.network.clip.vision_model
    hooks = [
        text.register_forward_hook(lambda *_: calls.__setitem__("text", calls["text"] + 1)),
        vision.register_forward_hook(lambda *_: calls.__setitem__("photo", calls["photo"] + 1)),
    ]
    names = [f"thing {i}" for i in range(40)]
    model.segment_batch([photo(), photo(64, 64)], [names, names])
    kept = model.encode_image(photo())
    model.segment_batch([kept], [names])
    for hook in hooks:
        hook.remove()
    assert calls == {"text": 3, "photo": 3}  # 40 names in blocks of 16; three photos
