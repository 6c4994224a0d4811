"""What a checkpoint was taught: `vocabulary.json` beside its weights.

    {"names": {"car": {"photos": 812, "average_precision": 0.81}, ...},    as the model was asked them in training
     "synonyms": {"automobile": "car", ...}}                               other words for them

A name outside of it is *unknown*: the model is not asked for it, and its answer says so. What always holds: a
checkpoint without the file knows no vocabulary, and may be asked everything; a name that was taught is read as it is;
a word that means a taught name is read as that name; nothing else of a name is changed.

Here is no torch, so that the web process can say what a model does not know.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lasagna.checkpoint.architectures import architecture_of
from lasagna.checkpoint.closed_lists import closed_names, closed_synonyms
from lasagna.checkpoint.folder import checkpoint_layers
from lasagna.errors import CheckpointError
from lasagna.files import parse_json
from lasagna.masks.segmentation import ClassQuery

VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class Taught:
    """How a name was taught.

    Attributes:
        photos: How many photos of the training had it.
        average_precision: Of its presence on photos that were held out, in (0, 1]; None where it was not measured.
    """

    photos: int
    average_precision: float | None = None


@dataclass(frozen=True)
class Vocabulary:
    """The names that a model was taught.

    Attributes:
        names: By the name, as the model was asked it.
        synonyms: Another word -> the name that it means.
        closed: Nothing else can be asked, not even for a guess, and corrections teach nothing: the model has this list.
    """

    names: Mapping[str, Taught]
    synonyms: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False

    @cached_property
    def _places(self) -> dict[str, str]:
        """Plain spelling -> name; of two names that are spelled alike, the one of more photos."""
        found = {_plain(word): name for word, name in self.synonyms.items()}
        for name, _ in sorted(self.names.items(), key=lambda pair: pair[1].photos):
            found[_plain(name)] = name
        return found

    def reading(self, text: str) -> str | None:
        """The taught name that a text means, or None: the text itself where it was taught, else one that differs from
        it in case, spacing, `_`, `-` or a plural, else one that it is a synonym of."""
        if text in self.names:
            return text
        return next((self._places[form] for form in number_forms(_plain(text)) if form in self._places), None)

    def unknown(self, queries: Iterable[ClassQuery], learnt: Collection[str] = ()) -> list[str]:
        """The labels that the model cannot be asked for, each once, in their order. What a label is read as decides,
        where it is read as something else.

        Args:
            learnt: Labels that an instant head which serves has learnt.
        """
        names = (query.name for query in queries if query.name not in learnt and self.reading(query.text) is None)
        return list(dict.fromkeys(names))

    def merged(self, other: "Vocabulary") -> "Vocabulary":
        """Both together, for a model that was taught first this, then the other. Of a name in both the larger number
        of photos counts, for the same photos may have been shown again."""
        names = dict(self.names)
        for name, taught in other.names.items():
            before = names.get(name, Taught(0))
            measured = taught.average_precision
            names[name] = Taught(
                max(before.photos, taught.photos), before.average_precision if measured is None else measured
            )
        return Vocabulary(names, {**self.synonyms, **other.synonyms})

    def measured(self, precisions: Mapping[str, float | None]) -> "Vocabulary":
        """With the average precision of names that were measured; those of no name of it are left out."""
        found = {name: value for name, value in precisions.items() if name in self.names and value is not None}
        names = {
            name: replace(taught, average_precision=round(found[name], 4)) if name in found else taught
            for name, taught in self.names.items()
        }
        return replace(self, names=names)


def number_forms(word: str) -> list[str]:
    """A word, then what it may be the singular or the plural of."""
    forms = [word, f"{word}s"]  # "shoe" is asked where a set says "shoes"
    if word.endswith("ies"):
        forms.append(word[:-3] + "y")
    if word.endswith("es"):
        forms.append(word[:-2])
    if word.endswith("s") and not word.endswith("ss"):
        forms.append(word[:-1])
    return forms


def _plain(text: str) -> str:
    """The spelling by which names are compared."""
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").split())


def unknown_in_words(version: str, names: Sequence[str], closed: bool = False, most: int = 20) -> str:
    """What is said of labels that a version cannot be asked for, to whoever draws them; "" where there are none.

    Args:
        closed: As of its `Vocabulary`.
    """
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    what = "does not have in its list" if closed else "was never taught"
    draw = f"Draw {'these' if len(names) > 1 else 'it'}"
    then = f"{draw} by hand" if closed else f"{draw}; the model learns from your corrections"
    return f"{version} {what} {', '.join(map(repr, names[:most]))}{more}: not drawn, and no absence. {then}"


def vocabulary_that_binds(vocabulary: Vocabulary | None, guess_unknown: bool) -> Vocabulary | None:
    """The vocabulary outside of which nothing is asked; None: everything may be. A closed list cannot guess."""
    return None if guess_unknown and vocabulary is not None and not vocabulary.closed else vocabulary


def load_vocabulary(folder: Path) -> Vocabulary | None:
    """What a checkpoint was taught, with all that it is laid over; None: everything may be asked.

    A model with a closed list was taught the names of that list.

    Raises:
        CheckpointError: The file is not a vocabulary.
    """
    architecture = architecture_of(folder)
    if architecture is not None and architecture.closed:
        names = list(closed_names(folder).values())
        return Vocabulary({name: Taught(0) for name in names}, closed_synonyms(names), closed=True)
    layers = [read_vocabulary(layer / VOCABULARY) for layer in checkpoint_layers(folder)]
    found = layers[0]
    if found is None:  # what the lowest one was taught is not known
        return None
    for layer in layers[1:]:
        found = found if layer is None else found.merged(layer)
    return found


def write_vocabulary(folder: Path, vocabulary: Vocabulary | None) -> None:
    """Notes what a checkpoint was taught, as part of its content; None: takes the note away."""
    path = folder / VOCABULARY
    path.unlink(missing_ok=True)  # a copy may be read-only
    if vocabulary is None:
        return
    names = {
        name: {key: value for key, value in asdict(taught).items() if value is not None}
        for name, taught in sorted(vocabulary.names.items())
    }
    # A line for each name, so that a difference between two versions can be read.
    rows = [f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(row)}" for name, row in names.items()]
    synonyms = json.dumps(dict(sorted(vocabulary.synonyms.items())), ensure_ascii=False, indent=1)
    path.write_text(
        '{"names": {\n' + ",\n".join(rows) + '\n },\n "synonyms": ' + synonyms.replace("\n", "\n ") + "}\n",
        encoding="utf-8",
    )


def read_vocabulary(path: Path) -> Vocabulary | None:
    """The vocabulary of one file; None where there is none. Raises CheckpointError where it is another thing."""
    if not path.exists():
        return None
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        names = {name: _taught(row) for name, row in values["names"].items()}
        synonyms = {str(word): str(name) for word, name in values.get("synonyms", {}).items()}
        strange = sorted(set(synonyms.values()) - names.keys())
        if strange:
            raise ValueError(f"synonyms of names that it does not have: {', '.join(strange[:5])}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f'{path}: not a vocabulary ({error!r}), which is {{"names": {{name: {{"photos": number}}}}, "synonyms": '
            "{word: name}}; without the file everything may be asked"
        ) from error
    return Vocabulary(names, synonyms)


def _taught(row: Mapping[str, Any]) -> Taught:
    photos, precision = row["photos"], row.get("average_precision")
    if not isinstance(photos, int) or photos < 0 or not (precision is None or 0 <= precision <= 1):
        raise ValueError(f"found {dict(row)}")
    return Taught(photos, precision)
