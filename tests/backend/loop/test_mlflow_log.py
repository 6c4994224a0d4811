"""Versions in MLflow. What needs the package, which is not among the dependencies, is skipped without it."""

import sys
from pathlib import Path
from typing import Any

import pytest

from backend.loop.mlflow_log import log_version
from backend.registry.registry import Registry, Version


@pytest.fixture
def version(registry: Registry, make: Any, tmp_path: Path) -> Version:
    report = tmp_path / "report.html"
    report.write_text("passed")
    rows = [{"name": "cat, black", "iou": {"champion": 0.1, "candidate": 0.4}}]
    metrics = {"figures": {"miou": {"champion": 0.3, "candidate": 0.5}}, "classes": rows}
    return registry.add(make(2.0), project="12", parent="p", snapshot="s", metrics=metrics, reports=[report])


def test_not_asked_for(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert not log_version(version)


def test_not_installed(version: Version, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert not log_version(version)
    assert "pip install mlflow-skinny" in caplog.text


@pytest.mark.filterwarnings("default")
class TestInstalled:
    @pytest.fixture(autouse=True)
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("mlflow")
        for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())

    def test_one_run(self, version: Version) -> None:
        import mlflow

        assert log_version(version)
        [run] = mlflow.search_runs(experiment_names=["lasagna project 12"], output_format="list")
        assert run.data.metrics == {"miou": 0.5, "iou/cat_ black": 0.4}
        assert run.info.run_name == version.id
        assert run.data.tags["snapshot"] == "s"
        assert [file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)] == ["report.html"]

    def test_a_server_that_is_gone(
        self, version: Version, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert not log_version(version)
        assert f"version {version.id} is not in MLflow" in caplog.text
