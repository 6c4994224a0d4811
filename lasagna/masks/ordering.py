"""Which task to label next: how much work an answer will make for a person.

The expected number of edits, if probabilities are what they say and a mask's stability is about the chance that a
person leaves it alone: an absent class is added with its probability; a present one is deleted with one minus its
probability, and changed with its probability times one minus its stability. docs/ordering.md says how well that orders
real photos.
"""

from lasagna.masks.segmentation import Segmentation


def expected_edits(segmentation: Segmentation) -> float:
    """Regions that a person is expected to add, delete or change, 0.0 or more.

    A mask whose stability is not known counts as stable.
    """
    edits = sum(answer.probability for answer in segmentation.absent)
    for answer in segmentation.present:
        stability = 1.0 if answer.stability is None else answer.stability
        edits += 1 - answer.probability + answer.probability * (1 - stability)
    return float(edits)


def task_score(segmentation: Segmentation) -> float:
    """The score of a prediction, in (0, 1]: 1 where no edit is expected, 1/2 where one is.

    Sorted by it, lowest first, Label Studio's Data Manager shows the tasks with most expected edits first.
    """
    return 1 / (1 + expected_edits(segmentation))
