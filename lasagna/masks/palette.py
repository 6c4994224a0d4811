"""Colours of classes: the same in PNG masks, the gallery and the labelling configuration."""

import colorsys
from functools import cache

Colour = tuple[int, int, int]

# Kenneth L. Kelly's "Twenty-two colors of maximum contrast" (1965) in the order and shades of Sasha Trubetskoy's list
# of distinct colours, without the greys; for the first classes nothing computed is told apart as easily.
_FIRST: tuple[Colour, ...] = (
    (230, 25, 75), (60, 180, 75), (67, 99, 216), (255, 225, 25), (245, 130, 49), (145, 30, 180), (66, 212, 244),
    (240, 50, 230), (191, 239, 69), (70, 153, 144), (250, 190, 212), (154, 99, 36), (220, 190, 255), (128, 0, 0),
    (170, 255, 195), (128, 128, 0), (255, 216, 177), (0, 0, 117),
)  # fmt: skip


@cache
def palette(count: int) -> tuple[Colour, ...]:
    """The colours of `count` classes; colour i does not depend on the count. Never black, which means "no class"."""
    colours = list(_FIRST[:count])
    for i in range(len(_FIRST), count):
        # Hues a golden angle apart never come round to the same; brightness and saturation vary at other periods.
        red, green, blue = colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.85, 0.6, 0.4)[i % 3], (1.0, 0.8, 0.6, 0.9)[i % 4])
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)
