"""Photos of conversations on their way into a step: a batch has one shape, whatever the photos have."""

from pathlib import Path

import torch
from PIL import Image

from lasagna import Lasagna
from lasagna.assistant.drawing import masks_to_image
from training.engine.encoders import Conversations, LiveEncoder


def test_photos_of_any_shape_are_one_batch_and_masks_come_back_in_their_shapes(tmp_path: Path) -> None:
    sizes = [(40, 90), (100, 30), (64, 64)]
    paths = []
    for height, width in sizes:
        paths.append(tmp_path / f"{height}.png")
        picture = Image.new("RGB", (width, height), "black")
        picture.paste("white", (0, 0, width // 2, height))  # the left half
        picture.save(paths[-1])
    model = Lasagna.random().model
    encoder = LiveEncoder(model)
    photos = [encoder.read(path) for path in paths]
    assert {photo.input_size for photo in photos} == {(64, 64)}
    assert [photo.original_size for photo in photos] == sizes
    encoded = encoder.encode(photos)
    assert encoded.tokens.shape[0] == 3
    for image, size in zip(Conversations([], photos).batch().images, sizes, strict=True):
        left = image.pixels["image"][0] > 0
        assert torch.equal(left, torch.arange(64).expand(64, -1) < 32)  # stretched, nothing cut or padded
        mask = masks_to_image(left[None].float(), image)[0] > 0.5
        assert mask.shape == size
        assert torch.equal(mask, torch.arange(size[1]).expand(size) < size[1] // 2)
