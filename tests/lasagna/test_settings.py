"""Settings are typed and bounded: whatever cannot work is refused at start, by its name, with what is allowed."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lasagna.commands.cli import main
from lasagna.errors import ConfigError
from lasagna.settings import Settings, allowed, is_secret, variable

NAN_AND_INFINITE = ["nan", "inf", "-inf", "1e999"]
BAD: dict[str, list[str]] = {
    "model": ["nano\r", "na\tno"],
    "device": ["gpu", "cuda:", "cuda:a", "cpu\n", "cuda:0,1"],
    "dtype": ["fp16", "float64", "AUTO"],
    "quantise": ["int2", "yes", "4"],
    "encoder": ["onnx", "OpenVINO", "1"],
    "redis_url": ["localhost:6379", "http://localhost", "redis://", "redis:// ", "redis://a\r"],
    "state_dir": ["/data\r"],
    "cache": ["/data\x00"],
    "data": ["/data\r"],
    "registry": ["/data\n"],
    "loaded_versions": ["0", "-1", "1.5", "many"],
    "label_studio_url": ["label.example.org", "ftp://label", "https://", "http:///a", "http://a b"],
    "label_studio_token": ["token\r"],
    "host": ["0.0.0.0\r"],
    "port": ["-5", "0", "65536", "9090.5", "http"],
    "basic_auth": ["ann", ":secret", "ann:", "ann:secret\r"],
    "webhook_secret": ["word\x7f"],
    "without_password": ["perhaps", "2"],
    "max_request_bytes": ["0", "-1", "1 MB"],
    "max_request_tasks": ["0", "-1", "1e3"],
    "max_labels": ["0", "-2"],
    "batch_size": ["0", "-4", "4.5", "four"],
    "min_area": ["-1", "1.5"],
    "min_width": ["-0.5", "wide", *NAN_AND_INFINITE],
    "duplicate_iou": ["-0.1", "1.1", "80%", *NAN_AND_INFINITE],
    "max_regions": ["-1", "ten"],
    "max_region_bytes": ["-1", "300k"],
    "guess_unknown": ["perhaps", "2"],
    "predict_deadline": ["-1", "45s", *NAN_AND_INFINITE],
    "image_timeout": ["0", "-1", *NAN_AND_INFINITE],
    "max_image_bytes": ["0", "-1", "64M"],
    "max_image_pixels": ["0", "-1"],
    "max_image_memory": ["0", "-1"],
    "image_hosts": ["http://a.example.org", "a b", ",a", "a/b"],
    "allowed_hosts": ["http://a.example.org", "a b", "a/b"],
    "delivery_timeout": ["-1", *NAN_AND_INFINITE],
    "train_when": ["every 0", "every", "every -1", "cron", "cron 0 3 * *", "cron 0 3 * * * *", "daily", "often"],
    "instant": ["perhaps", "2"],
    "train_recipe": ["mine.yaml\r"],
    "train_changes": ["optimiser.steps", "=3", "a = 3", "optimiser.steps=3 fast"],
    "train_gpu_share": ["0", "1.1", "-0.5", *NAN_AND_INFINITE],
    "replay_data": ["/data\r"],
    "log_level": ["LOUD", "10", "WARN"],
    "log_format": ["xml", "JSON"],
}


def test_each_setting_has_a_bad_value() -> None:
    assert list(BAD) == list(Settings.model_fields)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_value_that_cannot_work_is_refused_in_words(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings.load({variable(name): text})
    field = Settings.model_fields[name]
    found = "***" if is_secret(field) else repr(text)
    assert str(refused.value) == f"{variable(name)}={found} cannot be used: give {allowed(field)} ({field.description})"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("device", "cuda:1", "cuda:1"),
        ("redis_url", "rediss://:word@host:6380/0", "rediss://:word@host:6380/0"),
        ("redis_url", "unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("label_studio_url", "https://ann:word@label.example.org/path", "https://ann:word@label.example.org/path"),
        ("port", "65535", 65535),
        ("basic_auth", "label:st:udio", "label:st:udio"),
        ("without_password", "yes", True),
        ("without_password", "0", False),
        ("min_width", "0", 0.0),
        ("duplicate_iou", "1", 1.0),
        ("predict_deadline", "0", 0.0),
        ("image_hosts", "a.example.org, b:8080,", "a.example.org, b:8080,"),
        ("train_when", "cron 0 3 * * *", "cron 0 3 * * *"),
        ("train_when", "By hand", "By hand"),
        ("train_changes", "optimiser.steps=50  losses.text=2", "optimiser.steps=50  losses.text=2"),
        ("log_level", "debug", "DEBUG"),
    ],
)
def test_a_value_that_works(name: str, text: str, value: object) -> None:
    settings = Settings.load({variable(name): text})
    assert getattr(settings, name) == value
    assert settings.origins[name] == variable(name)


def test_an_empty_variable_counts_as_none() -> None:
    settings = Settings.load({variable(name): "" for name in Settings.model_fields})
    assert settings == Settings.load({})
    assert set(settings.origins.values()) == {"default"}


def test_the_command_line_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASAGNA_PORT", "81")
    monkeypatch.setenv("LASAGNA_HOST", "10.0.0.1")
    settings = Settings.load(port=82, batch_size=None)
    assert (settings.port, settings.host, settings.batch_size) == (82, "10.0.0.1", 4)
    assert [settings.origins[name] for name in ("port", "host", "batch_size")] == [
        "command line",
        "LASAGNA_HOST",
        "default",
    ]
    with pytest.raises(
        ConfigError, match=r"^port \(command line\)=-5 cannot be used: give a whole number from 1 to 65535"
    ):
        Settings.load(port=-5)
    with pytest.raises(TypeError, match="prot"):
        Settings.load(prot=82)


def test_all_faults_are_said_at_once_and_no_secret() -> None:
    with pytest.raises(ConfigError) as refused:
        Settings.load(
            {"LASAGNA_PORT": "x", "LASAGNA_REDIS_URL": "redis:word@host", "LASAGNA_BASIC_AUTH": "word"}, batch_size=0
        )
    lines = str(refused.value).splitlines()
    assert [line.partition("=")[0] for line in lines] == [
        "LASAGNA_REDIS_URL",
        "LASAGNA_PORT",
        "LASAGNA_BASIC_AUTH",
        "batch_size (command line)",
    ]
    assert "word" not in str(refused.value).replace("PASSWORD", "").replace("password", "")


def test_replaced_values_are_checked_too() -> None:
    settings = Settings.load({"LASAGNA_PORT": "81"})
    other = settings.replaced(host="::1")
    assert (other.host, other.port, other.origins) == ("::1", 81, settings.origins)
    with pytest.raises(ConfigError, match=r"^LASAGNA_PORT=0 cannot be used"):
        settings.replaced(port=0)


def test_settings_reach_another_process() -> None:
    settings = Settings.load({"LASAGNA_PORT": "81"}, host="::1")
    copy = pickle.loads(pickle.dumps(settings))
    assert (copy, copy.describe()) == (settings, settings.describe())


def test_what_is_printed_at_start_says_where_each_value_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASAGNA_BASIC_AUTH", "ann:secret")
    monkeypatch.setenv("LASAGNA_REDIS_URL", "redis://:word@host:1")
    result = CliRunner().invoke(main, ["serve", "--port", "81", "--print-config"])
    rows = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert list(rows) == list(Settings.model_fields)
    assert rows["port"].split() == ["81", "command", "line"]
    assert rows["basic_auth"].split() == ["***", "LASAGNA_BASIC_AUTH"]
    assert rows["redis_url"].split() == ["'redis://***@host:1'", "LASAGNA_REDIS_URL"]
    assert rows["host"].split() == ["'127.0.0.1'", "default"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_process_does_not_start_with_a_bad_setting(command: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "lasagna", command],
        env={"PATH": "/usr/bin:/bin", "LASAGNA_BATCH_SIZE": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 2
    assert (
        ended.stderr
        == "error: LASAGNA_BATCH_SIZE='0' cannot be used: give a whole number, 1 or more (images per model "
        "batch; on a CPU they are answered side by side)\n"
    )


def test_a_value_can_be_in_a_file(tmp_path: Path) -> None:
    """As the secrets of Compose and Kubernetes are; a variable goes before a file."""
    secret = tmp_path / "token"
    secret.write_text("0123abc\n")
    settings = Settings.load({"LASAGNA_LABEL_STUDIO_TOKEN_FILE": str(secret)})
    assert settings.label_studio_token == "0123abc"
    assert settings.origins["label_studio_token"] == "LASAGNA_LABEL_STUDIO_TOKEN_FILE"
    assert "0123abc" not in settings.describe()
    both = {"LASAGNA_LABEL_STUDIO_TOKEN_FILE": str(secret), "LASAGNA_LABEL_STUDIO_TOKEN": "mine"}
    assert Settings.load(both).origins["label_studio_token"] == "LASAGNA_LABEL_STUDIO_TOKEN"
    assert Settings.load(both).label_studio_token == "mine"


def test_an_empty_file_counts_as_none(tmp_path: Path) -> None:
    secret = tmp_path / "port"
    secret.write_bytes(b"\r\n")
    assert Settings.load({"LASAGNA_PORT_FILE": str(secret)}).origins["port"] == "default"
    secret.write_bytes(b"8080\r\n")
    assert Settings.load({"LASAGNA_PORT_FILE": str(secret)}).port == 8080


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"two\nlines", b"1" * 70_000])
def test_a_file_that_holds_no_value_is_refused(tmp_path: Path, content: bytes | None) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
    with pytest.raises(ConfigError, match="LASAGNA_WEBHOOK_SECRET") as refused:
        Settings.load({"LASAGNA_WEBHOOK_SECRET_FILE": str(secret)})
    assert "two" not in str(refused.value)
