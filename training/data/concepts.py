"""Which class names mean the same, and which names of other sets are certainly absent from a set's photos.

A photo of one data set is asked with names of others too, as negatives in training and as distractors in evaluation.
That is honest only where the other name cannot be in the photo without being annotated: "zebra" on a building front,
but not "window" on a street photo. `concepts.yaml` beside this file is a declared table of that: every data set has a
*domain*, every name a canonical *concept*, and every concept is in one *group*, which lists the domains where it may
turn up unannotated. What always holds: a name is called a possible negative only when the table says so; a name or a
set that is not in it yields none.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lasagna.checkpoint.vocabulary import number_forms


@dataclass(frozen=True)
class Group:
    """Concepts that may turn up unannotated in the same domains."""

    may_turn_up: frozenset[str]
    concepts: tuple[str, ...]


_TABLE = yaml.safe_load(Path(__file__).with_name("concepts.yaml").read_text(encoding="utf-8"))
_WORDS: dict[str, str] = _TABLE["domains"]

DOMAINS: dict[str, str] = {name: _WORDS[domain] for name, domain in _TABLE["sets"].items()}
"""Name of a data set -> domain of its photos."""

GROUPS: tuple[Group, ...] = tuple(
    Group(frozenset(_WORDS[domain] for domain in group["may_turn_up"]), tuple(group["concepts"]))
    for group in _TABLE["groups"]
)

CONCEPTS: dict[str, str] = {concept: concept for group in GROUPS for concept in group.concepts} | _TABLE["synonyms"]
"""Label name (lower case, singular where both exist) -> canonical concept."""

BROADER: dict[str, tuple[str, ...]] = {concept: tuple(parents) for concept, parents in _TABLE["broader"].items()}
"""Concept -> concepts that it is a kind or a part of (directly). A set may annotate both as if they were apart."""

CONFUSABLE: tuple[frozenset[str], ...] = tuple(frozenset(names) for names in _TABLE["confusable"])
"""Concepts that annotators take for one another."""

_CONCEPT_GROUP: dict[str, Group] = {concept: group for group in GROUPS for concept in group.concepts}


def concept_of(name: str) -> str | None:
    """The canonical concept of a label name, or None for a name that the table does not know.

    Case, surrounding space, `_` or `-` for a space, and a plural are seen through ("Aeroplanes" is "airplane").
    """
    text = " ".join(name.casefold().split())
    for spelling in (text, text.replace("_", " "), text.replace("-", " "), text.replace("_", "-")):
        for singular in number_forms(spelling):
            if singular in CONCEPTS:
                return CONCEPTS[singular]
    return None


def same_concept(a: str, b: str) -> bool:
    """Whether two names mean the same: the same word, a plural, or a declared synonym."""
    concept = concept_of(a)
    if concept is None or concept_of(b) is None:
        return _plain(a) == _plain(b)
    return concept == concept_of(b)


def _plain(name: str) -> str:
    """The spelling by which names are compared that the table does not know."""
    text = " ".join(name.casefold().replace("_", " ").split())
    return text[:-1] if text.endswith("s") and not text.endswith("ss") else text


def broader_concepts(name: str) -> frozenset[str]:
    """Every concept that the name's concept is a kind or a part of, however far up."""
    found: set[str] = set()
    waiting = list(BROADER.get(concept_of(name) or "", ()))
    while waiting:
        concept = waiting.pop()
        if concept not in found:
            found.add(concept)
            waiting.extend(BROADER.get(concept, ()))
    return frozenset(found)


def is_related(a: str, b: str) -> bool:
    """Whether two names mean the same, or one is a kind or a part of the other."""
    return same_concept(a, b) or concept_of(a) in broader_concepts(b) or concept_of(b) in broader_concepts(a)


def is_doubtful_negative(name: str, present: Iterable[str]) -> bool:
    """Whether calling `name` absent is doubtful because of what is annotated as present in the same photo.

    True for a kind or part of a present class, the reverse, and pairs that annotators confuse (purse and bag, blazer
    and jacket). It concerns a set's *own* classes: the set's annotation decides what its figures count, a sampler may
    prefer clearer negatives.
    """
    concept = concept_of(name)
    for other in present:
        if is_related(name, other):
            return True
        if any(concept in group and concept_of(other) in group for group in CONFUSABLE):
            return True
    return False


def has_near_synonyms(own_set: str) -> bool:
    """Whether the annotators of a set did not tell near-synonyms apart: its "purse" may be another photo's "bag"."""
    return own_set in _TABLE["near_synonyms"]


def reason_not_negative(
    own_set: str, own_classes: Sequence[str], name: str, *, unknown_is_reason: bool = True
) -> str | None:
    """Why `name` must not be called absent on the photos of a set, or None where it is certainly absent.

    Args:
        own_set: Folder name of the data set, for its domain.
        own_classes: Every class that the set annotates, present or not.
        name: A name of another set.
        unknown_is_reason: Whether not to know the name or the set is a reason. Without it, such a name is only compared
            with the set's own classes, and the caller answers for its absence.
    """
    for own in own_classes:
        if same_concept(name, own):
            return f"means the same as the set's own class {own!r}"
    for own in own_classes:
        if is_related(name, own):
            return f"is a kind or a part of the set's own class {own!r}, or the reverse"
    concept = concept_of(name)
    if concept is None:
        if not unknown_is_reason:
            return None
        return "is not in the table of concepts"
    domain = DOMAINS.get(own_set)
    if domain is None:
        if not unknown_is_reason:
            return None
        return f"the photos of {own_set!r} are of no known domain"
    if domain in _CONCEPT_GROUP[concept].may_turn_up:
        return f"may be in a {domain} without being annotated"
    return None


def possible_negatives(own_set: str, own_classes: Sequence[str], candidates: Iterable[str]) -> list[str]:
    """The candidates that are certainly absent from every photo of a set, in their order, each once.

    Args:
        own_set: Folder name of the data set ("camvid").
        own_classes: Every class that the set annotates.
        candidates: Names of other sets.
    """
    unique = dict.fromkeys(candidates)
    return [name for name in unique if reason_not_negative(own_set, own_classes, name) is None]


def implied_absent(absent_own: Collection[str], candidates: Iterable[str]) -> list[str]:
    """The candidates that are absent from *one* photo because the set's own class that covers them is absent from it.

    "river" where the set's "water" is absent, "airplane" where its "aeroplane" is. Valid only where the set annotates
    that class exhaustively; `absent_own` are the set's classes without a pixel in the photo.
    """
    absent = {concept_of(name) for name in absent_own} - {None}
    return [name for name in dict.fromkeys(candidates) if ({concept_of(name)} | broader_concepts(name)) & absent]
