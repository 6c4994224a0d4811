"""`lasagna bench shares`: stages add up, and operations are counted where they are made."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab.bench.shares import STAGES, Meter, metered, shares
from lasagna import Lasagna


def test_a_stage_does_not_count_the_stages_inside_it() -> None:
    readings = iter([0.0, 2.0, 5.0, 6.0, 6.5, 10.0])
    meter = Meter(lambda: next(readings))
    with meter.stage("rest"):  # 0 to 10
        with meter.stage("language model"):  # 2 to 5
            pass
        with meter.stage("classifier"):  # 6 to 6.5
            pass
    assert meter.spent == dict.fromkeys(STAGES, 0.0) | {"rest": 6.5, "language model": 3.0, "classifier": 0.5}


def test_a_model_is_as_before_when_it_was_metered() -> None:
    model = Lasagna.random(0)
    before = dict(vars(model.model.encoder))
    with metered(model, Meter(lambda: 0.0)):
        assert vars(model.model.encoder) != before
    assert vars(model.model.encoder) == before
    assert "mask_logits" not in vars(model)


@pytest.mark.slow
def test_every_stage_has_a_row_for_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASAGNA_CACHE", str(tmp_path))
    Lasagna.random(0).save_pretrained(tmp_path / "tiny")
    options = ["--model", str(tmp_path / "tiny"), "--classes", "3", "--repeats", "1", "--dtype", "float32", "--json"]
    result = CliRunner().invoke(shares, options)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["encoder_engine"], row["stage"]) for row in rows] == [
        (engine, stage) for engine in ("torch", "openvino") for stage in (*STAGES, "all")
    ]
    found = {row["stage"]: row for row in rows[: len(STAGES) + 1]}
    assert found["language model"]["gflop"] > 0
    assert found["drawing"]["gflop"] == found["prepare"]["gflop"] == 0
    assert sum(found[stage]["ms"] for stage in STAGES) == pytest.approx(found["all"]["ms"], rel=0.2)
