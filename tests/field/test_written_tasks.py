"""What `lasagna annotate --label-config` writes for every form of configuration: a real Label Studio imports it, shows
the images of it and keeps the predictions."""

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lasagna.commands.cli import main
from lasagna.formats.regions import read_regions
from lasagna.labels.configuration import parse_label_config
from tests.field.test_editor_forms import FORMS

pytestmark = pytest.mark.label_studio


@pytest.mark.parametrize("name", FORMS)
def test_what_annotate_writes_is_imported(
    name: str, label_studio: Any, random_checkpoint: Path, tmp_path: Path
) -> None:
    form, api = FORMS[name], label_studio.api()
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo).save(tmp_path / "photos" / "a.png")
    (tmp_path / "config.xml").write_text(form.config)
    config = parse_label_config(form.config)
    words = ["annotate", tmp_path / "photos", "--label-config", tmp_path / "config.xml", "--out", tmp_path / "out"]
    words += ["--format", "label-studio", "--model", random_checkpoint, "--no-gallery", "--threshold", "0.01"]
    words += [
        "--image-url-prefix",
        "/data/upload/1/",
        *(["--labels", "sky,rocket"] if config.has_dynamic_labels else []),
    ]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert (tmp_path / "out" / "label_config.xml").read_text() == form.config

    project = api.create_project(f"written {name}", form.config)
    api.import_tasks(project, tasks)
    [task] = api.tasks(project)
    images = [image.config for image in config.shown(task.data)]
    assert {image.address for image in config.shown(task.data)} == {"/data/upload/1/a.png"}
    [prediction] = api.predictions(task.id)
    [written] = tasks[0]["predictions"]
    kept = read_regions(prediction["result"], images)
    assert kept == read_regions(written["result"], images)
    assert all(kept.of_image), "the model of this test finds every class"
    assert kept.elsewhere == ()
    assert not any(region.unknown_labels for regions in kept.of_image for region in regions)


def test_an_import_into_a_locked_database_keeps_what_came_with_the_tasks(label_studio: Any) -> None:
    """Label Studio tries again by itself, and has then forgotten predictions and annotations."""
    form, api = FORMS["two-images"], label_studio.api()
    value = {"x": 1, "y": 1, "width": 5, "height": 5, "rectanglelabels": ["airplane"]}
    result = [{"from_name": "rl", "to_name": "left", "type": "rectanglelabels", "value": value}]
    task = {"data": form.data("/a.png", "/b.png"), "predictions": [{"model_version": "one", "result": result}]}
    project = api.create_project("written while locked", form.config)
    database = label_studio.service.log.parent / "label_studio.sqlite3"
    with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(7.0, other.execute, ["COMMIT"])  # Label Studio waits 5 s for a lock
        release.start()
        api.import_tasks(project, [{**task, "annotations": [{"result": result}]}, task])
        release.join()
    tasks = list(api.tasks(project))
    assert [len(api.predictions(task.id)) for task in tasks] == [1, 1]
    assert sorted(api.is_begun(task.id) for task in tasks) == [False, True]
