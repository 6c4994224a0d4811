"""Figures in what the gate measured of a version. No torch."""

from collections.abc import Mapping
from typing import Any


def measured(
    metrics: Mapping[str, Any], side: str = "candidate"
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Figures in a version's metrics: of all photos, and of each class.

    Args:
        metrics: `training.evaluation.gate.Verdict.as_dict`, where a figure is {"champion": number, "candidate":
            number}, or plain numbers by name.
        side: "candidate": the version; "champion": the one that it was measured against.
    """
    overall = _numbers(metrics.get("figures", metrics), side)
    rows = [row for row in metrics.get("classes", ()) if isinstance(row, Mapping) and "name" in row]
    classes = {str(row["name"]): {k: v for k, v in _numbers(row, side).items() if k in ("iou", "f1")} for row in rows}
    return overall, classes


def _numbers(values: Any, side: str) -> dict[str, float]:
    found = {}
    for name, value in values.items() if isinstance(values, Mapping) else ():
        number = value.get(side) if isinstance(value, Mapping) else value
        if isinstance(number, int | float) and not isinstance(number, bool):
            found[str(name)] = float(number)
    return found
