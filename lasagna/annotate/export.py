"""The output of `lasagna annotate`: every format's files, the gallery and the report.

What always holds: the masks of only as many images as there are threads are in memory at any time; the report names
every image that failed and every file that was kept as it was.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lasagna.annotate.archives import source_to_json
from lasagna.annotate.folder import ImageFile, ImageSet
from lasagna.annotate.output import FileSet, OutputFolder
from lasagna.annotate.pipeline import Pieces
from lasagna.annotate.writers import WRITERS, GalleryWriter, Job, Writer
from lasagna.formats.hygiene import Counts, clean_segmentation
from lasagna.masks.segmentation import Segmentation


class Export:
    """Every file of OUT. `encode` is called for each image, anywhere; then, here: `begin`, `append` in order, `finish`.

    Args:
        job: What an image is encoded by, and the folder that it goes to.
        formats: Of `WRITERS`.
        gallery: Whether there is a page to look at.
    """

    def __init__(self, job: Job, formats: Sequence[str], *, gallery: bool = True) -> None:
        self._job = job
        self._writers = {name: WRITERS[name](job) for name in formats}
        self._gallery = GalleryWriter(job) if gallery else None

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation, seconds: float) -> Pieces:
        """The pieces of an image, JSON-ready, by format; besides, its row of the report and what was left out."""
        segmentation, left_out = clean_segmentation(segmentation, self._job.hygiene)
        pieces = {name: writer.encode(image, content, segmentation) for name, writer in self._writers.items()}
        if "label-studio" in pieces:
            left_out += Counts(**pieces["label-studio"].pop("left_out"))
        if self._gallery is not None:
            pieces["gallery"] = self._gallery.encode_card(image, content, segmentation, seconds)
        return {**pieces, "report": image_record(image.name, seconds, segmentation), "left_out": asdict(left_out)}

    def begin(self, out: OutputFolder, images: ImageSet, options: Mapping[str, Any]) -> list[str]:
        """Opens every file.

        Args:
            out: Where they will be.
            images: What is annotated.
            options: What the answers depend on besides the image.

        Returns:
            What will not be written, in words.

        Raises:
            ConfigError: A format cannot be written for these images.
            ChangedFilesError: See `OutputFolder.check`.
        """
        self._out, self._images, self._options = out, images, dict(options)
        self._rows, self._seconds, self._left_out = out.part("report.json"), 0.0, Counts()
        self._sets = [writer.files(options) for writer in self._all()]
        out.root = images.root
        said = out.check(self._sets)
        for writer in self._all():
            writer.begin(out, images)
        return said

    def append(self, image: ImageFile, content: str, pieces: Pieces) -> None:
        """Adds the pieces of the next image to every format, the gallery and the report.

        Args:
            image, pieces: As `encode` took and returned them.
            content: The hash of the image's content.
        """
        for name, writer in self._writers.items():
            writer.append(image, pieces[name])
        if self._gallery is not None:
            self._gallery.append(image, pieces["gallery"])
        self._out.images[image.name] = content, source_to_json(image.source)
        self._rows.add(json.dumps(pieces["report"], ensure_ascii=False))
        self._seconds += pieces["report"]["seconds"]
        self._left_out += Counts(**pieces["left_out"])

    def finish(self, failures: Mapping[str, str], complete: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Puts every file in place.

        Args:
            failures: Why each image failed that did.
            complete: Called when every file is complete, before the first is put in place.

        Returns:
            The report, with the number of images in place of their rows.
        """
        for writer in self._all():
            writer.finish()
        reasons = [{"path": path, "reason": reason} for path, reason in failures.items()]
        seconds = round(self._seconds, 3)
        if self._gallery is not None:
            self._gallery.finish_pages(reasons, seconds)
        if not self._rows.entries and self._out.before.images:  # nothing can be read: what is there stays as it was
            return {"failures": reasons, "images": 0, "kept": [], "left_out": asdict(self._left_out)}
        plans, kept = self._out.plan(self._sets)
        report = {
            "model_version": self._job.model_version,
            "image_root": self._images.root,
            "options": {**self._options, **asdict(self._job.hygiene)},
            "seconds": seconds,
            "unknown": list(self._job.unknown),
            "left_out": asdict(self._left_out),
            "kept": [asdict(file) for file in kept],
        }
        whole, count = self._out.part("report-whole.json"), self._rows.entries
        head = json.dumps(report, ensure_ascii=False, indent=1).removesuffix("\n}")
        whole.write(f'{head},\n "failures": {json.dumps(reasons, ensure_ascii=False, indent=1)},\n "images": [\n')
        self._rows.copy_to(whole)
        self._rows.remove()
        whole.write("\n]}\n")
        self._out.put(whole, "report.json")
        own_plan, own_kept = self._out.plan([FileSet("report", ("report.json",))])
        complete()
        kept += own_kept + self._out.apply([*plans, *own_plan])
        return {**report, "kept": [asdict(file) for file in kept], "failures": reasons, "images": count}

    def _all(self) -> list[Writer]:
        return [*self._writers.values(), *([self._gallery] if self._gallery is not None else [])]


def image_record(name: str, seconds: float, segmentation: Segmentation) -> dict[str, Any]:
    """An image's row of `report.json`. Areas are in pixels; of an unknown class neither presence nor probability is
    told (null)."""
    height, width = segmentation.size
    return {
        "path": name,
        "width": width,
        "height": height,
        "seconds": round(seconds, 4),
        "classes": [
            {
                "name": answer.name,
                "present": None if answer.is_unknown else answer.is_present,
                "probability": None if answer.is_unknown else round(float(answer.probability), 6),
                "area": answer.area,
            }
            for answer in segmentation.classes
        ],
    }
