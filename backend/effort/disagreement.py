"""Where the annotators of one task disagree: classes that some of its annotations have and others have not.

What always holds: only submitted annotations count, and only labels of drawn regions, read from the regions themselves,
so that every control counts alike and a region that cannot be read as a mask does too. Which annotation is trained on
follows from another rule (`lasagna.formats.annotations.choose_annotation`: the ground truth, else the newest).
"""

from collections.abc import Mapping, Sequence
from typing import Any

Disagreement = Mapping[str, tuple[int, int]]
"""Class -> how many of how many submitted annotations have it."""


def disagreement(task: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Of a task as Label Studio exports it; empty where all its annotations have the same classes, or there is one."""
    finished = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    if len(finished) < 2:
        return {}
    labels = [_labels(one.get("result")) for one in finished]
    names = sorted(set().union(*labels))
    counts = {name: (sum(name in found for found in labels), len(labels)) for name in names}
    return {name: count for name, count in counts.items() if count[0] < count[1]}


def in_words(found: Disagreement) -> str:
    """E.g. "sky in 1 of 2 annotations, road in 2 of 3"."""
    words = [f"{name} in {some} of {every}" for name, (some, every) in found.items()]
    return ", ".join([f"{words[0]} annotations", *words[1:]]) if words else ""


def _labels(result: Any) -> set[str]:
    """The labels of an annotation's regions."""
    found: set[str] = set()
    for region in result if isinstance(result, Sequence) else ():
        if not (isinstance(region, Mapping) and isinstance(region.get("value"), Mapping)):
            continue
        kind = str(region.get("type"))
        names = region["value"].get(kind) if kind.endswith("labels") else None
        if isinstance(names, Sequence) and not isinstance(names, str):
            found.update(name for name in names if isinstance(name, str))
    return found
