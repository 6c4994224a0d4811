"""A version that the gate refused, judged again on corrections that came since: they are new to it and to the champion.

What always holds: the rules are the gate's, and the photos are the held-out ones together with the new ones; a version
that has served before (somebody rolled it back) is not looked at, nor one whose classes or parent are others than the
project's today.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backend.registry.registry import Registry, Version
from backend.registry.trained import trained_photos
from lasagna.contract.model import ClassListAnswerer
from lasagna.errors import RegistryError
from training.data.records import Record
from training.evaluation.gate import Verdict, judge
from training.evaluation.scores import measure_latency, score_images

if TYPE_CHECKING:
    from lasagna import Lasagna

logger = logging.getLogger(__name__)


def refused_version(registry: Registry, project: str, parent: str, classes: Sequence[str]) -> Version | None:
    """The project's candidate, if the gate judged it against the model `parent` and it knows these classes."""
    try:
        waiting = registry.candidate(project)
    except RegistryError as gone:
        logger.warning("nothing to judge again: %s", gone)
        return None
    fits = waiting is not None and waiting.parent == parent and waiting.labels == tuple(classes)
    return waiting if fits else None


def new_to(snapshots: Path, version: Version, records: Sequence[Record], known: set[str]) -> list[Record]:
    """Those of the records that the version was not trained on, and whose photos' hashes are not in `known`.

    Nothing where the version's snapshot, below `snapshots`, is gone: what is new to it cannot be told.
    """
    trained = trained_photos(snapshots / version.snapshot) if version.snapshot else None
    if trained is None:
        return []
    return [record for record in records if photo_hash(record) not in trained | known]


def photo_hash(record: Record) -> str:
    """The hash of a snapshot's photo, which is its file's name."""
    if record.image_path is None:
        raise ValueError(f"{record.source} {record.image_id} is of no snapshot: it has no photo")
    return record.image_path.stem


def judge_again(
    models: tuple["Lasagna", "Lasagna"],
    serving: tuple[ClassListAnswerer, ClassListAnswerer],
    held_out: Sequence[Record],
    replay: Sequence[Record],
    timed: int,
    advance: Callable[[], None],
) -> Verdict:
    """Judges a candidate again and returns the gate's verdict.

    Args:
        models: Champion and candidate alone.
        serving: The two as they answer the project: with their instant heads, where it has them.
        held_out: Photos that neither model was trained on.
        replay: Photos of the old sets.
        timed: Photos that latency is measured on.
        advance: Called after every photo of each model.
    """
    champion, candidate = models
    return judge(
        score_images(serving[0], held_out, advance),
        score_images(serving[1], held_out, advance),
        score_images(champion, replay, advance),
        score_images(candidate, replay, advance),
        measure_latency(champion, candidate, held_out, timed),
    )
