"""`lasagna demo` as a newcomer runs it: real services, from nothing to predictions in Label Studio, and no trace after.

The model is a tiny one with random weights: what it answers is not looked at, only that the answers arrive.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
import requests

from backend.demo.parts import present_classes
from lab.bench.peer_models import write_model
from lasagna.checkpoint.folder import Calibration, write_calibration

pytestmark = [
    pytest.mark.label_studio,
    pytest.mark.xdist_group("demo"),  # each demo has a Label Studio of its own
    pytest.mark.usefixtures("installed_label_studio"),
]

PROGRAM = [sys.executable, "-c", "from lasagna.commands.cli import main; main()", "demo"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory, random_checkpoint):
    """Environment of a demo with a state folder of its own, which the demos of this module share."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LASAGNA_")}
    kept = {name: os.environ[name] for name in ("LASAGNA_CACHE",) if name in os.environ}
    state = tmp_path_factory.mktemp("state")
    return {**clean, **kept, "LASAGNA_STATE_DIR": str(state), "LASAGNA_MODEL": str(random_checkpoint), "COLUMNS": "200"}


@pytest.fixture
def run(environment, tmp_path):
    """Runs a demo that ends by itself: (exit code, what it printed, its JSON summary or None)."""

    def run(*arguments, seconds=900, **extra):
        summary = tmp_path / "demo.json"
        done = subprocess.run(
            [*PROGRAM, "--exit", "--json", str(summary), *arguments],
            env={**environment, **extra},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        return done.returncode, done.stdout, json.loads(summary.read_text()) if summary.exists() else None

    return run


def left_over(environment):
    """Processes of a demo, told by the state folder that all of them inherit."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            state = process.environ().get("LASAGNA_STATE_DIR", "")
            if state.startswith(environment["LASAGNA_STATE_DIR"]) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_every_photo_gets_a_prediction_and_nothing_is_left_running(run, environment, eventually):
    code, said, summary = run()
    assert code == 0, said
    assert summary["complete"]
    names = ["astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"]
    assert [photo["name"] for photo in summary["photos"]] == names
    for photo in summary["photos"]:
        assert len(photo["present"]) + photo["absent"] == 12
        assert set(photo["present"]) == set(photo["probabilities"])
        assert 0 < photo["seconds"] < summary["seconds_total"]
    assert summary["model_version"].startswith("random-")
    for shown in (summary["url"], summary["user"], summary["model_version"], *names):
        assert shown in said
    eventually(lambda: left_over(environment) == [], what="the end of all processes")


@pytest.mark.parametrize(
    ("kind", "unknown", "calibrated"), [("eomt", ["kitchen"], True), ("sam3", [], False), ("clipseg", [], True)]
)
def test_a_model_of_another_maker(run, photos, tmp_path, kind, unknown, calibrated):
    """The whole command with each kind; Mask2Former and OneFormer are read as EoMT is."""
    model = write_model(kind, tmp_path / kind, names=("sky", "person"))
    if calibrated:
        write_calibration(model, Calibration(offset=-30.0))  # everything is present
    code, said, summary = run("--model", str(model), "--images", str(photos["person"]), "--labels", "people,kitchen")
    assert code == 0, said
    words = " ".join(said.split())
    assert summary["model_version"].startswith(f"{kind}-")
    [photo] = summary["photos"]
    assert (photo["unknown"], len(photo["present"]) + photo["absent"]) == (unknown, 2 - len(unknown))
    listed = "does not have in its list 'kitchen': not drawn, and no absence. Draw it by hand"
    assert (listed in words) == bool(unknown)
    assert "Project with 1 photo (" in words
    assert "licence apache-2.0" in words
    assert "cannot answer clicks and boxes" in words
    assert ("is not calibrated: a class is present where" in words) != calibrated
    assert all(line in words for line in summary["about_model"])
    if kind == "clipseg":
        assert set(photo["present"]) == {"people", "kitchen"}


def test_own_photos_and_labels_and_a_broken_photo_that_fails_alone(run, environment, photos, tmp_path):
    folder = tmp_path / "my photos"
    folder.mkdir()
    (folder / "cat.png").write_bytes(photos["cat"].read_bytes())
    (folder / "torn.jpg").write_bytes(photos["rocket"].read_bytes()[:20_000])
    code, said, summary = run("--images", str(folder), "--labels", 'cat, "bag, purse", <SEG>')
    assert code == 1
    assert not summary["complete"]
    good, torn = summary["photos"]
    assert (good["name"], torn["name"]) == ("cat.png", "torn.jpg")
    assert len(good["present"]) + good["absent"] == 3
    assert "error" not in good
    assert "truncated" in torn["error"]
    assert torn["error"] in " ".join(said.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_runs_until_it_is_ended_and_leaves_nothing(environment, photos, eventually, number):
    command = [*PROGRAM, "--images", str(photos["cat"])]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        url = None
        for line in process.stdout:
            url = line.strip() if line.strip().startswith("http") else url
            if "Ctrl-C ends everything" in line:
                break
        assert requests.get(url, timeout=30).ok
        assert len(left_over(environment)) >= 5

        second = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert second.returncode == 2
        assert url in second.stderr

        process.send_signal(number)
        assert process.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    eventually(lambda: left_over(environment) == [], what="the end of all processes")


def test_ctrl_c_during_the_start_leaves_nothing(environment, eventually):
    with subprocess.Popen(PROGRAM, env=environment, stdout=subprocess.PIPE, text=True) as process:
        eventually(lambda: len(left_over(environment)) >= 5, 120, "the start of the parts")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "nothing is left running" in process.stdout.read()
    eventually(lambda: left_over(environment) == [], what="the end of all processes")


def test_a_port_in_use_is_named(run, environment):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, said, _ = run("--port", port)
    assert code == 2
    assert f"port {port} is in use" in said


def test_a_label_studio_that_does_not_start_is_reported_with_its_log(run, environment, tmp_path, eventually):
    program = tmp_path / "label-studio" / "venv" / "bin" / "label-studio"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 'no such table: everything'\nexit 3\n")
    program.chmod(0o755)
    code, said, _ = run(LASAGNA_CACHE=str(tmp_path))
    assert code == 2
    assert "Label Studio ended with exit code 3" in said
    assert "no such table: everything" in said
    assert "label-studio.log" in said
    eventually(lambda: left_over(environment) == [], what="the end of all processes")


def test_without_label_studio_it_says_what_to_type(run, tmp_path):
    code, said, _ = run(LASAGNA_CACHE=str(tmp_path))
    assert code == 2
    assert "make setup" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--labels", "cat", "--label-config", "x.xml"], "exclude each other"),
        (["--label-config", "/nonexistent.xml"], "cannot be read"),
        (["--images", "/nonexistent"], "there is no file or folder"),
        (["--labels", ""], "label"),
        (["--json", "/nonexistent/demo.json"], "there is no folder /nonexistent"),
        (["--model", "no-such-checkpoint"], "no-such-checkpoint"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_named(run, arguments, expected):
    code, said, _ = run(*arguments)
    assert code == 2, said
    assert expected in said
    assert "Traceback" not in said


def test_present_classes_are_told_by_their_best_region_and_choices_are_not_regions():
    result = [
        {"type": "brushlabels", "score": 0.7, "value": {"brushlabels": ["cat"]}},
        {"type": "polygonlabels", "score": 0.9, "value": {"polygonlabels": ["sky"]}},
        {"type": "rectanglelabels", "score": 0.7, "value": {"rectanglelabels": ["cat"]}},
        {"type": "choices", "value": {"choices": ["dog"]}},
    ]
    assert list(present_classes(result).items()) == [("sky", 0.9), ("cat", 0.7)]
