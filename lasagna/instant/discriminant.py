"""Linear discriminant analysis with a shrunk covariance, from `Statistics` (Fisher 1936; Friedman 1989).

With the pixels' mean m and standard deviations d per channel, features are z = (x - m) / d. Of N pixels in K classes:

    S = (T - sum_k s_k s_k' / n_k) / N  in units of d      the covariance within classes
    M = the class means of z
    W = (S + lambda I)^-1 M'                               score_k(z) = W_k' z - M_k' W_k / 2 + a log(n_k / N)

which are the log posteriors of normal classes with one covariance, up to a constant. lambda shrinks the covariance to
that of independent channels of unit variance; a is how much the classes' frequency counts. What always holds: a fit
takes the same time for any number of corrections; weights are in units of raw features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lasagna.errors import DataError
from lasagna.instant.statistics import QUANTUM, Statistics

SHRINKAGES = (0.1, 0.3, 1.0, 3.0)
PRIORS = (0.0, 0.5, 1.0)
_NOISE = 1e-4
"""Share of the mean square below which a variance is rounding noise: moments are float32, and D channels that vary by
r times less than their mean move the smallest eigenvalue of S by up to 6e-8 r^2 sqrt(D), which lambda must outweigh."""
_GUARD = 100
"""The same for the rounding of sums to multiples of `QUANTUM`, which counts where cells are few and features small."""
_HUGE = 1e6
_MOST_SHRINKAGES = 40
"""S is in units of the features' deviations: 2^40 outweighs whatever is finite in it."""


@dataclass(frozen=True, eq=False)
class Discriminant:
    """Scores are `features @ weight.T + bias`.

    Attributes:
        names: The classes, `NONE` among them where it was seen.
        weight: float32 (K, D).
        bias: float32 (K,), without the prior.
        log_prior: float32 (K,).
    """

    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    log_prior: Tensor

    def offsets(self, prior: float) -> Tensor:
        """float32 (K,): the bias with the classes' frequency to the power `prior`."""
        return self.bias + prior * self.log_prior


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and the within-class covariance in units of the pixels' standard deviations; see the module."""

    names: tuple[str, ...]
    mean: Tensor
    scale: Tensor
    within: Tensor
    means: Tensor
    log_prior: Tensor

    def solve(self, shrinkage: float) -> Discriminant:
        """The discriminant for one lambda."""
        w = torch.cholesky_solve(self.means.T, self._factor(shrinkage)).T
        weight = w / self.scale
        bias = -0.5 * (self.means * w).sum(1) - weight @ self.mean
        return Discriminant(self.names, weight, bias, self.log_prior)

    def _factor(self, shrinkage: float) -> Tensor:
        """The Cholesky factor of S + lambda I; with a larger lambda where rounding made S too far from definite."""
        matrix = self.within.clone()
        matrix.diagonal().add_(shrinkage)
        for _ in range(_MOST_SHRINKAGES):
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if not int(failed):
                return factor
            matrix.diagonal().add_(shrinkage)
            shrinkage *= 2
        raise DataError("the statistics of the corrected photos are not finite; learn from the photos again")


def moments(statistics: Statistics) -> Moments:
    """What every lambda shares. Raises ValueError where no pixel was seen."""
    total = statistics.counts.sum()
    if not total > 0:
        raise ValueError("a discriminant needs labelled pixels")
    mean = statistics.sums.sum(0) / total
    second = statistics.full_moment()
    squares = second.diagonal() / total
    variance = squares - mean**2
    # A channel that does not vary tells nothing: its weight must be 0, not rounding noise over rounding noise.
    least = _GUARD * QUANTUM * len(mean) ** 0.5 / total
    varies = variance > _NOISE * squares + least
    scale = torch.where(varies, variance.clamp_min(1e-12).sqrt(), _HUGE)
    roots = statistics.sums / statistics.counts.sqrt()[:, None]
    # Only the difference needs double precision.
    unit = (1 / (scale * total.sqrt())).float()
    within = (second - roots.T @ roots).float() * unit[:, None] * unit
    means = (statistics.sums / statistics.counts[:, None] - mean) / scale
    return Moments(
        statistics.names,
        mean.float(),
        scale.float(),
        within,
        means.float(),
        (statistics.counts / total).log().float(),
    )
