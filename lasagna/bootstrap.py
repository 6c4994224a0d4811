"""The bootstrap over independent items (Efron 1979): how far a figure would move with another sample of the same size.

The items are drawn with replacement; a figure is computed for every draw, and the middle of what comes out is its
interval. Two models on the same items are compared with the *same* draws (paired), so that what is hard in an item for
both of them cancels. What always holds: the same seed gives the same interval, and a figure that is undefined in a draw
(no class in it) is left out of that draw's share.
"""

import numpy as np
from numpy.typing import NDArray


def bootstrap_counts(items: int, resamples: int, seed: int = 0) -> NDArray[np.float64]:
    """How often each item comes in each draw.

    Args:
        items: At least 1.
        resamples: Number of draws.

    Returns:
        (resamples, items) counts; each row sums to `items`. A sum over a draw is this matrix times a column.
    """
    if items < 1 or resamples < 1:
        raise ValueError(f"a bootstrap needs items and draws, not {items} and {resamples}")
    shares = np.full(items, 1 / items)
    return np.random.default_rng(seed).multinomial(items, shares, size=resamples).astype(np.float64)


def percentile_interval(figures: NDArray[np.float64], confidence: float) -> tuple[float, float] | None:
    """The borders between which the middle share `confidence` of the draws' figures lies; NaN are left out. None where
    no draw has a figure."""
    known = figures[~np.isnan(figures)]
    if not len(known):
        return None
    low, high = np.quantile(known, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)
