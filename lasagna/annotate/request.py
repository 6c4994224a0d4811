"""What one run of `lasagna annotate` is asked for, and how it is carried out.

Can be pickled: a worker on another machine makes its stages of an `AnnotateRequest`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lasagna.annotate.export import Export
from lasagna.annotate.pipeline import PieceEncoder, Reader
from lasagna.annotate.results import Results, content_hash
from lasagna.annotate.writers import Job
from lasagna.masks.segmentation import ClassQuery
from lasagna.settings import Settings

if TYPE_CHECKING:
    from lasagna.contract.model import ClassListModel


@dataclass(frozen=True)
class Asked:
    """What the model is asked; arguments as for `ClassListModel.segment_batch`."""

    queries: Sequence[ClassQuery]
    threshold: float | None = None
    exclusive: bool = False
    guess_unknown: bool = False

    @property
    def params(self) -> dict[str, Any]:
        """Of `ClassListModel.segment_batch`, beside images and classes."""
        return {"threshold": self.threshold, "exclusive": self.exclusive, "guess_unknown": self.guess_unknown}


@dataclass(frozen=True)
class AnnotateRequest:
    """What the output depends on besides the images.

    Attributes:
        job: Where the output goes and what an image is encoded by.
        formats: What to write.
        asked: What the model is asked.
        settings: Of the model, of hygiene and of limits on images.
        gallery: Whether pages to look at are made.
        head: The file of an instant head, or None; the job's model version names it.
    """

    job: Job
    formats: Sequence[str]
    asked: Asked
    settings: Settings
    gallery: bool = True
    head: Path | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the answers depend on besides the image."""
        return {
            "model_version": self.job.model_version,
            "classes": [[query.name, query.text] for query in self.asked.queries],
            "threshold": self.asked.threshold,
            "exclusive": self.asked.exclusive,
            "dtype": self.settings.dtype,
            "quantise": self.settings.quantise,
            **({} if self.settings.encoder == "torch" else {"encoder": self.settings.encoder}),
            **({"guess_unknown": True} if self.asked.guess_unknown else {}),
            **({"objects": objects} if (objects := [q.name for q in self.asked.queries if q.objects]) else {}),
            **({} if self.head is None else {"head": content_hash(self.head.read_bytes())}),
        }

    def output_key(self, results: Results) -> str:
        """Identifies what pieces of the output depend on besides the images."""
        job = self.job
        parts = [
            list(self.formats),
            self.gallery,
            job.parts,
            dict(job.params),
            asdict(job.hygiene),
            job.label_config_xml,
            repr(job.addresses),
        ]
        return content_hash(json.dumps([results.folder.name, *parts]))

    def export(self) -> Export:
        """The files of the output."""
        return Export(self.job, self.formats, gallery=self.gallery)

    def reader(self, results: Results) -> Reader:
        """The first stage of the pipeline, which reads photos."""
        settings = self.settings
        limits = settings.max_image_bytes, settings.max_image_pixels, settings.max_image_memory
        return Reader(results, *limits, thumbnails=self.job.out if self.gallery else None)

    def encoder(self, results: Results) -> PieceEncoder:
        """The last stage of the pipeline, which encodes answers."""
        return PieceEncoder(results, self.export().encode)

    def load_model(self, say: Callable[[str], None] | None = None) -> "ClassListModel":
        """The model, as the settings say.

        Args:
            say: Told what a user should know of it; None: the log is.
        """
        from lasagna.models.loading import load_model

        settings = self.settings
        return load_model(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            quantise=settings.quantise,
            encoder=settings.encoder,
            head=self.head,
            say=say,
        )


@dataclass(frozen=True)
class Execution:
    """How it is carried out, which changes nothing in what is written.

    Attributes:
        engine: "local" (this process) or "ray" (`lasagna.annotate.ray_engine`).
        workers: Threads that read, and as many that encode; with Ray, models. None: what the machine has room for.
        max_failures: More failures than this stop the run; None: nothing does.
        overwrite: Whether files in OUT that somebody changed, or that are not of this command, are written over.
    """

    engine: Literal["local", "ray"] = "local"
    workers: int | None = None
    max_failures: int | None = None
    overwrite: bool = False
