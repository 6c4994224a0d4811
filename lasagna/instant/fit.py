"""Corrections to a head: the whole of what is learnt, in milliseconds.

    learner = Learner()
    learner.put(correction)
    head = learner.fit(number=12, previous=eleventh.decision)

What always holds: the head depends on the corrections and their order in time alone, not on how or where they were
gathered; below `REFINED_FROM` corrections nothing is chosen, the defaults hold; its time hardly grows with the number
of corrections, for at most 40 of them are left out in turn; a correction whose id is known replaces that one.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np

from lasagna.errors import DataError
from lasagna.instant.correction import Correction, Summary
from lasagna.instant.discriminant import moments
from lasagna.instant.gate import Decision, decide
from lasagna.instant.head import Head
from lasagna.instant.leave_out import (
    MOST,
    LeftOut,
    Others,
    Shrinkage,
    choose_shrinkage,
    class_universe,
    leave_out,
    presence_answers,
    stacked_presence,
    tally_model,
    tally_stacks,
    unseen_share,
)
from lasagna.instant.presence import (
    REFINED_FROM,
    RIDGE_UNSEEN,
    Presence,
    as_the_model,
    default_presence,
    default_unseen,
    log_loss,
)
from lasagna.instant.stacking import CANDIDATES, HEAD, Stacking
from lasagna.instant.statistics import Statistics
from lasagna.instant.tally import Tally


class Learner:
    """Corrections of one encoder and one model, and their exact sum.

    Args:
        read: Reads a correction by its id; with it only the newest are kept in memory, else all.
    """

    def __init__(self, read: Callable[[str], Correction] | None = None) -> None:
        self._read = read
        self._known: dict[str, Summary] = {}
        self._kept: dict[str, Correction] = {}
        self._total: Statistics | None = None

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, id: str) -> bool:
        return id in self._known

    @property
    def corrections(self) -> list[Summary]:
        """In order of time."""
        return sorted(self._known.values(), key=_age)

    @property
    def next_order(self) -> int:
        """A place in time after all others."""
        return 1 + max((known.order for known in self._known.values()), default=0)

    def put(self, correction: Correction) -> None:
        """Adds a correction, or replaces that of its id.

        Raises:
            DataError: It is of another encoder or another model than the others.
        """
        others = [known for known in self._known.values() if known.id != correction.id]
        if others:
            _check_same(others[0], correction.summary)
        self.remove(correction.id)
        empty = Statistics.empty(correction.statistics.channels)
        self._total = (empty if self._total is None else self._total) + correction.statistics
        self._known[correction.id] = correction.summary
        self._kept[correction.id] = correction
        if self._read is not None and len(self._kept) > MOST:
            del self._kept[min((self._known[id] for id in self._kept), key=_age).id]

    def remove(self, id: str) -> bool:
        """Takes a correction away; whether there was one."""
        if id not in self._known:
            return False
        assert self._total is not None
        self._total = self._total - self._get(id).statistics
        del self._known[id]
        self._kept.pop(id, None)
        if not self._known:
            self._total = None
        return True

    @property
    def digest(self) -> str:
        """SHA-256 of what the corrections hold, in their order in time."""
        digest = hashlib.sha256()
        for known in self.corrections:
            digest.update(known.digest.encode())
        return digest.hexdigest()

    def fit(self, *, number: int = 1, previous: Decision | None = None) -> Head:
        """Learns from all corrections.

        Args:
            number: Of the new head.
            previous: The decision of the head before, for the sentence "serves since correction 9".

        Raises:
            DataError: No correction, or no decided pixel in any.
        """
        if self._total is None:
            raise DataError("a head needs at least one corrected photo")
        if not self._total.pixels:
            raise DataError("no pixel of the corrected photos is decided: all of them are void or not labelled")
        every = self.corrections
        latest = [self._get(known.id) for known in every[-MOST:]]
        enough = len(every) >= REFINED_FROM
        others = Others(self._total, latest)
        shrinkage = choose_shrinkage(others) if enough else Shrinkage()
        photos = list(leave_out(others, shrinkage))
        u = unseen_share(every)
        presence, unseen = _presence(photos, latest[-1].answer is None, enough)
        stacking, decision = _stack(photos, presence, unseen, u, len(every), previous)
        if not decision.serves and not refines(photos, presence):
            presence = as_the_model()
        discriminant = moments(self._total).solve(shrinkage.value)
        return Head(
            number,
            every[0].encoder,
            every[0].version,
            discriminant.names,
            discriminant.weight.contiguous(),
            discriminant.offsets(shrinkage.prior),
            shrinkage,
            stacking,
            u,
            presence,
            unseen,
            decision,
            self.digest,
        )

    def without(self, ids: Collection[str], head: Head) -> Head:
        """What `fit` gave, as if some corrections had left no trace in its weights; all that was chosen stays.

        So a corrected photo is answered by a head that has not seen it.

        Args:
            ids: Of the corrections; those that are not known are passed over.
            head: Of exactly these corrections.

        Raises:
            DataError: Nothing decided is left.
        """
        total = self._total
        for id in ids:
            if total is not None and id in self._known:
                total = total - self._get(id).statistics
        if total is None or not total.pixels:
            raise DataError("no pixel is left to learn from: a head cannot be fitted to nothing")
        discriminant = moments(total).solve(head.shrinkage.value)
        return replace(
            head,
            names=discriminant.names,
            weight=discriminant.weight.contiguous(),
            bias=discriminant.offsets(head.shrinkage.prior),
        )

    def _get(self, id: str) -> Correction:
        if id not in self._kept:
            assert self._read is not None
            return self._read(id)
        return self._kept[id]


def fit_head(corrections: Iterable[Correction], *, number: int = 1, previous: Decision | None = None) -> Head:
    """A head of corrections at hand; see `Learner.fit`."""
    learner = Learner()
    for correction in corrections:
        learner.put(correction)
    return learner.fit(number=number, previous=previous)


def _age(known: Summary) -> tuple[int, str]:
    return known.order, known.id


def _check_same(first: Summary, other: Summary) -> None:
    if (first.encoder, first.version) != (other.encoder, other.version):
        raise DataError(
            f"corrections of {first.version or 'no model'} ({first.encoder}) and of {other.version or 'no model'} "
            f"({other.encoder}) cannot be learnt together: learn from the photos again with one model"
        )


def _presence(photos: Sequence[LeftOut], alone: bool, enough: bool) -> tuple[Presence, Presence | None]:
    """Of classes that corrections have, and of the others, where there is a model."""
    presence, unseen = default_presence(not alone), None if alone else default_unseen()
    if enough and photos:
        presence = presence.refine(*presence_answers(photos))
        # What the model says of photos that it was trained on is no evidence of what it says of others.
        evidence = [photo for photo in photos if photo.correction.is_evidence]
        if unseen is not None and evidence:
            unseen = unseen.refine(*presence_answers(evidence, unseen=True), RIDGE_UNSEEN, RIDGE_UNSEEN)
    return presence, unseen


def refines(photos: Sequence[LeftOut], presence: Presence) -> bool:
    """Whether probabilities beside a model that draws are better than its own: the log loss of the left-out answers, by
    more than one standard error of the photos' differences. Of one photo or two nothing can be said."""
    gains = []
    for photo in photos:
        if not photo.correction.is_evidence or not len((pair := presence_answers([photo]))[1]):
            continue
        own, new = (log_loss(each.probability(pair[0]), pair[1]) for each in (as_the_model(), presence))
        gains.append(own - new)
    return len(gains) > 2 and float(np.mean(gains)) > float(np.std(gains, ddof=1) / len(gains) ** 0.5)


def _stack(
    photos: Sequence[LeftOut],
    presence: Presence,
    unseen: Presence | None,
    u: float,
    count: int,
    previous: Decision | None,
) -> tuple[Stacking, Decision]:
    """How head and model are combined, and whether the result serves."""
    if unseen is None:
        since = previous.since if previous is not None and previous.serves else count
        reason = "the head works alone: there is no model beside it"
        return HEAD, Decision(True, count, since=since, reason=reason)
    evidence = [photo for photo in photos if photo.correction.is_evidence]
    universe = class_universe([photo.correction for photo in evidence])
    before = [tally_model(photo.correction, universe) for photo in evidence]
    if len(evidence) < REFINED_FROM:
        return CANDIDATES[2], decide(before, before, count, previous)
    tallies = [
        tally_stacks(
            photo,
            CANDIDATES,
            stacked_presence(presence, unseen, photo.features, photo.seen[:-1].numpy()),
            u,
            universe,
        )
        for photo in evidence
    ]
    by_stacking = {stacking: [each[i] for each in tallies] for i, stacking in enumerate(CANDIDATES)}
    best = max(CANDIDATES, key=lambda stacking: Tally.of(by_stacking[stacking]).score())
    return best, decide(before, by_stacking[best], count, previous)
