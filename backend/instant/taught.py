"""Which labels of a project the version that serves it cannot be asked for. Files only, no torch: the web process and
`lasagna doctor` say it, too.

What always holds: where the checkpoint of a version is not on this machine, or does not say what it was taught, no
label is unknown here; what an instant head that serves has learnt is known.
"""

import logging
import time
from collections.abc import Collection

from backend.instant.heads import ProjectHeads
from backend.queue.store import GUESS_UNKNOWN
from backend.registry.registry import Registry
from backend.studio.version_names import parse_version
from lasagna.checkpoint.folder import checkpoint_version, find_checkpoint
from lasagna.checkpoint.vocabulary import Vocabulary, load_vocabulary, vocabulary_that_binds
from lasagna.errors import CheckpointError, RegistryError
from lasagna.labels.configuration import LabelConfig
from lasagna.labels.question import ProjectQuestion
from lasagna.masks.segmentation import ClassQuery
from lasagna.settings import Settings

logger = logging.getLogger(__name__)

AGAIN = 60.0
"""Seconds after which a version is looked for again that was not here, or could not be read."""


class TaughtNames:
    """The vocabularies of versions, remembered: a version names its content. What was not found is looked for again.

    Args:
        settings: `model`, the worker's own.
        registry: Of the fine-tuned versions.
    """

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._model, self._registry, self._heads = settings.model, registry, ProjectHeads(registry.folder)
        self._guesses = settings.guess_unknown
        self._known: dict[str, Vocabulary | None] = {}
        self._missed: dict[str, float] = {}

    def vocabulary(self, version: str) -> Vocabulary | None:
        """Of a version without its head; None: everything may be asked, or it is not known here."""
        missed = self._missed.get(version)
        if version not in self._known and (missed is None or time.monotonic() - missed >= AGAIN):
            try:
                self._known[version] = self._read(version)
            except (CheckpointError, RegistryError) as error:
                is_new = missed is None and isinstance(error, CheckpointError)
                level = logging.WARNING if is_new else logging.DEBUG
                logger.log(level, "what %s was taught is not known here: %s", version, error)
                self._missed[version] = time.monotonic()
        return self._known.get(version)

    def is_closed(self, version: str) -> bool:
        """Whether a version, as predictions carry it, has a closed list of names."""
        vocabulary = self.vocabulary(parse_version(version).base)
        return vocabulary is not None and vocabulary.closed

    def _read(self, version: str) -> Vocabulary | None:
        """Raises CheckpointError or RegistryError where the version is not here, or cannot be read."""
        try:
            return load_vocabulary(self._registry.version(version).checkpoint)
        except RegistryError:  # it is the worker's own model
            folder = find_checkpoint(self._model, fetch=False)
            if checkpoint_version(folder) != version:
                raise
            return load_vocabulary(folder)

    def learnt(self, project: str, version: str) -> Collection[str]:
        """The labels that a head answers beside a version: that which the version names, else the one of now."""
        name = parse_version(version)
        try:
            return self._heads.learnt(project, name.base, name.head) if name.head else ()
        except RegistryError as error:
            logger.warning("%s", error)
            return ()

    def unknown_of(self, project: str, config: LabelConfig, version: str) -> list[str]:
        """The same of a project's labels as they are now, where the question that a version answers is not at hand."""
        params = {GUESS_UNKNOWN: True} if self._guesses else {}
        return self.unknown(project, version, ProjectQuestion.of(config.images, params, {}))

    def unknown(self, project: str, version: str, question: ProjectQuestion) -> list[str]:
        """The labels of a question that a version (with its head, if one serves) cannot be asked for, in their order.

        Args:
            project: Label Studio's uid, or number.
            version: As predictions carry it.
            question: That is asked; with `guess_unknown` nothing is unknown but to a closed list.
        """
        taught = self.vocabulary(parse_version(version).base)
        vocabulary = vocabulary_that_binds(taught, bool(question.params.get(GUESS_UNKNOWN)))
        if vocabulary is None:
            return []
        asked = (row for image in question.images.values() for row in image["asked"])
        return vocabulary.unknown([ClassQuery(row[0], row[1]) for row in asked], self.learnt(project, version))
