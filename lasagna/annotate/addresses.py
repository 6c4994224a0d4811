"""What Label Studio calls the images, and how to import the tasks there."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lasagna.annotate.archives import without_ending
from lasagna.annotate.folder import ImageFile, ImageSet, printable
from lasagna.errors import ConfigError

LOCAL_FILES = "/data/local-files/?d="
"""What Label Studio serves of its document root."""


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


def import_steps(addresses: Addresses, images: ImageSet) -> str:
    """How to get `tasks.json` into Label Studio, for this run's folders."""
    steps = [
        "Create a project. Under Settings > Labeling Interface > Code, paste `label_config.xml` and save.",
        "Import `tasks.json` (Import button, or `POST /api/projects/ID/import`). Each task comes with its pre-labels.",
        "Each must then have one prediction (the data manager's column `Predictions`, or `prediction_count` of the "
        "answer). If another program writes into Label Studio's SQLite database meanwhile, Label Studio may keep the "
        "tasks and lose the pre-labels, without an error: delete these tasks and import them again.",
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
