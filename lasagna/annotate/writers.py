"""The formats of `lasagna annotate`: what each writes of an image, and of all of them.

What always holds: an image's own part of the work (`encode`) depends on the image alone and may be done on any thread
or machine; the rest (`append`, in the order of the images, then `finish`) copies text to files. Nothing appears in OUT
before everything is complete (`lasagna.annotate.output`).
"""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from lasagna.annotate.addresses import Addresses, import_steps
from lasagna.annotate.folder import ImageFile, ImageSet
from lasagna.annotate.gallery import PAGE_SIZE, Page, card_to_html, make_card, render_page, thumbnail_name
from lasagna.annotate.output import FileSet, OutputFolder, PartFile, stage
from lasagna.annotate.results import content_hash
from lasagna.annotate.sources import LocalFile
from lasagna.annotate.swap import files_below
from lasagna.errors import ConfigError
from lasagna.formats.coco import Variant, coco_category_ids, coco_frame, segmentation_to_coco
from lasagna.formats.hygiene import Counts, Hygiene, limit_region_bytes
from lasagna.formats.label_studio import join_predictions, segmentation_to_label_studio
from lasagna.formats.png import class_table, indices_to_png, segmentation_to_indices, segmentation_to_instances
from lasagna.formats.voc import segmentation_to_voc
from lasagna.formats.yolo import segmentation_to_yolo, yolo_data_yaml, yolo_label_path
from lasagna.labels.configuration import LabelConfig
from lasagna.labels.question import ProjectQuestion, name_version
from lasagna.masks.segmentation import ClassQuery, Segmentation


@dataclass(frozen=True)
class Job:
    """What an image is encoded by, wherever that is done. Can be pickled.

    Attributes:
        parts: Whether each connected part of a class is an object of its own in every format that has objects; else
            each format does as its readers expect.
        queries: The classes, where they stand in the tasks and not in the labelling configuration.
        params: Of the model (`Lasagna.segment_batch`).
        unknown: Classes that the model cannot be asked for; where no image has them, that is no absence.
    """

    out: Path
    class_names: Sequence[str]
    model_version: str
    label_config: LabelConfig
    label_config_xml: str
    addresses: Addresses
    hygiene: Hygiene
    parts: bool = False
    queries: Sequence[ClassQuery] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    unknown: Sequence[str] = ()

    def stage(self, name: str, data: bytes | str) -> str:
        """Writes what will be OUT/name. Returns the hash of its content."""
        return stage(self.out, name, data)


