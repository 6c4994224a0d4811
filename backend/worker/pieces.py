"""The works of a batch, taken apart into images, each of which is fetched, asked and drawn by itself.

What always holds: what is computed for one image does not depend on what else its task shows, so that it can be found
again (`Picture.result_key`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from backend.queue.made import Made, data_digest
from backend.queue.store import Work
from lasagna.errors import LasagnaError
from lasagna.formats.hygiene import Hygiene
from lasagna.formats.label_studio import join_predictions
from lasagna.labels.configuration import TaskImage
from lasagna.labels.question import ProjectQuestion, name_version


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
    question: ProjectQuestion
    pictures: list[Picture] = field(default_factory=list)
    later: LasagnaError | None = None

    def take(self, picture: Picture, data: bytes, answering: tuple[str, str], hygiene: Hygiene) -> None:
        """Takes the bytes of an image of this work. `answering`: version and precision of the model."""
        content, config = hashlib.sha256(data).hexdigest(), picture.image.config
        picture.data = data
        picture.key = content if len(self.pictures) == 1 else f"{content} {config.name}"
        asked = ProjectQuestion.of([config], self.params, asdict(hygiene))
        identity = json.dumps([picture.key, asked.text, answering])
        picture.result_key = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:40]

    def problems(self) -> list[tuple[str, str]]:
        """Why images have no prediction, with the kind of reason; names the image where there are several."""
        found = [(picture.image.config.name, *picture.problem) for picture in self.pictures if picture.problem]
        return [(f"{name}: {why}" if len(self.pictures) > 1 else why, kind) for name, why, kind in found]

    def prediction(self) -> dict[str, Any] | None:
        """Of the images that have one, together; None where none has. Its version names the question."""
        found = [picture.prediction for picture in self.pictures if picture.prediction is not None]
        if not found:
            return None
        joined = join_predictions(found)
        return {**joined, "model_version": name_version(str(joined["model_version"]), self.question)}

    def made(self, prediction: Mapping[str, Any]) -> Made:
        """What the prediction was made of."""
        images = [picture.content[:16] for picture in self.pictures if picture.content]
        return Made(str(prediction["model_version"]), data_digest(self.work.data), images)


@dataclass(frozen=True)
class Place:
    """A picture, and the work that it belongs to."""

    piece: Piece
    picture: Picture
