"""Every setting of the product: its name, type, bounds, default and one line of help.

A setting comes from a command-line option, else from its environment variable (`LASAGNA_` + name in capitals), else
from the file that this variable with `_FILE` after it names (secrets of Compose and Kubernetes are files), else it is
its default; an empty variable counts as none. `Settings.load` reads all of them once; `describe` prints each value
and where it came from.

What always holds: the values of a `Settings` are of their type and within their bounds, so that nothing has to check
them again; a value that is not is refused by its name, with what was found and what is allowed.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from lasagna.errors import ConfigError

PREFIX = "LASAGNA_"
_MOST_OF_A_FILE = 1 << 16
"""Characters of a file that holds a value."""


@dataclass(frozen=True)
class Allowed:
    """What a setting can be, in words; stands beside the type and its bounds."""

    words: str


def _printable(text: str) -> str:
    """Refuses what came along by mistake, such as the carriage return of an .env file from Windows."""
    if not text.isprintable():
        raise ValueError("a character that cannot be printed")
    return text


def _matching(pattern: str) -> AfterValidator:
    def check(text: str) -> str:
        if re.fullmatch(pattern, text.strip(), re.IGNORECASE) is None:
            raise ValueError("another form")
        return text

    return AfterValidator(check)


def _or_nothing(pattern: str) -> AfterValidator:
    return _matching(f"(?:{pattern})?")


Text = Annotated[str, AfterValidator(_printable), Allowed("a text of printable characters")]
Number = Annotated[int, Field(ge=0), Allowed("a whole number, 0 or more")]
Count = Annotated[int, Field(ge=1), Allowed("a whole number, 1 or more")]
Port = Annotated[int, Field(ge=1, le=65535), Allowed("a whole number from 1 to 65535")]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False), Allowed("a number, 0 or more")]
Duration = Annotated[float, Field(gt=0, allow_inf_nan=False), Allowed("a number above 0")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Allowed("a number from 0 to 1")]
SomeShare = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), Allowed("a number above 0, up to 1")]
Switch = Annotated[bool, Allowed("yes or no")]
Device = Annotated[Text, _matching(r"auto|cpu|cuda(:\d+)?"), Allowed("auto, cpu, cuda or cuda:N")]
RedisUrl = Annotated[
    Text, _or_nothing(r"rediss?://[^/\s].*|unix://\S+"), Allowed("redis://HOST:PORT/0, rediss://... or unix://PATH")
]
HttpUrl = Annotated[
    Text, _or_nothing(r"https?://[^/\s]\S*"), Allowed("an address that begins with http:// or https://")
]
UserPassword = Annotated[Text, _or_nothing(r"[^:]+:.+"), Allowed("USER:PASSWORD, both not empty")]
Hosts = Annotated[
    Text, _or_nothing(r"[^\s,/]+(\s*,\s*[^\s,/]+)*\s*,?"), Allowed("names of hosts, or HOST:PORT, separated by commas")
]
Occasion = Annotated[
    Text,
    _matching(r"auto|every [1-9][0-9]{0,8}|cron\s+\S{1,99}(\s+\S{1,99}){4}|by hand|never"),
    Allowed(
        '"auto", "every 20" (corrections), "cron 0 3 * * *" (minute, hour, day, month, weekday), "by hand" or "never"'
    ),
]
Changes = Annotated[
    Text,
    _or_nothing(r"[^\s=]+=\S*(\s+[^\s=]+=\S*)*"),
    Allowed("key=value, separated by spaces, as in optimiser.steps=100"),
]
Level = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(lambda text: str(text).upper())]


class Settings(BaseSettings):
    """The resolved settings. A field with `repr=False` is a secret."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    model: Text = Field("nano", description="checkpoint that the worker loads: a shipped name, a folder or a hub id")
    device: Device = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="number format of the model: auto, float32, bfloat16 or float16"
    )
    quantise: Literal["none", "int8", "int4"] = Field(
        "none", description="none, int8 or int4: the language model's matrices, to save memory"
    )
    encoder: Literal["torch", "openvino"] = Field(
        "torch", description="what computes nano's image encoder: torch, or openvino, which is faster on a CPU"
    )
    redis_url: RedisUrl = Field(
        "", description="Redis for jobs and caches; empty: one is started and kept by lasagna itself"
    )
    state_dir: Text = Field("", description="folder of our own files; empty: ~/.local/state/lasagna")
    cache: Text = Field(
        "", description="folder of what was fetched (models, Label Studio); empty: ~/.cache/lasagna-assist"
    )
    data: Text = Field(
        "data", description="folder of data sets, where a recipe, a suite or a command of training names none"
    )
    registry: Text = Field("", description="folder of the fine-tuned versions; empty: registry in the state folder")
    loaded_versions: Count = Field(
        3, description="fine-tuned versions that a worker keeps in memory beside its own model"
    )
    label_studio_url: HttpUrl = Field("", description="address of Label Studio; empty: what /setup says")
    label_studio_token: Text = Field("", repr=False, description="personal or legacy access token of Label Studio")
    host: Text = Field("127.0.0.1", description="address that the web process listens on")
    port: Port = Field(9090, description="port that the web process listens on")
    basic_auth: UserPassword = Field(
        "", repr=False, description="user:password that Label Studio must send; empty: none"
    )
    webhook_secret: Text = Field("", repr=False, description="what a webhook may send in place of the password")
    without_password: Switch = Field(False, description="yes: listen beyond this machine without basic_auth")
    max_request_bytes: Count = Field(1 << 30, description="largest request; Label Studio sends all tasks in one")
    max_request_tasks: Count = Field(100_000, description="most tasks in one request")
    max_labels: Count = Field(2000, description="most classes in a labelling configuration")
    batch_size: Count = Field(4, description="images per model batch; on a CPU they are answered side by side")
    min_area: Number = Field(0, description="pixels below which a part of a mask is left out; 0: none is")
    min_width: Amount = Field(
        0.0, description="pixels: parts nowhere as wide as this (slivers) are left out; 0: none is"
    )
    duplicate_iou: Share = Field(
        0.0, description="IoU from which of two parts of different classes the less probable is left out; 0: none is"
    )
    max_regions: Number = Field(0, description="parts of masks kept per image, the largest; 0: all")
    max_region_bytes: Number = Field(
        300_000, description="JSON bytes from which a brush region is left out where a polygon shows the same; 0: never"
    )
    guess_unknown: Switch = Field(
        False, description="yes: ask the model also for labels that it was never taught; no: people draw those"
    )
    predict_deadline: Amount = Field(45.0, description="seconds in which /predict answers with what is done")
    image_timeout: Duration = Field(30.0, description="seconds to fetch one image")
    max_image_bytes: Count = Field(64 * 1024 * 1024, description="largest image file that is read")
    max_image_pixels: Count = Field(178_956_970, description="largest image that is decoded, in pixels")
    max_image_memory: Count = Field(2 * 1024**3, description="bytes that decoding one image may take")
    image_hosts: Hosts = Field(
        "", description="other hosts that images may come from: host or host:port, separated by commas"
    )
    allowed_hosts: Hosts = Field(
        "", description="names under which browsers and Label Studio may reach a backend without a password"
    )
    delivery_timeout: Amount = Field(
        600.0, description="seconds during which Label Studio is tried again while it is gone"
    )
    train_when: Occasion = Field(
        "auto",
        description="when a project is trained: auto (after 20 corrections, 100 while an instant head draws), every N, "
        "cron * * * * *, by hand, never",
    )
    instant: Switch = Field(True, description="yes: learn from each correction at once (the instant head)")
    train_recipe: Text = Field("", description="recipe of fine-tunes; empty: the shipped one for the model")
    train_changes: Changes = Field("", description="what is changed in the recipe")
    train_gpu_share: SomeShare = Field(0.5, description="share of a GPU's memory that a fine-tune may take")
    replay_data: Text = Field(
        "", description="folder of the sets that a fine-tune replays; empty: what the recipe says"
    )
    log_level: Level = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_format: Literal["text", "json"] = Field(
        "text", description="text: lines for people; json: one JSON object per line"
    )

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values come from the constructor alone: `load` asks the environment, to know where each value is from."""
        return (init_settings,)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> "Settings":
        """Resolves every setting: override (a command-line option that is not None), environment, default.

        Args:
            environ: The environment variables; None: the process's own.

        Raises:
            ConfigError: Values that cannot be used, each with its name, what was found and what is allowed.
            TypeError: An override that is no setting.
        """
        unknown = set(overrides) - set(cls.model_fields)
        if unknown:
            raise TypeError(f"unknown settings: {sorted(unknown)}")
        source = EnvSettingsSource(cls)
        if environ is not None:
            source.env_vars = {name.lower(): text for name, text in environ.items() if text}
        files, own = _from_files(os.environ if environ is None else environ), source()
        origins = dict.fromkeys(cls.model_fields, "default") | {name: f"{variable(name)}_FILE" for name in files}
        given, origins = files | own, origins | {name: variable(name) for name in own}
        for name, value in overrides.items():
            if value is not None:
                given[name], origins[name] = value, "command line"
        return cls._checked(given, origins)

    @classmethod
    def _checked(cls, values: Mapping[str, Any], origins: dict[str, str]) -> "Settings":
        try:
            made = cls(**values)
        except ValidationError as error:
            names = dict.fromkeys(str(fault["loc"][0]) for fault in error.errors())
            raise ConfigError("\n".join(_refusal(name, values[name], origins[name]) for name in names)) from error
        made._origins = origins
        return made

    @property
    def origins(self) -> Mapping[str, str]:
        """Where each value is from: "command line", its variable or that of its file, or "default"."""
        return self._origins

    def replaced(self, **values: Any) -> "Settings":
        """A copy with other values, which are checked too; the origins stay as they were."""
        return self._checked({**self.model_dump(), **values}, self._origins)

    def describe(self) -> str:
        """One line per setting: value and origin; secrets are masked, also in addresses."""
        lines = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            lines.append(f"{name:20} {_shown(field, value):32} {self.origins[name]}")
        return "\n".join(lines)


def _from_files(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings whose values files hold: `LASAGNA_NAME_FILE=path`. Newlines at the end are not part of the value;
    an empty file counts as none."""
    found = {}
    for name in Settings.model_fields:
        path = environ.get(f"{variable(name)}_FILE")
        if not path:
            continue
        try:
            with Path(path).open(encoding="utf-8") as file:
                text = file.read(_MOST_OF_A_FILE + 1).rstrip("\r\n")
            if len(text) > _MOST_OF_A_FILE:
                raise ValueError(f"it has more than {_MOST_OF_A_FILE} characters")
            if text:
                found[name] = text
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{variable(name)}_FILE={path} cannot be read: {error}; give a text file that holds the value"
            ) from error
    return found


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def is_secret(field: FieldInfo) -> bool:
    """Whether a setting's value must not be shown."""
    return not field.repr


