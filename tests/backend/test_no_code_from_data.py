"""Nothing that comes as data is run as code: jobs in Redis, checkpoints, and the calls that would allow it anywhere."""

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from backend.queue import jobs
from backend.queue.store import Store
from backend.worker.rq_worker import LasagnaWorker
from lasagna import Lasagna
from lasagna.checkpoint.convert.source import open_weights
from lasagna.errors import CheckpointError

ROOT = Path(__file__).resolve().parent.parent.parent


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


class Jobs:
    """Remembers what it was asked to predict."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def predict(self, keys: list[str], job: str) -> dict[str, int]:
        self.asked.append(keys)
        return {}


@pytest.fixture
def runtime() -> Iterator[Jobs]:
    found = Jobs()
    jobs.install(found)  # type: ignore[arg-type]
    yield found
    jobs.install(None)


def put(store: Store, data: bytes, **fields: str) -> str:
    """A job as somebody with access to Redis would write it."""
    job_id = uuid4().hex
    known = {"data": data, "origin": "predict", "status": "queued", "created_at": "2026-01-01T00:00:00.000000Z"}
    store.redis.hset(f"rq:job:{job_id}", mapping={**known, **fields})
    store.redis.rpush("rq:queue:predict", job_id)
    return job_id


def call(name: str, *args: Any, instance: Any = None) -> bytes:
    return json.dumps([name, instance, list(args), {}]).encode()


class TestJobs:
    @pytest.mark.parametrize(
        ("make", "fields"),
        [
            (lambda mark: pickle.dumps(("backend.queue.jobs.predict_batch", Payload(mark), ([],), {})), {}),
            (lambda mark: pickle.dumps(Payload(mark)), {}),
            (lambda mark: call("os.mknod", str(mark)), {}),
            (lambda mark: call("subprocess.run", ["touch", str(mark)]), {}),
            (lambda mark: call("backend.queue.jobs.Path.touch", str(mark)), {}),
            (lambda mark: call("format", instance=str(mark)), {}),
            (lambda mark: b"no json", {}),
            (lambda mark: b'["backend.queue.jobs.predict_batch"]', {}),
        ],
        ids=["pickle", "whole pickle", "function", "command", "attribute", "method", "damaged", "cut short"],
    )
    def test_that_are_none_of_ours_fail_and_the_worker_goes_on(
        self, store: Store, runtime: Jobs, tmp_path: Path, make: Any, fields: dict[str, str]
    ) -> None:
        mark = tmp_path / "ran"
        bad = put(store, make(mark), **fields)
        put(store, call("backend.queue.jobs.predict_batch", ["key"]))
        LasagnaWorker(store.redis, store, batch_size=4).work(burst=True, logging_level="CRITICAL")
        assert not mark.exists()
        assert runtime.asked == [["key"]]
        [job] = jobs.find_jobs(store.redis, [bad])
        assert job is None or job.get_status() == "failed"

    @pytest.mark.parametrize("field", ["success_callback_name", "failure_callback_name", "stopped_callback_name"])
    @pytest.mark.parametrize(
        "name", ["backend.queue.jobs.predict_batch", "backend.queue.jobs.nothing"], ids=["works", "fails"]
    )
    def test_callbacks_by_name_are_not_called(
        self, store: Store, runtime: Jobs, monkeypatch: pytest.MonkeyPatch, field: str, name: str
    ) -> None:
        called: list[Any] = []
        monkeypatch.setattr(jobs, "evil", lambda *given: called.append(given), raising=False)
        put(store, call(name, ["key"]), **{field: "backend.queue.jobs.evil"})
        LasagnaWorker(store.redis, store, batch_size=4).work(burst=True, logging_level="CRITICAL")
        assert called == []

    def test_addresses_in_a_job_are_not_asked(self, store: Store, runtime: Jobs) -> None:
        hook = {"url": "http://127.0.0.1:1/", "job_status": "finished"}
        job_id = put(store, call("backend.queue.jobs.predict_batch", ["key"]), webhooks=json.dumps([hook]))
        [job] = jobs.find_jobs(store.redis, [job_id])
        assert job is not None
        assert job.webhooks == []


class TestCheckpoints:
    def test_a_pickle_among_the_weights(self, tmp_path: Path) -> None:
        mark = tmp_path / "ran"
        path = tmp_path / "pytorch_model.bin"
        torch.save({"weight": Payload(mark)}, path)
        with pytest.raises(CheckpointError, match="which could run code, and is not read"):
            open_weights(path)
        assert not mark.exists()
        torch.load(path, weights_only=False)  # and it would have
        assert mark.exists()

    def test_a_pickle_beside_or_in_place_of_the_weights(self, tmp_path: Path, checkpoint: Path) -> None:
        mark, folder = tmp_path / "ran", tmp_path / "model"
        Lasagna.from_pretrained(checkpoint).save_pretrained(folder)
        torch.save({"weight": Payload(mark)}, folder / "pytorch_model.bin")
        Lasagna.from_pretrained(folder)  # takes no notice of it
        (folder / "pytorch_model.bin").replace(folder / "model.safetensors")
        with pytest.raises(CheckpointError):
            Lasagna.from_pretrained(folder)
        assert not mark.exists()


# What runs code that it is given, by the name of the call.
FORBIDDEN = {
    "eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load",
    "dill.loads", "joblib.load", "marshal.loads", "shelve.open", "yaml.unsafe_load", "yaml.full_load",
}  # fmt: skip


def _risks(path: Path) -> list[str]:
    """Calls in a file that could run code from data, as "line: call"."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        bad = (
            name in FORBIDDEN
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name.endswith(".load") and given.get("allow_pickle", "False") != "False")
            or given.get("trust_remote_code", "False") != "False"
            or given.get("shell", "False") != "False"
            or name.endswith("add_safe_globals")
        )
        if bad:
            found.append(f"{path.relative_to(path.anchor)}:{node.lineno}: {name}")
    return found


@pytest.mark.slow
def test_no_call_that_runs_data() -> None:
    files = [path for folder in ("lasagna", "training", "backend", "tools") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 150
    assert [risk for path in files for risk in _risks(path)] == []


@pytest.mark.parametrize(
    "line",
    ["torch.load(p)", "torch.load(p, weights_only=False)", "pickle.loads(b)", "eval(t)", "run(c, shell=True)",
     "np.load(p, allow_pickle=True)", "AutoModel.from_pretrained(n, trust_remote_code=True)"],
)  # fmt: skip
def test_such_a_call_is_noticed(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.py").write_text(line)
    assert len(_risks(tmp_path / "m.py")) == 1
