"""`Lasagna.learn` and `forget`: a model that has an instant head, and changes it.

What always holds: a head belongs to one encoder and one checkpoint, and is refused by others; the version names it.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor

from lasagna.assistant.answers import Decided, ImageFeatures
from lasagna.assistant.corrected import observe
from lasagna.assistant.inputs import ImageLike
from lasagna.assistant.locking import CallLock
from lasagna.contract.model import ClassListModel
from lasagna.errors import ConfigError
from lasagna.instant.correction import Correction
from lasagna.instant.features import encoder_fingerprint
from lasagna.instant.fit import Learner
from lasagna.instant.gate import Decision
from lasagna.instant.head import Head
from lasagna.instant.store import HeadStore
from lasagna.masks.segmentation import ClassQuery, Mask
from lasagna.network.model import LasagnaModel


class Learning(ClassListModel):
    """The part of `Lasagna` that learns.

    Attributes:
        model: The network.
        base_version: Name and content of the checkpoint in one word.
        head: The instant head in use, or None (`lasagna.instant`).
    """

    def __init__(self, model: LasagnaModel, base_version: str) -> None:
        self.model, self.base_version = model.eval(), base_version
        self.head: Head | None = None
        self._learner = Learner()
        self._heads = 0  # the largest number that was given
        self._lock = CallLock()

    @abstractmethod
    def encode_image(self, image: ImageLike) -> ImageFeatures:
        """Encodes an image once for several uses."""

    @abstractmethod
    def read_text(self, text: str) -> str:
        """What the model reads for a class name."""

    @abstractmethod
    def knows(self, query: ClassQuery) -> bool:
        """Whether the checkpoint can be asked for a class."""

    @abstractmethod
    def decide(self, features: ImageFeatures, texts: list[str]) -> dict[str, Decided]:
        """The model's decisions about one image, by what it reads. For callers that hold the lock."""

    @abstractmethod
    def mask_logits(self, features: ImageFeatures, decided: Sequence[Decided]) -> Tensor:
        """(M, 4h, 4w) mask logits of M >= 1 names of one image. For callers that hold the lock."""

    @abstractmethod
    def draw(
        self, features: ImageFeatures, decided: Sequence[Decided], exclusive: bool = False
    ) -> tuple[list[Mask], list[float]]:
        """Masks of names of one image, and their stability."""

    @property
    def version(self) -> str:
        """Name and content of the checkpoint in one word, and the number of the head in use: "nano-ec805b63+h12"."""
        return self.base_version if self.head is None else f"{self.base_version}+{self.head.suffix}"

    @cached_property
    def encoder_fingerprint(self) -> str:
        """Which encoder corrections and heads of this model must be of."""
        return encoder_fingerprint(self.model.encoder)

    def use_head(self, head: Head | HeadStore | None) -> None:
        """Answers with an instant head from now on; None: as the checkpoint does.

        What was learnt before by `learn` is not part of it. A head alone cannot learn more, for its corrections are not
        in it; that of a store can, in memory: the store stays as it is.

        Raises:
            CheckpointError: The head is of another encoder, or was made beside another model.
        """
        learner = Learner()
        if isinstance(head, HeadStore):
            for known in head.corrections:
                learner.put(head.read(known.id))
            head = head.current()
        if head is not None:
            head.check(self.encoder_fingerprint, self.base_version)
        with self._lock:
            self.head, self._learner = head, learner

    def learn(
        self,
        image: ImageLike | ImageFeatures,
        masks: Mapping[str, Mask | None],
        *,
        id: str | None = None,
        classes: Sequence[str | ClassQuery] | None = None,
        undecided: Mask | None = None,
    ) -> Decision:
        """Learns from one corrected photo, at once: the next answer is of the new head.

        Args:
            image: The photo, or what `encode_image` gave of it.
            masks: Every class that the photo has, with its mask, bool (H, W); None: the class is absent. Where masks
                overlap the smaller one counts. Pixels of no mask are of no class.
            id: What the correction is replaced or forgotten by; None: the next number.
            classes: All classes about which the masks decide, as they are asked: those without a mask are absent. None:
                those of `masks` alone. Classes of other corrections are undecided here, never absent.
            undecided: bool (H, W): pixels about which nothing is known; they leave no trace.

        Returns:
            Whether the head draws now, and why, in words (`reason`).

        Raises:
            DataError: No class, or a mask of another size.
            QueryError: A class is blank.
            ConfigError: The head in use came without its corrections.
        """
        if self.head is not None and not len(self._learner):
            raise ConfigError(
                "the head in use came without its corrections, so it cannot learn more: use the folder that "
                "`lasagna learn --store` keeps, or begin anew with use_head(None)"
            )
        name = str(self._learner.next_order) if id is None else id
        correction = self.observe(image, masks, name, classes=classes, undecided=undecided)
        with self._lock:
            self._learner.put(correction.numbered(self._learner.next_order))
            self._fit()
            assert self.head is not None
            return self.head.decision

    def forget(self, id: str) -> bool:
        """Takes one correction away, as if it had never been; whether there was one of that id."""
        with self._lock:
            known = self._learner.remove(id)
            if known:
                self._fit()
        return known

    def _fit(self) -> None:
        before = self.head
        self._heads = max(self._heads, 0 if before is None else before.number) + 1
        self.head = None
        if len(self._learner):
            self.head = self._learner.fit(number=self._heads, previous=None if before is None else before.decision)

    def observe(
        self,
        image: ImageLike | ImageFeatures,
        masks: Mapping[str, Mask | None],
        id: str,
        *,
        classes: Sequence[str | ClassQuery] | None = None,
        undecided: Mask | None = None,
        is_evidence: bool = True,
        source: str = "",
    ) -> Correction:
        """What `learn` keeps of a corrected photo, for a `lasagna.instant.store.HeadStore`; arguments as of `learn`.

        Args:
            is_evidence: Whether the model's answer says how good it is: not on a photo that it was trained on.
            source: What the correction is made of, in the caller's words: `HeadStore.has` knows it again.
        """
        features = image if isinstance(image, ImageFeatures) else self.encode_image(image)
        with self._lock:
            return observe(
                self,
                features,
                masks,
                id,
                classes=classes,
                undecided=undecided,
                is_evidence=is_evidence,
                source=source,
            )
