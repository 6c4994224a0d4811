"""The models that a worker has in memory: its own, and the fine-tuned versions that were used last.

What always holds: `of` gives a model whose `version` is what its predictions must carry. A version is loaded when it
is first asked for; beside the worker's own model no more than `limit` are held, and the one that was used longest ago
makes room before another is loaded. A light version shares its base's weights where the base is the worker's own model.
"""

import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from backend.registry.registry import Registry, Version
from backend.studio.project_id import number_of
from lasagna.errors import CheckpointError, RegistryError

if TYPE_CHECKING:
    from lasagna.contract.model import ClassListModel

logger = logging.getLogger(__name__)


class LoadedModels:
    """The models, by version. Used by one thread at a time.

    Args:
        own: The worker's own model, which serves projects without a champion; never let go of.
        registry: Where the versions are.
        limit: How many versions are held beside it; at least 1.
        device, dtype, quantise, encoder: For `lasagna.models.loading.load_model`.
    """

    def __init__(
        self,
        own: "ClassListModel",
        registry: Registry,
        limit: int,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantise: str = "none",
        encoder: str = "torch",
    ) -> None:
        self.own = own
        self.registry = registry
        self._limit = limit
        self._device, self._dtype, self._quantise, self._encoder = device, dtype, quantise, encoder
        self._loaded: OrderedDict[str, ClassListModel] = OrderedDict()

    @property
    def versions(self) -> list[str]:
        """What is in memory: the worker's own model, then the others, that used longest ago first."""
        return [self.own.version, *self._loaded]

    def of(self, project: str, asked: str) -> "ClassListModel":
        """The model for a task that was asked of a version.

        A version that is gone (pruned, or the own model of a worker that was started with another one since) is
        answered by the project's champion of now: what is wanted is a prediction, asking again would give that one, and
        it says which version made it.

        Args:
            project: Label Studio's id or uid of the project.
            asked: The version.

        Raises:
            RegistryError: The champion of now is gone too, or the registry cannot be read.
            CheckpointError: A version is there and cannot be loaded.
        """
        if asked == self.own.version:
            return self.own
        if asked not in self._loaded:
            version = self._find(project, asked)
            if version is None:
                return self.own
            asked = version.id
            if asked not in self._loaded:
                self._load(version)
        self._loaded.move_to_end(asked)
        return self._loaded[asked]

    def _find(self, project: str, asked: str) -> Version | None:
        """A version, else the champion of now; None: the own model."""
        try:
            return self.registry.version(asked)
        except RegistryError:
            champion = self.registry.champion(project)
            logger.warning(
                "version %s of project %s is not in %s (pruned? or do web process and worker not share one registry?); "
                "%s answers instead",
                asked,
                number_of(project),
                self.registry.folder,
                champion.id if champion else self.own.version,
            )
            return champion

    def _load(self, version: Version) -> None:
        from lasagna.models.loading import load_model

        started = time.monotonic()
        while len(self._loaded) >= self._limit:
            let_go, _ = self._loaded.popitem(last=False)
            logger.info("version %s makes room", let_go)
        model = load_model(
            version.checkpoint,
            device=self._device,
            dtype=self._dtype,
            quantise=self._quantise,
            encoder=self._encoder,
            base=self.own,
        )
        if model.version != version.id:
            raise CheckpointError(
                f"{version.checkpoint} is {model.version} now: it or what it is laid over was changed; restore it from "
                "a copy, or `lasagna models rollback`"
            )
        self._loaded[version.id] = model
        logger.info("version %s loaded in %.1f s", version.id, time.monotonic() - started)
