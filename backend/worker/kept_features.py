"""Photos as a model encodes them, the last few: a click, a correction or a newer head need not encode them again.

What always holds: features belong to one version of the model and one image, by the hash of its bytes; what annotators
clicked on or corrected is never pushed out by what was predicted, so that a batch costs no click its features.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from rq.timeouts import JobTimeoutException

if TYPE_CHECKING:
    from PIL.Image import Image

    from lasagna.contract.model import ClassListModel

Key = tuple[str, str]
"""Version of the model, hash of the image."""


class KeptFeatures:
    """The last few photos.

    Args:
        count: So many that were asked for, and as many that were predicted.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._asked: OrderedDict[Key, Any] = OrderedDict()
        self._predicted: OrderedDict[Key, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._asked) + len(self._predicted)

    def __contains__(self, key: Key) -> bool:
        return key in self._asked or key in self._predicted

    def get(self, key: Key) -> Any:
        """Raises KeyError."""
        shelf = self._asked if key in self._asked else self._predicted
        shelf.move_to_end(key)
        return shelf[key]

    def opened(self, model: "ClassListModel", image_key: str, images: "list[Image]") -> list[Any]:
        """What a model is to be given of the images of one batch.

        An image that comes alone is most likely of a task that somebody opens: it is given as it was encoded, or is now
        and kept for the correction. One that cannot be encoded is given as it is, and fails where others do.
        """
        if len(images) > 1 or not model.abilities.keeps_images:
            return list(images)
        key = (model.version, image_key)
        try:
            if key not in self:
                self.keep(key, (model.encode_image(images[0]), *images[0].size), predicted=True)
            return [self.get(key)[0]]
        except JobTimeoutException:
            raise
        except Exception:
            return list(images)

    def keep(self, key: Key, features: Any, *, predicted: bool = False) -> Any:
        """Keeps and returns them.

        Args:
            predicted: Nobody asked for this photo by itself yet.
        """
        shelf = self._predicted if predicted and key not in self._asked else self._asked
        if shelf is self._asked:
            self._predicted.pop(key, None)
        shelf[key] = features
        shelf.move_to_end(key)
        while len(shelf) > self._count:
            shelf.popitem(last=False)
        return features

    @property
    def asked(self) -> set[str]:
        """Hashes of the images that were asked for."""
        return {image for _, image in self._asked}
