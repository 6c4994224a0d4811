"""Every setting of the product, in one table.

A setting comes from its environment variable (`LASAGNA_` + name in capitals) or is its default. `Settings.load` reads
all of them once; `describe` prints each resolved value and where it came from.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasagna.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """One row of the table: name, how to parse its text, default, one line of help."""

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    secret: bool = False

    @property
    def variable(self) -> str:
        return "LASAGNA_" + self.name.upper()


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("expected 1 or more")
    return number


def _yes_or_no(text: str) -> bool:
    if text.strip().lower() not in ("yes", "no", "true", "false", "1", "0", ""):
        raise ValueError("expected yes or no")
    return text.strip().lower() in ("yes", "true", "1")


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected {' or '.join(choices)}")
        return text

    return parse


def _at_least_zero(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("expected 0 or more")
    return number


def _pixels(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError("expected 0 or more")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError("expected a number from 0 to 1")
    return number


TABLE: tuple[Setting, ...] = (
    Setting("model", str, "nano", "checkpoint that the worker loads: a shipped name, a folder or a hub id"),
    Setting("device", str, "auto", "auto, cpu, cuda or cuda:N"),
    Setting("dtype", str, "auto", "auto, float32, bfloat16 or float16"),
    Setting("quantise", str, "none", "none, int8 or int4: the language model's matrices, to save memory"),
    Setting("redis_url", str, "", "Redis for jobs and caches; empty: one is started and kept by lasagna itself"),
    Setting(
        "state_dir",
        str,
        "",
        "folder of our own files; empty: ~/.local/state/lasagna",
    ),
    Setting("cache", str, "", "folder of what was fetched (models, Label Studio); empty: ~/.cache/lasagna-assist"),
    Setting("registry", str, "", "folder of the fine-tuned versions; empty: registry in the state folder"),
    Setting(
        "loaded_versions", _at_least_one, 3, "fine-tuned versions that a worker keeps in memory beside its own model"
    ),
    Setting("label_studio_url", str, "", "address of Label Studio; empty: what /setup says"),
    Setting("label_studio_token", str, "", "personal or legacy access token of Label Studio", secret=True),
    Setting("host", str, "127.0.0.1", "address that the web process listens on"),
    Setting("port", int, 9090, "port that the web process listens on"),
    Setting("basic_auth", str, "", "user:password that Label Studio must send; empty: none", secret=True),
    Setting("webhook_secret", str, "", "what a webhook may send in place of the password", secret=True),
    Setting("without_password", _yes_or_no, False, "yes: listen beyond this machine without basic_auth"),
    Setting("max_request_bytes", _at_least_one, 1 << 30, "largest request; Label Studio sends all tasks in one"),
    Setting("max_request_tasks", _at_least_one, 100_000, "most tasks in one request"),
    Setting("max_labels", _at_least_one, 2000, "most classes in a labelling configuration"),
    Setting("batch_size", int, 4, "images per model batch"),
    Setting("min_area", _at_least_zero, 0, "pixels below which a part of a mask is left out; 0: none is"),
    Setting("min_width", _pixels, 0.0, "pixels: parts nowhere as wide as this (slivers) are left out; 0: none is"),
    Setting(
        "duplicate_iou",
        _share,
        0.0,
        "IoU from which of two parts of different classes the less probable is left out; 0: none is",
    ),
    Setting("max_regions", _at_least_zero, 0, "parts of masks kept per image, the largest; 0: all"),
    Setting(
        "max_region_bytes",
        _at_least_zero,
        300_000,
        "JSON bytes from which a brush region is left out where a polygon shows the same; 0: never",
    ),
    Setting("predict_deadline", float, 45.0, "seconds in which /predict answers with what is done"),
    Setting("image_timeout", float, 30.0, "seconds to fetch one image"),
    Setting("max_image_bytes", int, 64 * 1024 * 1024, "largest image file that is read"),
    Setting("max_image_pixels", int, 178_956_970, "largest image that is decoded, in pixels"),
    Setting("image_hosts", str, "", "other hosts that images may come from: host or host:port, separated by commas"),
    Setting("delivery_timeout", float, 600.0, "seconds during which Label Studio is tried again while it is gone"),
    Setting(
        "train_when",
        str,
        "every 20",
        "when a project is trained: every N (corrections), cron * * * * *, by hand, never",
    ),
    Setting("train_recipe", str, "", "recipe of fine-tunes; empty: the shipped one for the model"),
    Setting("train_changes", str, "", "what is changed in it: key=value, separated by spaces"),
    Setting("train_gpu_share", float, 0.5, "share of a GPU's memory that a fine-tune may take"),
    Setting("replay_data", str, "", "folder of the sets that a fine-tune replays; empty: what the recipe says"),
    Setting("log_level", str, "INFO", "DEBUG, INFO, WARNING or ERROR"),
    Setting("log_format", _one_of("text", "json"), "text", "text: lines for people; json: one JSON object per line"),
)


def hide_password(url: str) -> str:
    """`redis://user:secret@host:1` as `redis://***@host:1`, for messages."""
    return re.sub(r"//[^/\s]*@", "//***@", url)


def cache_folder(settings: "Settings | None" = None) -> Path:
    """Folder of what was fetched or installed: the setting `cache`."""
    chosen = (settings or Settings.load())["cache"]
    return Path(chosen or Path.home() / ".cache" / "lasagna-assist").expanduser()


def state_folder(settings: "Settings | None" = None) -> Path:
    """Folder of our own files that cannot be made again: the setting `state_dir`."""
    chosen = (settings or Settings.load())["state_dir"]
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return Path(chosen).expanduser() if chosen else base / "lasagna"


def registry_folder(settings: "Settings | None" = None) -> Path:
    """Folder of the fine-tuned versions (`backend.registry.registry`): the setting `registry`."""
    settings = settings or Settings.load()
    chosen = settings["registry"]
    return Path(chosen).expanduser() if chosen else state_folder(settings) / "registry"


@dataclass(frozen=True)
class Settings:
    """The resolved table. Read a value with `settings["port"]`."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> "Settings":
        """Resolves every setting: override (a command-line option that is not None), environment, default.

        Raises ConfigError naming the variable, the text found and what was expected.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for setting in TABLE:
            if overrides.get(setting.name) is not None:
                values[setting.name], origins[setting.name] = overrides[setting.name], "command line"
            elif setting.variable in environ:
                text = environ[setting.variable]
                try:
                    values[setting.name] = setting.parse(text)
                except ValueError as error:
                    raise ConfigError(
                        f"{setting.variable}={text!r} cannot be read ({error}); it is: {setting.help}"
                    ) from error
                origins[setting.name] = setting.variable
            else:
                values[setting.name], origins[setting.name] = setting.default, "default"
        unknown = set(overrides) - {setting.name for setting in TABLE}
        if unknown:
            raise TypeError(f"unknown settings: {sorted(unknown)}")
        return cls(values, origins)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def describe(self) -> str:
        """One line per setting: value and origin; secrets are masked, also in addresses."""
        lines = []
        for setting in TABLE:
            value = self.values[setting.name]
            shown = "***" if setting.secret and value else hide_password(repr(value))
            lines.append(f"{setting.name:20} {shown:32} {self.origins[setting.name]}")
        return "\n".join(lines)
