"""Fetching images: only from where they may come, and within limits."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from backend.studio.client import LabelStudio, LabelStudioError
from backend.studio.images import DoubtfulImageError, ImageLimits, fetch_image, task_data
from backend.studio.networks import is_public
from lasagna.errors import ImageError
from lasagna.settings import Settings
from tests.backend.backend_helpers import TOKEN, StubLabelStudio, png

LIMITS = ImageLimits(seconds=5.0, max_bytes=1_000_000)


@pytest.fixture
def client(stub: StubLabelStudio) -> LabelStudio:
    return LabelStudio(stub.url, TOKEN, timeout=5.0)


@pytest.fixture
def other() -> Iterator[Any]:
    """Another service on this machine; remembers what it was asked and with which token."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization", "")))
            body = png()
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1:1/secret")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            if self.path != "/drip":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.path == "/drip":
                for _ in range(100):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.1)
            else:
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    server.asked = asked  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()


class TestData:
    @pytest.mark.parametrize("task", [{"data": [1]}, {}, "task", None])
    def test_a_task_without_data_is_said(self, task: Any) -> None:
        with pytest.raises(ImageError, match="has no data"):
            task_data(task)


class TestFetch:
    def test_path(self, stub: StubLabelStudio, client: LabelStudio) -> None:
        stub.images["/data/upload/3/a.png"] = png(1)
        assert fetch_image(client, "/data/upload/3/a.png", 1, LIMITS) == png(1)

    def test_local_files_with_query(self, stub: StubLabelStudio, client: LabelStudio) -> None:
        stub.images["/data/local-files/?d=sub/a.png"] = png(1)
        assert fetch_image(client, "/data/local-files/?d=sub/a.png", 1, LIMITS) == png(1)
        assert fetch_image(client, f"{stub.url}/data/local-files/?d=sub/a.png", 1, LIMITS) == png(1)

    def test_label_studio_under_the_name_it_gives_itself(self, stub: StubLabelStudio, client: LabelStudio) -> None:
        stub.images["/data/local-files/?d=a.png"] = png(1)
        address = "http://label-studio:8080/data/local-files/?d=a.png"
        assert fetch_image(client, address, 1, LIMITS, known_as="http://label-studio:8080") == png(1)
        with pytest.raises(ImageError, match="is not fetched"):
            fetch_image(client, address, 1, LIMITS, known_as="http://label-studio:9999")

    @pytest.mark.parametrize(
        "address",
        [
            "file:///etc/passwd",
            "/etc/passwd",
            "/api/projects/",
            "/data/upload/../../api/projects/",
            "/data/upload/%2e%2e/%2E./api/projects/",
            "/data/upload/%252e%252e/api/projects/",
            "/data/upload/..%2f..%2fapi/projects/",
            "/data/upload/..\\..\\api/projects/",
            "/data/upload/./.%2e/api/projects/",
            "//127.0.0.1:1/data/upload/x.png",
            "http://127.0.0.1:1/data/upload/x.png",
            "http://localhost:6379/",
            "http://169.254.169.254/latest/meta-data/",
            "http://[::1]:80/x.png",
            "https://example.org/x.png",
            "ftp://example.org/x.png",
            "gopher://127.0.0.1:6379/_INFO",
            "http://user:pass@127.0.0.1/x.png",
            "data/upload/3/a.png",
            "x.png",
            "http://[broken",
            "http://host:port/x.png",
        ],
    )
    def test_refuses_in_words_without_asking_anyone(
        self, stub: StubLabelStudio, client: LabelStudio, address: str
    ) -> None:
        with pytest.raises(ImageError, match=r"is not fetched|is no address"):
            fetch_image(client, address, 1, LIMITS)
        assert stub.requests == []

    def test_same_host_on_another_port_is_another_service(self, client: LabelStudio, other: Any) -> None:
        with pytest.raises(ImageError, match="hosts listed in LASAGNA_IMAGE_HOSTS"):
            fetch_image(client, f"http://127.0.0.1:{other.server_port}/data/upload/3/a.png", 1, LIMITS)
        assert other.asked == []

    def test_a_listed_host_is_asked_without_the_token(self, client: LabelStudio, other: Any) -> None:
        limits = ImageLimits(5.0, 1_000_000, frozenset({f"127.0.0.1:{other.server_port}"}))
        assert fetch_image(client, f"http://127.0.0.1:{other.server_port}/a.png", 1, limits) == png()
        assert other.asked == [("/a.png", "")]

    def test_a_listed_host_may_not_redirect_elsewhere(self, client: LabelStudio, other: Any) -> None:
        limits = ImageLimits(5.0, 1_000_000, frozenset({f"127.0.0.1:{other.server_port}"}))
        with pytest.raises(ImageError, match="is redirected to"):
            fetch_image(client, f"http://127.0.0.1:{other.server_port}/away", 1, limits)

    def test_listed_hosts_come_from_the_setting(self) -> None:
        settings = Settings.load(
            {"LASAGNA_IMAGE_HOSTS": " Cdn.example.org, minio:9000 ,", "LASAGNA_IMAGE_TIMEOUT": "3"}
        )
        limits = ImageLimits.from_settings(settings)
        assert limits.hosts == {"cdn.example.org", "minio:9000"}
        assert limits.seconds == 3

    def test_missing_file(self, client: LabelStudio) -> None:
        with pytest.raises(ImageError, match="answered 404"):
            fetch_image(client, "/data/upload/3/none.png", 1, LIMITS)

    def test_wrong_token(self, stub: StubLabelStudio) -> None:
        stub.images["/data/upload/3/a.png"] = png()
        with pytest.raises(LabelStudioError, match="LASAGNA_LABEL_STUDIO_TOKEN") as caught:
            fetch_image(LabelStudio(stub.url, "wrong"), "/data/upload/3/a.png", 1, LIMITS)
        assert not caught.value.is_temporary

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_server_in_trouble_is_tried_again(self, stub: StubLabelStudio, client: LabelStudio, status: int) -> None:
        stub.status["/data"] = status
        with pytest.raises(LabelStudioError) as caught:
            fetch_image(client, "/data/upload/3/a.png", 1, LIMITS)
        assert caught.value.is_temporary

    def test_label_studio_gone(self, stub: StubLabelStudio, client: LabelStudio) -> None:
        stub.stop()
        with pytest.raises(LabelStudioError, match="connection refused") as caught:
            fetch_image(client, "/data/upload/3/a.png", 1, LIMITS)
        assert caught.value.is_temporary


