"""The vocabulary that a recipe teaches: each name of its class lists with the photos that have it.

What always holds: photos that the recipe holds out are not counted; a name that no photo has was not taught, however
often it is asked as absent; words that the table of concepts knows for a taught name come with it.
"""

from collections import Counter
from collections.abc import Callable, Mapping

from lasagna.checkpoint.folder import find_checkpoint
from lasagna.checkpoint.vocabulary import Taught, Vocabulary, load_vocabulary
from training.data.concepts import CONCEPTS, concept_of
from training.data.sets import training_sets
from training.recipe.values import Recipe


def vocabulary_after(recipe: Recipe, on_photo: Callable[[], None] = lambda: None) -> Vocabulary | None:
    """What a model knows after a recipe: what its start was taught, and the recipe's own names.

    Returns:
        None where the start does not say what it was taught: everything may be asked, before and after.

    Raises:
        DataError: An annotation cannot be read.
        CheckpointError: The start is not here.
    """
    before = Vocabulary({}) if recipe.start is None else load_vocabulary(find_checkpoint(recipe.start))
    return None if before is None else before.merged(taught_vocabulary(count_names(recipe, on_photo)))


def count_names(recipe: Recipe, on_photo: Callable[[], None] = lambda: None) -> Counter[str]:
    """In how many photos of a recipe's class lists each name is, without what it holds out."""
    found: Counter[str] = Counter()
    for source in training_sets(recipe).values():
        for index in range(len(source)):
            record = source[index]
            labels = record.read()
            found.update(record.classes[i] for i in range(len(record.classes)) if (labels == i).any())
            on_photo()
    return found


def taught_vocabulary(counts: Mapping[str, int]) -> Vocabulary:
    """Names with their photos, and what else the table of concepts calls them.

    A word of several names that mean the same ("plane" of "airplane" and "aeroplane") is read as the one that was seen
    most.
    """
    names = {name: Taught(count) for name, count in counts.items() if count}
    of_concept: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (names[name].photos, name)):
        concept = concept_of(name)
        if concept is not None:
            of_concept[concept] = name
    plain = Vocabulary(names)
    words = {word: of_concept[concept] for word, concept in CONCEPTS.items() if concept in of_concept}
    return Vocabulary(names, {word: name for word, name in words.items() if plain.reading(word) is None})
