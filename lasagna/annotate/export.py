"""The files of `lasagna annotate`: a writer per format, the report, the gallery.

What always holds: an image's own part of the work (`encode`) depends on the image alone and may be done on any thread
or machine; the rest (`append`, in the order of the images, then `finish`) copies text to files. Files of the whole set
grow beside the results and are moved into place at the end, so they are each complete or not there; the masks of only
as many images as there are threads are in memory at any time.
"""

import io
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from lasagna.annotate.archives import without_ending
from lasagna.annotate.folder import ImageFile, ImageSet, printable
from lasagna.annotate.gallery import PAGE_SIZE, Page, card_to_html, make_card, render_page, thumbnail_name
from lasagna.annotate.pipeline import Pieces
from lasagna.annotate.results import OutputFolder, PartFile
from lasagna.annotate.sources import LocalFile
from lasagna.errors import ConfigError
from lasagna.files import write_atomically
from lasagna.formats.coco import Variant, coco_category_ids, coco_frame, segmentation_to_coco
from lasagna.formats.hygiene import Counts, Hygiene, clean_segmentation, limit_region_bytes
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.formats.png import class_table, indices_to_png, segmentation_to_indices, segmentation_to_instances
from lasagna.formats.voc import segmentation_to_voc
from lasagna.formats.yolo import segmentation_to_yolo, yolo_data_yaml
from lasagna.labels.configuration import LabelConfig
from lasagna.masks.segmentation import Segmentation


@dataclass(frozen=True)
class Addresses:
    """What `tasks.json` calls an image: its own address if it has one and `prefix` is None, else the prefix (default:
    Label Studio's local files) and the image's quoted path below `root` (at an address: its name)."""

    root: Path | None
    prefix: str | None

    def of(self, image: ImageFile) -> str:
        prefix = LOCAL_FILES if self.prefix is None else self.prefix
        if image.source.url is not None and self.prefix is None:
            return image.source.url
        if image.path is None or self.root is None:
            return prefix + quote(image.name)
        if not image.path.is_relative_to(self.root):
            raise ConfigError(f"{image.path} is not below the image root {self.root}; choose a root above all images")
        return prefix + quote(os.fsencode(image.path.relative_to(self.root)))


LOCAL_FILES = "/data/local-files/?d="


@dataclass(frozen=True)
class Job:
    """What an image is encoded by, wherever that is done. Can be pickled."""

    out: Path
    class_names: Sequence[str]
    model_version: str
    label_config: LabelConfig
    label_config_xml: str
    addresses: Addresses
    hygiene: Hygiene


