"""What answers a task: a version's model, with the instant head that its project uses now.

What always holds: the head of now answers, whichever was asked for: what is wanted is the best prediction, and it says
which head made it. A head that cannot be used (damaged, of another encoder) is said once and left out: predictions go
on without it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backend.instant.heads import HeadState, ProjectHeads
from lasagna.errors import LasagnaError
from lasagna.masks.segmentation import Segmentation

if TYPE_CHECKING:
    from lasagna.contract.model import ClassListModel
    from lasagna.instant.head import Head

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServingModel:
    """A model and a head, or none."""

    model: "ClassListModel"
    head: "Head | None" = None

    @property
    def version(self) -> str:
        """What its predictions carry: "nano-ec805b63+h12"."""
        return self.model.version if self.head is None else f"{self.model.version}+{self.head.suffix}"

    @property
    def precision(self) -> str:
        """Number format and quantisation of the model."""
        return self.model.precision

    def segment_batch(self, images: Sequence[Any], class_lists: Sequence[Any], **params: Any) -> list[Segmentation]:
        """As `ClassListModel.segment_batch`."""
        if self.head is None:
            return self.model.segment_batch(images, class_lists, **params)
        return self.model.segment_batch(images, class_lists, **{**params, "head": self.head})


class ServingHeads:
    """The heads in use, loaded once each. Used by one thread."""

    def __init__(self, heads: ProjectHeads) -> None:
        self._heads = heads
        self._loaded: dict[tuple[str, str], tuple[str, Head | None]] = {}

    def beside(self, model: "ClassListModel", project: str) -> ServingModel:
        """The model with the head that a project uses beside it now, where it can have one."""
        if not model.abilities.instant:
            return ServingModel(model)
        try:
            state = self._heads.current(project, model.version)
        except LasagnaError as error:
            logger.warning("%s", error)
            state = None
        if state is None:
            return ServingModel(model)
        key = (project, model.version)
        file, head = self._loaded.get(key, ("", None))
        if file != state.file:
            head = self._load(model, project, state)
            self._loaded[key] = (state.file, head)
        return ServingModel(model, head)

    def _load(self, model: "ClassListModel", project: str, state: HeadState) -> "Head | None":
        from lasagna.instant.head import Head

        try:
            head = Head.load(self._heads.folder(project, model.version) / "heads" / state.file)
            head.check(model.encoder_fingerprint, model.version)
        except LasagnaError as error:
            logger.warning("head %s of project %s is left out: %s", state.full_version, project, error)
            return None
        return head
