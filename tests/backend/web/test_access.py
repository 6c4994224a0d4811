"""Who is let in, and where the process may listen."""

import pytest
from click.testing import CliRunner

from backend.app import create_app
from backend.commands.serve import serve, worker
from backend.web.access import check_exposure
from lasagna.errors import ConfigError
from lasagna.settings import Settings

SECRETS = {
    "LASAGNA_BASIC_AUTH": "label:pass-word-1",
    "LASAGNA_WEBHOOK_SECRET": "hook-secret-2",
    "LASAGNA_LABEL_STUDIO_TOKEN": "token-3-with-more",
    "LASAGNA_REDIS_URL": "redis://user:redis-pass-4@127.0.0.1:1/0",
    "LASAGNA_LABEL_STUDIO_URL": "http://ann:url-pass-5@127.0.0.1:1",
}
WORDS = ("pass-word-1", "hook-secret-2", "token-3-with-more", "redis-pass-4", "url-pass-5")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "192.168.1.2", "203.0.113.5", "gpu.example.org", ""])
class TestExposure:
    def test_is_refused_without_a_password(self, host: str) -> None:
        with pytest.raises(ConfigError, match="LASAGNA_BASIC_AUTH=USER:PASSWORD"):
            check_exposure(Settings.load({}, host=host))

    @pytest.mark.parametrize("given", [{"LASAGNA_BASIC_AUTH": "a:b"}, {"LASAGNA_WITHOUT_PASSWORD": "yes"}], ids=str)
    def test_is_allowed_with_one_or_where_it_is_said(self, host: str, given: dict[str, str]) -> None:
        check_exposure(Settings.load(given, host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_password(host: str) -> None:
    check_exposure(Settings.load({}, host=host))


def test_serve_does_not_start_where_it_is_exposed() -> None:
    result = CliRunner().invoke(serve, ["--host", "0.0.0.0", "--redis-url", "redis://127.0.0.1:1/0"], env={})
    assert isinstance(result.exception, ConfigError)
    assert "can be reached from other machines" in str(result.exception)


@pytest.mark.parametrize("command", [serve, worker])
def test_print_config_shows_no_secret(command: object) -> None:
    result = CliRunner().invoke(command, ["--print-config"], env=SECRETS)  # type: ignore[arg-type]
    assert result.exit_code == 0
    assert "LASAGNA_BASIC_AUTH" in result.output
    assert "redis://***@127.0.0.1:1/0" in result.output
    assert [word for word in WORDS if word in result.output] == []


@pytest.mark.parametrize(
    ("host", "given", "code"),
    [
        ("127.0.0.1:9090", {}, 200),
        ("127.7.0.1", {}, 200),
        ("localhost:9090", {}, 200),
        ("[::1]:9090", {}, 200),
        ("2130706433:9090", {}, 200),
        ("134744072:9090", {}, 403),
        ("evil.example", {}, 403),
        ("evil.example:9090", {}, 403),
        ("127.0.0.1.evil.example", {}, 403),
        ("localhost.evil.example", {}, 403),
        ("[::1", {}, 403),
        ("lasagna.lan", {"LASAGNA_ALLOWED_HOSTS": "other, lasagna.lan"}, 200),
        ("lasagna.lan:80", {"LASAGNA_ALLOWED_HOSTS": "lasagna.lan:90"}, 403),
        ("evil.example", {"LASAGNA_WITHOUT_PASSWORD": "yes"}, 200),
    ],
)
def test_without_a_password_a_foreign_name_is_refused(
    redis_url: str, host: str, given: dict[str, str], code: int
) -> None:
    """A page whose name is made to mean 127.0.0.1 sends an Origin that equals its Host (DNS rebinding)."""
    client = create_app(Settings.load({"LASAGNA_REDIS_URL": redis_url, **given})).test_client()
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert client.get("/metrics", headers=headers).status_code == code
    assert client.get("/health", headers=headers).status_code == code
