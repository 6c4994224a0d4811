"""What the top of a gate's report says of a fine-tune, beside the figures: which photos, what was left out, and why."""

from collections.abc import Mapping
from typing import Any

from backend.loop.snapshot import Snapshot

_SHOWN = 20
"""Tasks that are named; the number is of all."""


def report_facts(
    number: str, snapshot: Snapshot, trained: Mapping[str, Any], heads: Mapping[str, str], rechecked: str
) -> dict[str, str]:
    """Name of a fact to the fact, in words.

    Args:
        number: Of the project.
        trained: What the job's stage "train" found.
        heads: What the gate of the instant head says beside the champion and the candidate; {}: there are none.
        rechecked: What came of the candidate that waited; "": there was none.
    """
    facts = {
        "project": number,
        "corrections": f"{snapshot.train} trained on, {snapshot.holdout} held out (snapshot {snapshot.id})",
        "replayed": trained["replayed"],
    }
    if snapshot.neither:
        facts["left out"] = f"{len(snapshot.neither)} tasks that look like photos of both sides"
    for name, tasks in (
        ("could not be used", snapshot.skipped),
        ("annotators disagree", snapshot.disagreements),
        ("undecided in part", {task: ", ".join(why) for task, why in (snapshot.left_out or {}).items()}),
    ):
        if tasks:
            shown = "; ".join(f"task {task}: {why}" for task, why in list(tasks.items())[:_SHOWN])
            facts[name] = f"{len(tasks)} tasks: {shown}"
    for side, reason in heads.items():
        facts[f"instant head of the {side}"] = reason
    if rechecked:
        facts["the candidate before"] = rechecked
    if trained["notes"]:
        facts["note"] = "; ".join(trained["notes"])
    return facts