class Writer:
    """A format. `encode` works on a writer that was not begun, too."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        """Returns what the image adds to shared files, JSON-ready, and writes the files of this image alone."""
        raise NotImplementedError

    def begin(self, out: OutputFolder, images: ImageSet) -> None:
        """Opens what is written. Raises ConfigError where the format cannot be written for these images."""
        self._out, self._images = out, images

    def append(self, image: ImageFile, piece: Any) -> None:
        """Adds what `encode` returned for the next image to the files of the whole set."""
        raise NotImplementedError

    def finish(self) -> None:
        """Writes what belongs to the whole set."""


class LabelStudioWriter(Writer):
    """`tasks.json` (tasks with predictions), the `label_config.xml` that they fit, and `IMPORT.md` (how to import).

    A piece: the task as JSON text, and what the limit on bytes changed.
    """

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        config, job = self._job.label_config, self._job
        prediction = segmentation_to_label_studio(segmentation, config, f"{content} {image.name}", job.model_version)
        prediction, counts = limit_region_bytes(prediction, config, job.hygiene.max_region_bytes)
        task = {"data": {config.image_variable: job.addresses.of(image)}, "predictions": [prediction]}
        return {"task": json.dumps(task, ensure_ascii=False, separators=(",", ":")), "left_out": asdict(counts)}

    def begin(self, out: OutputFolder, images: ImageSet) -> None:
        super().begin(out, images)
        for image in images.files:  # an address that cannot be made says so now, not after hours
            self._job.addresses.of(image)
        self._tasks = out.part("tasks.json")
        self._tasks.write("[\n")

    def append(self, image: ImageFile, piece: Any) -> None:
        self._tasks.add(piece["task"])

    def finish(self) -> None:
        self._tasks.write("\n]\n")
        self._out.put(self._tasks, "tasks.json")
        self._out.write("label_config.xml", self._job.label_config_xml)
        self._out.write("IMPORT.md", import_steps(self._job.addresses, self._images))


class CocoWriter(Writer):
    """`coco.json` with RLE (exact) and `coco_polygons.json`. Ids count from 1 in the order of the images.

    A piece: size (height, width), and per variant the JSON text of each annotation behind its ids.
    """

    _VARIANTS: tuple[tuple[Variant, str], ...] = (("rle", "coco.json"), ("polygons", "coco_polygons.json"))

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        ids = coco_category_ids(self._job.class_names)
        piece: dict[str, Any] = {"size": list(segmentation.size)}
        for variant, _ in self._VARIANTS:
            annotations = segmentation_to_coco(segmentation, ids, 0, variant=variant)
            for annotation in annotations:
                del annotation["id"], annotation["image_id"]
            piece[variant] = [json.dumps(annotation, ensure_ascii=False)[1:] for annotation in annotations]
        return piece

    def begin(self, out: OutputFolder, images: ImageSet) -> None:
        super().begin(out, images)
        self._count = 0
        self._list = out.part("coco-images")
        self._annotations = {variant: out.part(f"coco-{variant}") for variant, _ in self._VARIANTS}

    def append(self, image: ImageFile, piece: Any) -> None:
        self._count += 1
        height, width = piece["size"]
        row = {"id": self._count, "file_name": image.name, "width": width, "height": height}
        self._list.add(json.dumps(row, ensure_ascii=False))
        for variant, part in self._annotations.items():
            for text in piece[variant]:
                part.add(f'{{"id": {part.entries + 1}, "image_id": {self._count}, {text}')

    def finish(self) -> None:
        frame = coco_frame(self._job.class_names, self._job.model_version)
        head = json.dumps(frame, ensure_ascii=False)[:-1]
        self._list.close()
        for variant, name in self._VARIANTS:
            whole = self._out.part(name)
            whole.write(f'{head}, "images": [\n')
            self._list.copy_to(whole)
            whole.write('\n], "annotations": [\n')
            self._annotations[variant].copy_to(whole)
            self._annotations[variant].remove()
            whole.write("\n]}\n")
            self._out.put(whole, name)
        self._list.remove()


class MasksWriter(Writer):
    """`masks/<image>.png` with class indices, and `masks/classes.json` with their names and colours."""

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        png = indices_to_png(segmentation_to_indices(segmentation), len(self._job.class_names))
        write_png(self._job.out / "masks" / f"{image.stem}.png", png)

    def append(self, image: ImageFile, piece: Any) -> None:
        self._out.keep(f"masks/{image.stem}.png")

    def finish(self) -> None:
        table = class_table(self._job.class_names)
        self._out.write("masks/classes.json", json.dumps(table, ensure_ascii=False, indent=1) + "\n")


class InstancesWriter(Writer):
    """`instances/<image>.png` with numbers of parts, and `instances/instances.json` that says what each is."""

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        numbers, table = segmentation_to_instances(segmentation)
        write_png(self._job.out / "instances" / f"{image.stem}.png", Image.fromarray(numbers))
        return table

    def begin(self, out: OutputFolder, images: ImageSet) -> None:
        super().begin(out, images)
        self._rows = out.part("instances.json")
        self._rows.write("[\n")

    def append(self, image: ImageFile, piece: Any) -> None:
        png = f"instances/{image.stem}.png"
        self._out.keep(png)
        self._rows.add(json.dumps({"image": image.name, "png": png, "instances": piece}, ensure_ascii=False))

    def finish(self) -> None:
        self._rows.write("\n]\n")
        self._out.put(self._rows, "instances/instances.json")


class YoloWriter(Writer):
    """`yolo/`: `labels/<image>.txt`, `images` (a link to the image folder), `images.txt` and `data.yaml`.

    Without one folder that holds the images there is no link: they go to `yolo/images` under the names in `images.txt`.
    """

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        ids = {name: i for i, name in enumerate(self._job.class_names)}
        text = segmentation_to_yolo(segmentation, ids)
        write_atomically(self._job.out / "yolo" / "labels" / f"{image.stem}.txt", text)

    def begin(self, out: OutputFolder, images: ImageSet) -> None:
        super().begin(out, images)
        twice = [file.name for file in images.files if file.stem == file.name and Path(file.name).suffix]
        if twice:
            raise ConfigError(
                f"YOLO finds labels by the image's name without its ending, and {twice[0]} shares that name with "
                "another image in its folder; rename one of them or leave out --format yolo"
            )
        self._list = out.part("images.txt")

    def append(self, image: ImageFile, piece: Any) -> None:
        self._out.keep(f"yolo/labels/{image.stem}.txt")
        self._list.write(f"./images/{image.name}\n")

    def finish(self) -> None:
        self._out.put(self._list, "yolo/images.txt")
        self._out.write("yolo/data.yaml", yolo_data_yaml(self._job.class_names))
        if self._images.folder is not None and self._images.all_on_disk:
            self._out.link("yolo/images", self._images.folder)


class VocWriter(Writer):
    """`voc/<image>.xml`: a box per connected part."""

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        write_atomically(self._job.out / "voc" / f"{image.stem}.xml", segmentation_to_voc(segmentation, image.name))

    def append(self, image: ImageFile, piece: Any) -> None:
        self._out.keep(f"voc/{image.stem}.xml")


WRITERS: dict[str, Callable[[Job], Writer]] = {
    "label-studio": LabelStudioWriter,
    "coco": CocoWriter,
    "masks": MasksWriter,
    "instances": InstancesWriter,
    "yolo": YoloWriter,
    "voc": VocWriter,
}
"""What `--format` takes."""

OUTPUT_FOLDERS = ("gallery", "masks", "instances", "yolo", "voc")
"""Folders in OUT that hold files of ours, some of them images."""


class GalleryWriter(Writer):
    """`gallery.html`, and `gallery-2.html`, ... of more than `PAGE_SIZE` images. A piece: the card, and its classes."""

    def encode_card(self, image: ImageFile, content: str, segmentation: Segmentation, seconds: float) -> Any:
        thumbnail = thumbnail_name(content)
        photo: Path | str = quote(thumbnail)
        if isinstance(image.source, LocalFile):
            photo = image.source.path
        elif image.source.url is not None and image.source.url.startswith("http"):
            photo = image.source.url
        card = make_card(image.name, photo, thumbnail, self._job.out, segmentation, seconds)
        html = card_to_html(card, with_seconds=True)
        return {"html": html, "thumbnail": thumbnail, "classes": list({shape.name: 0 for shape in card.present})}

    def begin(self, out: OutputFolder, images: ImageSet) -> None:
        super().begin(out, images)
        self._pages: list[tuple[PartFile, dict[str, int]]] = []
        self._turn()

    def _turn(self) -> None:
        if self._pages:
            self._pages[-1][0].close()
        part = self._out.part(f"cards-{len(self._pages) + 1}")
        self._pages.append((part, dict.fromkeys(self._job.class_names, 0)))

    def append(self, image: ImageFile, piece: Any) -> None:
        if self._pages[-1][0].entries == PAGE_SIZE:
            self._turn()
        part, counts = self._pages[-1]
        self._out.keep(piece["thumbnail"])
        part.write(piece["html"])
        part.entries += 1
        for name in piece["classes"]:
            counts[name] += 1

    def finish_pages(self, failures: Sequence[dict[str, str]], seconds: float) -> None:
        count = sum(part.entries for part, _ in self._pages)
        names = ["gallery.html", *(f"gallery-{i}.html" for i in range(2, len(self._pages) + 1))]
        for i, (part, counts) in enumerate(self._pages):
            pages = [
                Page(name, PAGE_SIZE * j + 1, min(PAGE_SIZE * (j + 1), count), j == i) for j, name in enumerate(names)
            ]
            part.close()
            whole = self._out.part(names[i])
            for text in render_page(
                [part.path.read_text(encoding="utf-8")],
                part.entries,
                counts,
                failures if i == 0 else [],
                model_version=self._job.model_version,
                seconds=seconds,
                count=count,
                pages=pages,
            ):
                whole.write(text)
            self._out.put(whole, names[i])
            part.remove()


class Export:
    """Every file of OUT. `encode` is called for each image, anywhere; then, here: `begin`, `append` in order, `finish`.

    Args:
        job: See there.
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

    def begin(self, out: OutputFolder, images: ImageSet) -> None:
        """Opens every file. Raises ConfigError where a format cannot be written for these images."""
        self._out, self._images = out, images
        self._rows, self._seconds, self._left_out = out.part("report.json"), 0.0, Counts()
        for writer in self._all():
            writer.begin(out, images)

    def append(self, image: ImageFile, pieces: Pieces) -> None:
        """Adds the pieces of the next image to every format, the gallery and the report."""
        for name, writer in self._writers.items():
            writer.append(image, pieces[name])
        if self._gallery is not None:
            self._gallery.append(image, pieces["gallery"])
        self._rows.add(json.dumps(pieces["report"], ensure_ascii=False))
        self._seconds += pieces["report"]["seconds"]
        self._left_out += Counts(**pieces["left_out"])

    def finish(self, failures: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
        """Puts every file in place. Returns the report, with the number of images in place of their rows."""
        for writer in self._all():
            writer.finish()
        reasons = [{"path": path, "reason": reason} for path, reason in failures.items()]
        seconds = round(self._seconds, 3)
        if self._gallery is not None:
            self._gallery.finish_pages(reasons, seconds)
        report = {
            "model_version": self._job.model_version,
            "image_root": self._images.root,
            "options": dict(options),
            "seconds": seconds,
            "left_out": asdict(self._left_out),
        }
        whole, count = self._out.part("report-whole.json"), self._rows.entries
        head = json.dumps(report, ensure_ascii=False, indent=1).removesuffix("\n}")
        whole.write(f'{head},\n "failures": {json.dumps(reasons, ensure_ascii=False, indent=1)},\n "images": [\n')
        self._rows.copy_to(whole)
        self._rows.remove()
        whole.write("\n]}\n")
        self._out.put(whole, "report.json")
        self._out.finish()
        return {**report, "failures": reasons, "images": count}

    def _all(self) -> list[Writer]:
        return [*self._writers.values(), *([self._gallery] if self._gallery is not None else [])]


def write_png(path: Path, image: Image.Image) -> None:
    """Writes a PNG that others see complete or not at all."""
    file = io.BytesIO()
    image.save(file, "PNG")
    write_atomically(path, file.getvalue())


def image_record(name: str, seconds: float, segmentation: Segmentation) -> dict[str, Any]:
    """An image's row of `report.json`. Areas are in pixels."""
    height, width = segmentation.size
    return {
        "path": name,
        "width": width,
        "height": height,
        "seconds": round(seconds, 4),
        "classes": [
            {
                "name": answer.name,
                "present": answer.is_present,
                "probability": round(float(answer.probability), 6),
                "area": answer.area,
            }
            for answer in segmentation.classes
        ],
    }


def import_steps(addresses: Addresses, images: ImageSet) -> str:
    """How to get `tasks.json` into Label Studio, for this run's folders."""
    steps = [
        "Create a project. Under Settings > Labeling Interface > Code, paste `label_config.xml` and save.",
        "Import `tasks.json` (Import button, or `POST /api/projects/ID/import`). Each task comes with its pre-labels.",
    ]
    root = None if addresses.root is None else printable(addresses.root)
    if addresses.prefix is not None:
        steps.append(
            f"The tasks expect the images at `{addresses.prefix}` and their path below `{root or images.root}`."
        )
    elif root is None or images.folder is None:
        steps.append(
            "The tasks name the images by their own addresses. Of `s3://`, `gs://` and `az://`, add the bucket under "
            "Settings > Cloud Storage as a source storage with pre-signed URLs, so that the browser can load them; do "
            "not sync it, which would make each image a second task."
        )
    else:
        steps.insert(
            0,
            "Start Label Studio so that it serves the folder above the images:\n\n"
            "       LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true \\\n"
            f"       LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={shlex.quote(root)} label-studio",
        )
        steps.insert(
            2,
            f"Under Settings > Cloud Storage > Add Source Storage > Local Files, add `{printable(images.folder)}` and "
            "save: Label Studio serves only files in a storage. Do not sync it, which would make each image a second "
            "task.",
        )
        unpack = [f"`{printable(path)}` into `{printable(without_ending(path))}`" for path in images.archives]
        if unpack:
            steps.insert(0, f"Unpack {', '.join(unpack)}: Label Studio does not look into archives.")
    numbered = "".join(f"{i}. {step}\n" for i, step in enumerate(steps, start=1))
    return f"# Importing these pre-labels into Label Studio\n\n{numbered}"