def names(monkeypatch: pytest.MonkeyPatch, meaning: dict[str, list[list[str]]]) -> list[str]:
    """Lets names mean addresses, others at each lookup (the last for ever after); the names that were looked up."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host not in meaning:
            return real(host, port, *args, **options)
        found = meaning[host][min(asked.count(host), len(meaning[host]) - 1)]
        asked.append(host)
        return [entry for address in found for entry in real(address, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize(
    ("address", "is_public_one"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("::ffff:8.8.8.8", True),
        ("10.1.2.3", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.0.0.8", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:a00:1::", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::a00:1", False),
        ("::127.0.0.1", False),
        ("2001:0:4136:e378:8000:63bf:f5ff:fffe", False),
        ("192.88.99.1", False),
        ("5f00::1", False),
        ("3fff::1", False),
        ("::ffff:0:7f00:1", False),
        ("::ffff:0:808:808", True),
    ],
)
def test_public_addresses(address: str, is_public_one: bool) -> None:
    assert is_public(address) == is_public_one


class TestCloud:
    RESOLVE = "/tasks/7/resolve/?fileuri=czM6Ly9idWNrZXQvYS5wbmc%3D"

    def test_passed_on_by_label_studio(self, stub: StubLabelStudio, client: LabelStudio) -> None:
        stub.images[self.RESOLVE] = png(2)
        assert fetch_image(client, "s3://bucket/a.png", 7, LIMITS) == png(2)

    def test_presigned_address_of_a_listed_storage(
        self, stub: StubLabelStudio, client: LabelStudio, other: Any
    ) -> None:
        stub.redirects[self.RESOLVE] = f"http://127.0.0.1:{other.server_port}/a.png?signature=1"
        limits = ImageLimits(5.0, 1_000_000, frozenset({f"127.0.0.1:{other.server_port}"}))
        assert fetch_image(client, "s3://bucket/a.png", 7, limits) == png()
        assert other.asked == [("/a.png?signature=1", "")]

    def test_presigned_address_on_this_machine_is_refused(
        self, stub: StubLabelStudio, client: LabelStudio, other: Any
    ) -> None:
        stub.redirects[self.RESOLVE] = f"http://127.0.0.1:{other.server_port}/a.png"
        with pytest.raises(ImageError, match="list it in LASAGNA_IMAGE_HOSTS"):
            fetch_image(client, "s3://bucket/a.png", 7, LIMITS)
        assert other.asked == []

    @pytest.mark.parametrize(
        "answers",
        [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"]],
        ids=["a private address", "one private among public ones", "a wrapped one"],
    )
    def test_a_name_that_means_this_machine_is_refused(
        self,
        stub: StubLabelStudio,
        client: LabelStudio,
        other: Any,
        monkeypatch: pytest.MonkeyPatch,
        answers: list[str],
    ) -> None:
        names(monkeypatch, {"storage.example.org": [answers]})
        stub.redirects[self.RESOLVE] = f"http://storage.example.org:{other.server_port}/a.png"
        with pytest.raises(ImageError, match=r"redirected to http://storage\.example\.org, which is not fetched"):
            fetch_image(client, "s3://bucket/a.png", 7, LIMITS)
        assert other.asked == []

    def test_a_public_address_is_looked_up_once_and_asked_without_the_token(
        self, stub: StubLabelStudio, client: LabelStudio, other: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lookups = names(monkeypatch, {"storage.example.org": [["127.0.0.1"]]})
        monkeypatch.setattr("backend.studio.images.is_public", lambda address: address == "127.0.0.1")
        stub.redirects[self.RESOLVE] = f"http://storage.example.org:{other.server_port}/a.png"
        assert fetch_image(client, "s3://bucket/a.png", 7, LIMITS) == png()
        assert other.asked == [("/a.png", "")]
        assert lookups == ["storage.example.org"]

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_name_that_changes_its_meaning_gains_nothing(
        self, stub: StubLabelStudio, client: LabelStudio, other: Any, monkeypatch: pytest.MonkeyPatch, scheme: str
    ) -> None:
        lookups = names(monkeypatch, {"rebind.example.org": [["192.31.196.1"], ["127.0.0.1"]]})
        stub.redirects[self.RESOLVE] = f"{scheme}://rebind.example.org:{other.server_port}/a.png"
        with pytest.raises(LabelStudioError, match="cannot be reached"):  # nobody is at the public address
            fetch_image(client, "s3://bucket/a.png", 7, ImageLimits(0.3, 1_000_000))
        assert other.asked == []
        assert lookups == ["rebind.example.org"]

    @pytest.mark.parametrize("address", ["s3://bucket/a.png", "gs://bucket/a.png", "azure-blob://container/a.png"])
    def test_without_storage(self, client: LabelStudio, address: str) -> None:
        with pytest.raises(ImageError, match="no storage of the project covers that address"):
            fetch_image(client, address, 7, LIMITS)

    def test_without_task_id(self, client: LabelStudio) -> None:
        with pytest.raises(ImageError, match="needs the task's id"):
            fetch_image(client, "s3://bucket/a.png", None, LIMITS)


class TestLimits:
    def test_nothing_came(self, stub: StubLabelStudio, client: LabelStudio) -> None:
        stub.images["/data/upload/3/a.png"] = b""
        with pytest.raises(DoubtfulImageError, match=r"a\.png is empty"):
            fetch_image(client, "/data/upload/3/a.png", 1, LIMITS)

    def test_declared_size(self, stub: StubLabelStudio, client: LabelStudio) -> None:
        stub.images["/data/upload/3/a.png"] = b"x" * 2000
        with pytest.raises(ImageError, match="has 2000 bytes, the limit is 1000"):
            fetch_image(client, "/data/upload/3/a.png", 1, ImageLimits(5.0, 1000))

    @pytest.mark.slow
    def test_undeclared_size_and_time(self, client: LabelStudio, other: Any) -> None:
        host = f"127.0.0.1:{other.server_port}"
        with pytest.raises(ImageError, match="more than 5 bytes"):
            fetch_image(client, f"http://{host}/drip", 1, ImageLimits(5.0, 5, frozenset({host})))
        started = time.monotonic()
        with pytest.raises(DoubtfulImageError, match=r"took longer than 0\.5 s"):
            fetch_image(client, f"http://{host}/drip", 1, ImageLimits(0.5, 1000, frozenset({host})))
        assert time.monotonic() - started < 2
