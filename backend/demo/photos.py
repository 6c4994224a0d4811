"""What `lasagna demo` shows: photos, and the labelling configuration that they are asked with."""

from importlib.resources import files
from pathlib import Path

from lasagna.annotate.folder import find_images
from lasagna.errors import ConfigError
from lasagna.labels.classes import make_label_config, read_labels
from lasagna.labels.configuration import parse_label_config

# Photos in scikit-image's wheel with licences that allow any use (see its data/README): a class or two in each is
# present, the others are absent.
_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


def demo_label_config(labels: str | None, path: Path | None) -> str:
    """The XML of the project. Raises ConfigError or QueryError for one that cannot be used."""
    if labels is not None and path is not None:
        raise ConfigError("--labels and --label-config exclude each other: the configuration holds the labels")
    if labels is not None:
        return make_label_config(read_labels(labels))
    try:
        if path is not None:
            xml = path.read_text(encoding="utf-8-sig")
        else:
            xml = files("label_config").joinpath("demo.xml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the labelling configuration {path} cannot be read: {error}") from error
    if set(parse_label_config(xml).fields) != {"image"}:
        raise ConfigError('the photos of the demo are the variable "image": use <Image ... value="$image"/>')
    return xml


def chosen_photos(images: Path | None) -> list[Path]:
    """The images of a folder or file, else `demo_photos`. Raises ConfigError for what Label Studio cannot show."""
    if images is not None:
        found = find_images([str(images)])
        if not found.all_on_disk:
            raise ConfigError(f"Label Studio cannot show images in an archive: unpack {images} and name the folder")
        return [file.path for file in found.files if file.path is not None]
    return demo_photos()


def demo_photos() -> list[Path]:
    """The photos that come with scikit-image and show classes of label_config/demo.xml."""
    data = Path(str(files("skimage").joinpath("data")))
    return [data / name for name in _PHOTOS]