class Writer:
    """A format. `encode` works on a writer that was not begun, too."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def files(self, options: Mapping[str, Any]) -> FileSet:
        """The files that it writes.

        Args:
            options: What the answers depend on besides the image.
        """
        raise NotImplementedError

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        """Returns what the image adds to shared files, JSON-ready, and stages the files of this image alone."""
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

    def files(self, options: Mapping[str, Any]) -> FileSet:
        xml = self._job.label_config_xml
        names = ("tasks.json", "label_config.xml", "IMPORT.md")
        return FileSet("label-studio", names, content_hash(xml), ("label_config.xml", xml))

    @cached_property
    def _version(self) -> str:
        """With the question, so that a backend that serves the same model takes these predictions for its own."""
        job = self._job
        params = {**job.params, "parts": job.parts}
        return name_version(job.model_version, ProjectQuestion.of(job.label_config.images, params, asdict(job.hygiene)))

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        config, job = self._job.label_config, self._job
        data = config.make_data(job.addresses.of(image), job.queries)
        shown, predictions, counts = config.shown(data), [], Counts()
        for each in shown:
            key = f"{content} {image.name}" + (f" {each.config.name}" if len(shown) > 1 else "")
            prediction = segmentation_to_label_studio(segmentation, each.config, key, self._version, parts=job.parts)
            prediction, left_out = limit_region_bytes(prediction, each.config, job.hygiene.max_region_bytes)
            predictions.append(prediction)
            counts += left_out
        task = {"data": data, "predictions": [join_predictions(predictions)]}
        return {"task": json.dumps(task, ensure_ascii=False, separators=(",", ":")), "left_out": asdict(counts)}

    def begin(self, out: OutputFolder, images: ImageSet) -> None:
        super().begin(out, images)
        for image in images.files:  # an address that cannot be made says so now, not after hours
            self._job.label_config.make_data(self._job.addresses.of(image), self._job.queries)
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

    def files(self, options: Mapping[str, Any]) -> FileSet:
        return FileSet("coco", tuple(name for _, name in self._VARIANTS))

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        ids = coco_category_ids(self._job.class_names)
        piece: dict[str, Any] = {"size": list(segmentation.size)}
        for variant, _ in self._VARIANTS:
            annotations = segmentation_to_coco(segmentation, ids, 0, variant=variant, parts=self._job.parts)
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
        frame = coco_frame(self._job.class_names, self._job.model_version, self._job.unknown)
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
    """`masks/<image>.png` with class indices, `masks/classes.json` with their names and colours. A piece: a hash."""

    def files(self, options: Mapping[str, Any]) -> FileSet:
        table = self._table()
        return FileSet("masks", ("masks",), content_hash(table), ("masks/classes.json", table), _is_png)

    def _table(self) -> str:
        return json.dumps(class_table(self._job.class_names), ensure_ascii=False, indent=1) + "\n"

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        png = indices_to_png(segmentation_to_indices(segmentation), len(self._job.class_names))
        return self._job.stage(f"masks/{image.stem}.png", png_bytes(png))

    def append(self, image: ImageFile, piece: Any) -> None:
        self._out.take(f"masks/{image.stem}.png", piece)

    def finish(self) -> None:
        self._out.write("masks/classes.json", self._table())


class InstancesWriter(Writer):
    """`instances/<image>.png` with numbers of parts, and `instances/instances.json` that says what each is.

    A piece: the PNG's hash, and the rows.
    """

    def files(self, options: Mapping[str, Any]) -> FileSet:
        # The numbers mean what the rows say, so a PNG of other answers must not stay beside them.
        meaning = content_hash(json.dumps([dict(options), asdict(self._job.hygiene)], sort_keys=True))
        return FileSet("instances", ("instances",), meaning, is_data=_is_png)

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        numbers, table = segmentation_to_instances(segmentation, covered=self._job.parts)
        return [self._job.stage(f"instances/{image.stem}.png", png_bytes(Image.fromarray(numbers))), table]

    def begin(self, out: OutputFolder, images: ImageSet) -> None:
        super().begin(out, images)
        self._rows = out.part("instances.json")
        self._rows.write("[\n")

    def append(self, image: ImageFile, piece: Any) -> None:
        content, table = piece
        png = f"instances/{image.stem}.png"
        self._out.take(png, content)
        self._rows.add(json.dumps({"image": image.name, "png": png, "instances": table}, ensure_ascii=False))

    def finish(self) -> None:
        self._rows.write("\n]\n")
        self._out.put(self._rows, "instances/instances.json")


class YoloWriter(Writer):
    """`yolo/`: label files where YOLO's loaders look for them, `images`, `images.txt` and `data.yaml`. A piece: a hash.

    `images` is a link to the folder of the photos; where label files would then lie among the photos, or a name cannot
    be written as it is, a folder with a link to each. Without one folder that holds the photos there is no link: they
    go to `yolo/images` under the names in `images.txt`.
    """

    def files(self, options: Mapping[str, Any]) -> FileSet:
        table = yolo_data_yaml(self._job.class_names)
        return FileSet("yolo", ("yolo",), content_hash(table), ("yolo/data.yaml", table), _is_yolo_label)

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        ids = {name: i for i, name in enumerate(self._job.class_names)}
        return self._job.stage(f"yolo/{yolo_label_path(image.name)}", segmentation_to_yolo(segmentation, ids))

    def begin(self, out: OutputFolder, images: ImageSet) -> None:
        super().begin(out, images)
        labels: dict[str, str] = {}
        for file in images.files:
            other = labels.setdefault(yolo_label_path(file.name).casefold(), file.name)
            if other != file.name:
                raise ConfigError(
                    f"YOLO finds labels by the image's name without its ending, and {file.name} shares that name with "
                    f"{other}; rename one of them or leave out --format yolo"
                )
        self._list = out.part("images.txt")
        self._links = self._plan_links()

    def _plan_links(self) -> dict[str, Path]:
        """Names in OUT of the links, and where they lead."""
        folder, place = self._images.folder, self._out.path / "yolo" / "images"
        if folder is None or not self._images.all_on_disk:
            return {}
        each = {f"yolo/images/{file.name}": file.path for file in self._images.files if file.path is not None}
        plain = all(path == folder / name.removeprefix("yolo/images/") for name, path in each.items())
        apart = all(yolo_label_path(file.name).startswith("labels/") for file in self._images.files)
        if place.is_dir() and not place.is_symlink() and self._has_others(place):
            missing = next((name for name in each if not (self._out.path / name).exists()), None)
            if missing is None:  # somebody has put the photos there
                return {}
            raise ConfigError(
                f"{place} is a folder that holds files of yours, and a link to the photos has to be there: {missing} "
                "is missing. Put all photos into it, under their names, or move it away, or leave out --format yolo"
            )
        return {"yolo/images": folder} if plain and apart else each

    def _has_others(self, place: Path) -> bool:
        return any(f"yolo/images/{name}" not in self._out.before.files for name in files_below(place))

    def append(self, image: ImageFile, piece: Any) -> None:
        self._out.take(f"yolo/{yolo_label_path(image.name)}", piece)
        self._list.write(f"./images/{image.name}\n")
        self._link(f"yolo/images/{image.name}")

    def finish(self) -> None:
        self._out.put(self._list, "yolo/images.txt")
        self._out.write("yolo/data.yaml", yolo_data_yaml(self._job.class_names))
        self._link("yolo/images")

    def _link(self, name: str) -> None:
        if name in self._links:
            self._out.link(name, link_target(self._out.path / name, self._links[name]))


class VocWriter(Writer):
    """`voc/<image>.xml`: a box per connected part. A piece: a hash."""

    def files(self, options: Mapping[str, Any]) -> FileSet:
        return FileSet("voc", ("voc",))

    def encode(self, image: ImageFile, content: str, segmentation: Segmentation) -> Any:
        return self._job.stage(f"voc/{image.stem}.xml", segmentation_to_voc(segmentation, image.name))

    def append(self, image: ImageFile, piece: Any) -> None:
        self._out.take(f"voc/{image.stem}.xml", piece)


def _is_png(name: str) -> bool:
    return name.lower().endswith(".png")


def _is_yolo_label(name: str) -> bool:
    return name.endswith(".txt") and "labels" in name.split("/")[1:-1]


def link_target(place: Path, target: Path) -> str:
    """What a symbolic link says: the way from it to its target, so that both can be moved together; where they have no
    folder in common, the target's path."""
    start = os.path.realpath(place.parent)
    real = os.path.join(os.path.realpath(target.parent), target.name)
    common = os.path.commonpath([start, real])
    return os.path.abspath(target) if common == os.path.abspath(os.sep) else os.path.relpath(real, start)


def png_bytes(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


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
    """`gallery.html`, and `gallery-2.html`, ... of more than `PAGE_SIZE` images. A piece: the card, and its classes.

    Thumbnails are written in place, by the threads that read the photos: their names say their content.
    """

    def files(self, options: Mapping[str, Any]) -> FileSet:
        return FileSet("gallery", ("gallery", "gallery.html", "gallery-*.html"))

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
        self._out.take_in_place(piece["thumbnail"])
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
