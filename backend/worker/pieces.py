"""The works of a batch, taken apart into images, each of which is fetched, asked and drawn by itself.

What always holds: what is computed for one image does not depend on what else its task shows, so that it can be found
again (`Picture.result_key`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from backend.queue.store import Work
from lasagna.errors import LasagnaError
from lasagna.formats.hygiene import Hygiene
from lasagna.formats.label_studio import join_predictions
from lasagna.labels.configuration import TaskImage
from lasagna.labels.parts import Control, ImageConfig


@dataclass
class Picture:
    """One image of a task.

    Attributes:
        image: What is asked of it.
        data: Its bytes, while they are needed.
        key: That region ids are made from: of its content, and of its place where the task shows several.
        result_key: Identifies its prediction: content, question, parameters, the model's version and precision.
        prediction: Once there is one.
        problem: Why there will be none, with the kind of reason.
        is_computed: The model was run for it.
    """

    image: TaskImage
    data: bytes = b""
    key: str = ""
    result_key: str = ""
    prediction: dict[str, Any] | None = None
    problem: tuple[str, str] | None = None
    is_computed: bool = False

    @property
    def content(self) -> str:
        """The hash of its bytes."""
        return self.key.partition(" ")[0]


@dataclass
class Piece:
    """A work on its way through a batch; `later`: why it is to be tried again as a whole."""

    key: str
    work: Work
    params: Mapping[str, Any]
    pictures: list[Picture] = field(default_factory=list)
    later: LasagnaError | None = None

    def take(self, picture: Picture, data: bytes, answering: tuple[str, str], hygiene: Hygiene) -> None:
        """Takes the bytes of an image of this work. `answering`: version and precision of the model."""
        content, config = hashlib.sha256(data).hexdigest(), picture.image.config
        picture.data = data
        picture.key = content if len(self.pictures) == 1 else f"{content} {config.name}"
        picture.result_key = _result_key(picture.key, config, self.params, answering, hygiene)

    def problems(self) -> list[tuple[str, str]]:
        """Why images have no prediction, with the kind of reason; names the image where there are several."""
        found = [(picture.image.config.name, *picture.problem) for picture in self.pictures if picture.problem]
        return [(f"{name}: {why}" if len(self.pictures) > 1 else why, kind) for name, why, kind in found]

    def prediction(self) -> dict[str, Any] | None:
        """Of the images that have one, together; None where none has."""
        found = [picture.prediction for picture in self.pictures if picture.prediction is not None]
        return join_predictions(found) if found else None


@dataclass(frozen=True)
class Place:
    """A picture, and the work that it belongs to."""

    piece: Piece
    picture: Picture


def _drawn(control: Control) -> list[Any]:
    labeller = None if control.labelled_by is None else asdict(control.labelled_by)
    labels = [(label.value, label.written, label.path) for label in control.labels]
    return [control.name, control.kind, control.to_name, labeller, labels]


def _result_key(
    picture_key: str, config: ImageConfig, params: Mapping[str, Any], answering: tuple[str, str], hygiene: Hygiene
) -> str:
    """Of the query as far as it changes the answer, the model's version and precision, and what is left out."""
    query = [config.image_name, config.item_index, list(map(_drawn, config.drawn)), config.absent_values]
    asked = [(c.name, c.reads_as) if c.threshold is None else (c.name, c.reads_as, c.threshold) for c in config.classes]
    identity = [picture_key, query, asked, dict(params), answering, asdict(hygiene)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:40]
