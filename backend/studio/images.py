"""Fetching a task's image through Label Studio.

A task's data is written by whoever imports tasks, so an address in it is not to be trusted: it is fetched only

- from the project's own Label Studio (same scheme, host and port), below the paths that serve files, with its token;
- from cloud storage (s3://, gs://, azure-blob://) through Label Studio, which looks up the project's storages and
  either passes the bytes on or redirects to a presigned address; that address must be a public one, which is looked at
  when the connection is made, so that a name which means another address a moment later (DNS rebinding) gains nothing;
- from hosts that the setting `image_hosts` lists, without the token;
- from the address itself, where it is a `data:` URI: nothing is fetched.

Anything else (another port of this machine, file://, a redirect elsewhere) is refused in words. Every fetch is limited
in time and bytes; the limit on pixels is `lasagna.masks.image.load_image`'s.
"""

import base64
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urljoin, urlsplit

import requests
import urllib3.exceptions

from backend.studio.client import LabelStudio, LabelStudioError
from backend.studio.networks import CheckedAdapter, is_public
from lasagna.errors import ImageError
from lasagna.settings import Settings

CLOUD_SCHEMES = ("s3", "s3s", "gs", "azure-blob", "azure-spi", "azure_spi")
_FILE_PATHS = re.compile(
    r"/(data/upload/|data/local-files/?\?|storage-data/uploaded/?\?|static/|(tasks|projects)/\d+/(resolve|presign)/?\?)"
)
_MAX_REDIRECTS = 3
_UNKNOWN_UPLOAD = b"object has no attribute 'has_permission'"
"""What Label Studio 1.23 says, with a status of 500, where an uploaded file is not known (any more)."""
_CHUNK = 256 * 1024


@dataclass(frozen=True)
class ImageLimits:
    """What one fetch may cost, and which hosts besides Label Studio are allowed ("host" or "host:port")."""

    seconds: float
    max_bytes: int
    hosts: frozenset[str] = frozenset()

    @classmethod
    def from_settings(cls, settings: Settings) -> "ImageLimits":
        hosts = (host.strip().lower() for host in settings.image_hosts.split(","))
        return cls(settings.image_timeout, settings.max_image_bytes, frozenset(host for host in hosts if host))


class DoubtfulImageError(ImageError):
    """What came may not be what is there, and trying again can help: the image took too long, as it does where we stood
    still ourselves, or it was empty, as it seems to be where a server is killed in the middle."""


def task_data(task: Any) -> Mapping[str, Any]:
    """The data of a task as Label Studio sends it. Raises ImageError where it has none."""
    data = task.get("data") if isinstance(task, Mapping) else None
    if not isinstance(data, Mapping):
        raise ImageError("the task has no data")
    return data


def fetch_image(
    label_studio: LabelStudio, address: str, task_id: int | None, limits: ImageLimits, known_as: str = ""
) -> bytes:
    """The bytes of a task's image.

    Args:
        label_studio: The project's Label Studio.
        address: The image's address from the task's data.
        task_id: The task; cloud addresses are resolved through it.
        limits: What the fetch may cost.
        known_as: The address that Label Studio calls itself, where that is another than ours for it (containers): it
            is what the addresses of its local files begin with.

    Raises:
        ImageError: The address is refused, or there is no such file, or it is over a limit.
        DoubtfulImageError: It took too long, or nothing came.
        LabelStudioError: Label Studio cannot be reached or does not accept the token.
    """
    if address[:5].lower() == "data:":
        return _inline(address, limits)
    deadline = time.monotonic() + limits.seconds
    parts = _split(address)
    if known_as and parts.netloc and _origin(parts) == _origin(urlsplit(known_as)):
        address = _path(parts)
        parts = _split(address)
    if parts.scheme in CLOUD_SCHEMES:
        response = _open_cloud(label_studio, address, task_id)
    elif parts.scheme == "" and address.startswith("/") and not address.startswith("//"):
        response = _open_own(label_studio, address)
    elif parts.scheme in ("http", "https") and _origin(parts) == _origin(urlsplit(label_studio.url)):
        response = _open_own(label_studio, _path(parts))
    elif parts.scheme in ("http", "https") and _is_listed(parts, limits):
        response = _open_elsewhere(address, limits, public_only=False)
    else:
        raise ImageError(_why_refused(address, parts, label_studio.url))
    is_ours = parts.scheme not in ("http", "https") or _origin(parts) == _origin(urlsplit(label_studio.url))
    response = _follow(label_studio, response, limits, trust_target=is_ours)
    try:
        _check_status(label_studio, response, address, is_cloud=parts.scheme in CLOUD_SCHEMES)
        return _read(response, address, limits, deadline)
    finally:
        response.close()


