"""Random views of an annotated photo: scale, crop, flip, colour. Photo and mask stay aligned; what the crop adds beyond
the photo is void."""

import random

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.records import UNKNOWN

Photo = NDArray[np.uint8]
Labels = NDArray[np.int16]


def random_view(
    image: Photo, mask: Labels, size: tuple[int, int], longest: int, rng: random.Random, flip: bool = True
) -> tuple[Photo, Labels]:
    """A random view of a photo and its mask: scaled, cropped, perhaps mirrored.

    Args:
        image: uint8 (H, W, 3).
        mask: int16 (H, W), a layer of a label map.
        size: (height, width) of the result.
        longest: Longest side at which the model sees a whole photo; the scale varies around it.

    Returns:
        uint8 (h, w, 3) and int16 (h, w).
    """
    height, width = mask.shape
    if rng.random() < 0.35:  # the whole photo, as the model will see it, a little smaller
        scale = min(size[0] / height, size[1] / width)
    else:
        scale = longest / max(height, width) * float(np.exp(rng.uniform(np.log(0.7), np.log(1.6))))
    stretch = float(np.exp(rng.uniform(-0.12, 0.12)))
    new = (max(16, round(height * scale * stretch)), max(16, round(width * scale / stretch)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = np.asarray(cv2.resize(image, (new[1], new[0]), interpolation=interpolation), np.uint8)
    mask = np.asarray(cv2.resize(mask, (new[1], new[0]), interpolation=cv2.INTER_NEAREST), np.int16)
    # Where the photo is larger than the view the crop lies inside it, else the photo lies inside the view.
    top, left = (rng.randint(min(0, n - s), max(0, n - s)) for n, s in zip(new, size, strict=True))
    view: Photo = np.full((*size, 3), 127, np.uint8)
    labels: Labels = np.full(size, UNKNOWN, np.int16)
    source = (slice(max(0, top), min(new[0], top + size[0])), slice(max(0, left), min(new[1], left + size[1])))
    target = tuple(slice(s.start - o, s.stop - o) for s, o in zip(source, (top, left), strict=True))
    view[target] = image[source]
    labels[target] = mask[source]
    if flip and rng.random() < 0.5:
        view, labels = view[:, ::-1], labels[:, ::-1]
    return jitter_colour(view, rng), np.ascontiguousarray(labels)


def jitter_colour(image: Photo, rng: random.Random) -> Photo:
    """Random brightness, contrast and saturation; now and then grey. uint8 (H, W, 3) in and out."""
    values = image.astype(np.float32)
    grey = values.mean(2, keepdims=True)
    saturation = 0.0 if rng.random() < 0.05 else rng.uniform(0.6, 1.4)
    values = grey + (values - grey) * saturation
    values = (values - 127.5) * rng.uniform(0.7, 1.3) + 127.5 + rng.uniform(-25, 25)
    return np.clip(values, 0, 255).astype(np.uint8)
