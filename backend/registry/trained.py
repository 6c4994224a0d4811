"""Which photos a version was trained on: its answers about them say nothing of how good it is."""

import json
from pathlib import Path


def trained_photos(snapshot: Path) -> set[str] | None:
    """Hashes of the photos on the side "train" of a snapshot's folder; None where it is gone."""
    try:
        split = json.loads((snapshot / "split.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return {photo for photo, place in split.items() if place["side"] == "train"}
