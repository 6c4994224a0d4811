"""Rows of the comparison that `lab.parity.compare` prints."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ParityRow:
    """One comparison: the largest absolute difference (for "exact" stages: how many values differ)."""

    stage: str
    case: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance


def apart(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