def allowed(field: FieldInfo) -> str:
    """What a setting can be, in words."""
    found = [one.words for one in field.metadata if isinstance(one, Allowed)]
    if found:
        return found[-1]
    *choices, last = (str(choice) for choice in field.annotation.__args__)  # type: ignore[union-attr]
    return f"{', '.join(choices)} or {last}"


def _shown(field: FieldInfo, value: Any) -> str:
    return "***" if is_secret(field) and value else re.sub(r"[^/\s'\"]*@", "***@", repr(value))


def _refusal(name: str, value: Any, origin: str) -> str:
    field = Settings.model_fields[name]
    where = f"{name} (command line)" if origin == "command line" else variable(name)
    return f"{where}={_shown(field, value)} cannot be used: give {allowed(field)} ({field.description})"


def hide_password(url: str) -> str:
    """`redis://user:secret@host:1` as `redis://***@host:1`, for messages."""
    return re.sub(r"//[^/\s]*@", "//***@", url)


def cache_folder(settings: Settings | None = None) -> Path:
    """Folder of what was fetched or installed: the setting `cache`."""
    chosen = (settings or Settings.load()).cache
    return _expanded(chosen or "~/.cache/lasagna-assist", "LASAGNA_CACHE")


def data_folder(settings: Settings | None = None) -> Path:
    """Folder of data sets (docs/data.md): the setting `data`."""
    return _expanded((settings or Settings.load()).data, "LASAGNA_DATA")


def state_folder(settings: Settings | None = None) -> Path:
    """Folder of our own files that cannot be made again: the setting `state_dir`."""
    chosen = (settings or Settings.load()).state_dir
    if chosen:
        return _expanded(chosen, "LASAGNA_STATE_DIR")
    return _expanded(os.environ.get("XDG_STATE_HOME") or "~/.local/state", "LASAGNA_STATE_DIR") / "lasagna"


def registry_folder(settings: Settings | None = None) -> Path:
    """Folder of the fine-tuned versions (`backend.registry.registry`): the setting `registry`."""
    settings = settings or Settings.load()
    chosen = settings.registry
    return _expanded(chosen, "LASAGNA_REGISTRY") if chosen else state_folder(settings) / "registry"


def _expanded(folder: str, name: str) -> Path:
    """A folder's path. Raises ConfigError where "~" is nothing: a user without a home."""
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{folder} is in the home of this user (uid {os.getuid()}), who has none: set HOME, or {name} to a folder"
        ) from error