def _inline(address: str, limits: ImageLimits) -> bytes:
    """The bytes in a `data:` URI (RFC 2397)."""
    head, comma, content = address.partition(",")
    if not comma:
        raise ImageError(f"{_shown(address)} is a data: URI without a comma, so that it holds nothing")
    is_base64 = head.lower().endswith(";base64")
    if len(content) > (4 * limits.max_bytes // 3 + 4 if is_base64 else 3 * limits.max_bytes):
        limit = f"{limits.max_bytes} bytes, the limit (LASAGNA_MAX_IMAGE_BYTES)"
        raise ImageError(f"{_shown(address)} has more than {limit}")
    try:
        data = base64.b64decode(unquote(content), validate=True) if is_base64 else unquote_to_bytes(content)
    except ValueError as error:
        raise ImageError(f"{_shown(address)} is a damaged data: URI ({error}); import the image again") from error
    if not data:
        raise ImageError(f"{_shown(address)} is empty (0 bytes)")
    return data


def _why_refused(address: str, parts: SplitResult, own: str) -> str:
    """Why an address is not fetched, with the fix that fits."""
    from_where = f"images come from the project's own Label Studio ({own}), its storages, or hosts listed in "
    from_where += "LASAGNA_IMAGE_HOSTS"
    if address.lstrip().startswith("<"):
        fix = "the field holds HTML; import the address alone"
    elif parts.scheme in ("http", "https"):
        fix = "import the file into Label Studio or list its host"
    elif parts.scheme == "file" or len(parts.scheme) == 1 or "\\" in address:
        fix = (
            "it is a path on somebody's machine, which the editor cannot show either; import the file into Label "
            "Studio, or serve its folder as a Local files storage (/data/local-files/?d=...)"
        )
    elif parts.scheme == "":
        fix = "an address on Label Studio begins with a slash; the editor does not find it so either"
    else:
        fix = f"{parts.scheme}: is no storage of Label Studio; import the file"
    return f"{_shown(address)} is not fetched: {from_where}; {fix}"


def _open_own(label_studio: LabelStudio, path: str) -> requests.Response:
    prefix = urlsplit(label_studio.url).path
    if prefix and path.startswith(prefix + "/"):
        path = path[len(prefix) :]
    if _climbs(path.split("?")[0]) or not _FILE_PATHS.match(path):
        raise ImageError(
            f"{_shown(path)} is not fetched: on Label Studio itself only files are (/data/upload/..., "
            "/data/local-files/?d=..., /storage-data/..., /tasks/ID/resolve/...)"
        )
    return label_studio.get_stream(path)


def _climbs(path: str) -> bool:
    """Whether a path goes up a folder, also in disguise: "%2e%2e" is ".." to requests, which then resolves it, and
    "%252e" or a backslash may be one to a proxy on the way."""
    while (plain := unquote(path)) != path:
        path = plain
    return ".." in re.split(r"[/\\]", path)


def _open_cloud(label_studio: LabelStudio, address: str, task_id: int | None) -> requests.Response:
    if task_id is None:
        raise ImageError(f"{_shown(address)} is in cloud storage, which needs the task's id, and the task has none")
    encoded = base64.urlsafe_b64encode(address.encode()).decode()
    return label_studio.get_stream(f"/tasks/{task_id}/resolve/", {"fileuri": encoded})


def _open_elsewhere(address: str, limits: ImageLimits, public_only: bool) -> requests.Response:
    session = requests.Session()
    session.auth = lambda request: request  # adds nothing: else requests would add what ~/.netrc has for that host
    if public_only:
        for scheme in ("http://", "https://"):
            session.mount(scheme, CheckedAdapter(lambda found: is_public(found), _refused_redirect))
    try:
        return session.get(address, timeout=min(limits.seconds, 10.0), stream=True, allow_redirects=False)
    except requests.RequestException as error:
        raise LabelStudioError(f"{_shown(address)} cannot be reached: {type(error).__name__}") from error


def _follow(
    label_studio: LabelStudio, response: requests.Response, limits: ImageLimits, trust_target: bool
) -> requests.Response:
    """Follows redirects: on Label Studio itself with the token; without it to listed hosts and, where the redirect is
    Label Studio's (`trust_target`: a presigned address), to public ones; nowhere else."""
    for _ in range(_MAX_REDIRECTS):
        if response.status_code not in (301, 302, 303, 307, 308):
            return response
        response.close()
        target = urljoin(response.url or "", response.headers.get("Location", ""))
        parts = _split(target)
        if _origin(parts) == _origin(urlsplit(label_studio.url)):
            response = _open_own(label_studio, _path(parts))
        elif parts.scheme in ("http", "https") and _is_listed(parts, limits):
            response = _open_elsewhere(target, limits, public_only=False)
        elif parts.scheme in ("http", "https") and trust_target:
            response = _open_elsewhere(target, limits, public_only=True)
        else:
            raise _refused_redirect(parts.scheme, parts.hostname)
    response.close()
    raise ImageError(f"the image is redirected more than {_MAX_REDIRECTS} times")


def _refused_redirect(scheme: str, host: str | None) -> ImageError:
    return ImageError(
        f"the image is redirected to {scheme}://{host}, which is not fetched (another host, or an address in a private "
        "network); list it in LASAGNA_IMAGE_HOSTS if that is your storage"
    )


def _check_status(label_studio: LabelStudio, response: requests.Response, address: str, is_cloud: bool) -> None:
    status = response.status_code
    if status == 200:
        return
    is_own = _origin(urlsplit(response.url or "")) == _origin(urlsplit(label_studio.url))
    if status == 404 and is_cloud and is_own:
        raise ImageError(
            f"Label Studio finds no storage for {_shown(address)}: no storage of the project covers that address; add "
            "one under Settings > Cloud Storage"
        )
    if status in (401, 403) and is_own:
        raise LabelStudioError(
            f"Label Studio at {label_studio.url} does not give {_shown(address)} to the token ({status}); set "
            "LASAGNA_LABEL_STUDIO_URL and LASAGNA_LABEL_STUDIO_TOKEN to an address and a token that belong together",
            status,
        )
    if status == 500 and is_own and _UNKNOWN_UPLOAD in response.raw.read(2000, decode_content=True):
        raise ImageError(f"Label Studio has no uploaded file {_shown(address)}; import the image again")
    if status >= 500 or status == 429:
        raise LabelStudioError(f"{_shown(address)}: the server answered {status}", status)
    raise ImageError(f"{_shown(address)} cannot be fetched: the server answered {status}")


def _read(response: requests.Response, address: str, limits: ImageLimits, deadline: float) -> bytes:
    """Reads the body; `read1` returns what is there, so that a server that drips cannot outlast the deadline."""
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) > limits.max_bytes:
        raise ImageError(
            f"{_shown(address)} has {declared} bytes, the limit is {limits.max_bytes} (LASAGNA_MAX_IMAGE_BYTES)"
        )
    data = bytearray()
    try:
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            data += chunk
            if len(data) > limits.max_bytes:
                raise ImageError(
                    f"{_shown(address)} has more than {limits.max_bytes} bytes, the limit (LASAGNA_MAX_IMAGE_BYTES)"
                )
            if time.monotonic() > deadline:
                raise DoubtfulImageError(
                    f"{_shown(address)} took longer than {limits.seconds:g} s (LASAGNA_IMAGE_TIMEOUT); "
                    f"{len(data)} bytes had come"
                )
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise LabelStudioError(f"{_shown(address)}: the connection broke after {len(data)} bytes") from error
    if not data:  # also what is left of an answer without a length whose server was killed
        raise DoubtfulImageError(f"{_shown(address)} is empty (0 bytes)")
    return bytes(data)


def _split(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        _ = parts.port
        return parts
    except ValueError as error:
        raise ImageError(f"{_shown(address)} is no address: {error}") from error


def _origin(parts: SplitResult) -> tuple[str, str, int | None]:
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), port


def _path(parts: SplitResult) -> str:
    return parts.path + (f"?{parts.query}" if parts.query else "")


def _is_listed(parts: SplitResult, limits: ImageLimits) -> bool:
    """Whether the host is listed: "host:port" exactly, "host" for the scheme's own port."""
    scheme, host, port = _origin(parts)
    if parts.username is not None:
        return False
    default = port == {"http": 80, "https": 443}[scheme]
    return f"{host}:{port}" in limits.hosts or (default and host in limits.hosts)


def _shown(address: str) -> str:
    """An address for a message: without a query's secrets and not endless."""
    text = address.split("?")[0] if "://" in address and "?" in address else address
    return text if len(text) <= 120 else text[:117] + "..."
