"""The client of Label Studio: tokens of every kind, and errors in words."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

import pytest

from backend.studio.address import normalise_url
from backend.studio.client import LabelStudio, LabelStudioError, token_kind
from backend.studio.project_id import project_uid
from lasagna.errors import ConfigError
from tests.backend.backend_helpers import TOKEN, StubLabelStudio, make_jwt


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        (TOKEN, "legacy"),
        (make_jwt("refresh", time.time() + 1e6), "personal"),
        (make_jwt("access", time.time() + 300), "access"),
        ("a.b.c", "legacy"),
        ("", "legacy"),
    ],
)
def test_kind_of_token(token: str, kind: str) -> None:
    assert token_kind(token) == kind


class TestTokens:
    def test_legacy(self, stub: StubLabelStudio) -> None:
        assert LabelStudio(stub.url, TOKEN).check() == "legacy token of ann@example.org"

    def test_personal_is_exchanged_once(self, stub: StubLabelStudio) -> None:
        stub.refresh_token = make_jwt("refresh", time.time() + 1e6)
        client = LabelStudio(stub.url, stub.refresh_token)
        assert client.check() == "personal access token of ann@example.org"
        client.check()
        assert stub.exchanges == 1
        assert stub.requests[-1][2].startswith("Bearer ")

    def test_personal_is_exchanged_again_when_the_access_token_is_no_longer_taken(self, stub: StubLabelStudio) -> None:
        stub.refresh_token = make_jwt("refresh", time.time() + 1e6)
        client = LabelStudio(stub.url, stub.refresh_token)
        client.check()
        stub.tokens = set()
        client.check()
        assert stub.exchanges == 2

    @pytest.mark.parametrize(
        ("token", "words"),
        [
            ("wrong", "does not accept the legacy token"),
            (make_jwt("refresh", time.time() + 1e6), "does not accept the personal access token"),
            (make_jwt("access", time.time() - 1), "does not accept the access token"),
            ("", "there is no token"),
        ],
    )
    def test_wrong_token(self, stub: StubLabelStudio, token: str, words: str) -> None:
        with pytest.raises(LabelStudioError, match=words) as caught:
            LabelStudio(stub.url, token).check()
        assert "LASAGNA_LABEL_STUDIO_TOKEN" in str(caught.value)
        assert not caught.value.is_temporary

    def test_the_token_is_not_in_messages(self, stub: StubLabelStudio) -> None:
        with pytest.raises(LabelStudioError) as caught:
            LabelStudio(stub.url, "secret-token").check()
        assert "secret-token" not in str(caught.value)


class TestErrors:
    def test_nobody_there(self, stub: StubLabelStudio) -> None:
        stub.stop()
        with pytest.raises(LabelStudioError, match="cannot be reached: connection refused") as caught:
            LabelStudio(stub.url, TOKEN).check()
        assert caught.value.is_temporary

    def test_too_slow(self, stub: StubLabelStudio) -> None:
        stub.delay["/api"] = 1.0
        with pytest.raises(LabelStudioError, match="no answer within the time limit") as caught:
            LabelStudio(stub.url, TOKEN, timeout=0.2).check()
        assert caught.value.is_temporary

    def test_not_label_studio(self, stub: StubLabelStudio) -> None:
        stub.images["/api/current-user/whoami"] = b"<html>hello</html>"
        with pytest.raises(LabelStudioError, match="is that the address of Label Studio"):
            LabelStudio(stub.url, TOKEN).check()

    def test_unknown_project(self, stub: StubLabelStudio) -> None:
        with pytest.raises(LabelStudioError, match="answered 404"):
            LabelStudio(stub.url, TOKEN).project(99)

    @pytest.mark.parametrize(
        "url",
        [
            *("", "label.example.org", "ftp://x", "http://", "http://x:port", "http://x/?q=1"),
            *("http://127.0.0.1:1/latest/meta-data/secret#", "http://127.0.0.1:1/secret?", "http://x/a/../b"),
            *(
                "http://x/%2e%2e/b",
                "http://user:w@rd@x",
                "http://x#@y",
                "http://x/a\\b",
                "http://x//y",
                "http://x;y",
                "http://-x",
            ),
        ],
    )
    def test_bad_address(self, url: str) -> None:
        with pytest.raises(ConfigError, match="address of Label Studio") as caught:
            LabelStudio(url, TOKEN)
        assert "w@rd" not in str(caught.value)

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (404, b"the secret of an inner server"),
            (500, b'{"secret": "of an inner server"}'),
            (200, b"the secret of an inner server"),
            (200, b'["the secret of an inner server"]'),
            (404, b"[" * 100_000),
        ],
    )
    def test_what_a_stranger_answers_is_not_repeated(self, status: int, body: bytes) -> None:
        class Stranger(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status, "a secret phrase")
                self.end_headers()
                self.wfile.write(body)

        server = HTTPServer(("127.0.0.1", 0), Stranger)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(LabelStudioError) as caught:
            LabelStudio(f"http://127.0.0.1:{server.server_port}", TOKEN).project(3)
        thread.join()
        server.server_close()
        assert "secret" not in str(caught.value)
        assert "[[[" not in str(caught.value)

    @pytest.mark.parametrize("host", ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]"])
    def test_where_clouds_keep_secrets_nobody_is_asked(self, host: str) -> None:
        with pytest.raises(LabelStudioError, match="a cloud tells a machine its secrets"):
            LabelStudio(f"http://{host}", TOKEN).project(3)

    def test_address_without_trailing_slash(self) -> None:
        assert normalise_url(" https://label.example.org/studio/ ") == "https://label.example.org/studio"


def test_tasks_come_page_by_page(stub: StubLabelStudio) -> None:
    stub.add_tasks(5)
    client = LabelStudio(stub.url, TOKEN)
    client.create_prediction(2, {"model_version": "tiny-1", "score": 0.1, "result": []})
    tasks = list(client.tasks(3, page_size=2))
    assert [task.id for task in tasks] == [1, 2, 3, 4, 5]
    assert [sorted(task.model_versions) for task in tasks[:3]] == [[], ["tiny-1"], []]
    assert sum("/api/tasks/" in path for _, path, _ in stub.requests) == 3


def test_predictions_are_made_listed_and_removed(stub: StubLabelStudio) -> None:
    client = LabelStudio(stub.url, TOKEN)
    number = client.create_prediction(2, {"model_version": "tiny-1", "score": 0.1, "result": []})
    assert [p["id"] for p in client.predictions(2)] == [number]
    client.delete_prediction(number)
    client.delete_prediction(number)
    assert client.predictions(2) == []


def test_project_is_named_as_label_studio_does() -> None:
    assert project_uid({"id": 4, "created_at": "2026-11-23T01:35:20.422601Z"}) == "4.1795397720"


def test_another_server_at_the_address_is_named() -> None:
    """Any web server may stand there: one that answers lists where Label Studio answers objects."""

    class Lists(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"[1, 2]"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Lists)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        client = LabelStudio(f"http://127.0.0.1:{server.server_port}", TOKEN)
        for ask in (
            lambda: list(client.tasks(3)),
            lambda: client.annotated(3),
            lambda: client.project(3),
            client.check,
        ):
            with pytest.raises(LabelStudioError, match="is that the address of Label Studio") as raised:
                ask()
            assert not raised.value.is_temporary
    finally:
        server.shutdown()
        server.server_close()
