"""What a class is drawn as: its objects where they are told apart, else the whole of it or its connected parts."""

from collections.abc import Iterator

from lasagna.masks.conversions import mask_to_parts
from lasagna.masks.segmentation import ClassAnswer, Mask


def pieces_of(answer: ClassAnswer, *, parts: bool = False) -> Iterator[tuple[Mask, float]]:
    """The pieces of a class, each with its score; none where the class has no pixel.

    Args:
        answer: One class of a segmentation.
        parts: Of a class whose objects are not told apart: whether each connected part is a piece, or the whole.

    Yields:
        bool (height, width), and the score in [0, 1]: the object's own, else the class's probability.
    """
    if answer.mask is None or not answer.mask.any():
        return
    if answer.objects is not None:
        yield from ((each.mask, each.score) for each in answer.objects)
    elif parts:
        yield from ((part, float(answer.probability)) for part in mask_to_parts(answer.mask))
    else:
        yield answer.mask, float(answer.probability)
