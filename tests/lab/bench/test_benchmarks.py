"""The sub-commands of `lasagna bench` on tiny models: what they say is right is, and their figures are of one run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lab.bench.limit import limit_rows
from lab.bench.measure import stage_seconds
from lab.bench.peer import WAYS
from lab.bench.random_weights import SHAPES, random_config, random_lasagna, random_network, word_tokenizer
from lab.bench.rle import rgba_samples
from lasagna.commands.cli import main

TINY = ("--random-weights", "lasagna-7b-tiny", "--device", "cpu", "--repeats", "1")


def bench(*args: object) -> Any:
    return CliRunner().invoke(main, ["bench", *[str(arg) for arg in args]])


def figures(*args: object) -> dict[str, Any]:
    result = bench(*args, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.slow
def test_decode_is_exact_in_both_dialects(tmp_path: Path) -> None:
    plot = tmp_path / "decode.png"
    rows = figures("decode", *TINY, "--classes", "6", "--chunk", 4, "--window", 8, "--peer", "tiny", "--plot", plot)[
        "rows"
    ]
    assert [(row["dialect"], row["classes"]) for row in rows] == [("paper", 6), ("released", 6)]
    assert all(row["identical"] and row["near_ties"] == 0 for row in rows)
    assert all(row["seconds_single"] > 0 and row["seconds_chunked"] > 0 and row["seconds_peer"] > 0 for row in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_images_are_answered_alike_in_any_batch() -> None:
    rows = figures("images", *TINY, "--batch", "1,2", "--classes", 5, "--present", 0.4)["rows"]
    assert [row["batch"] for row in rows] == [1, 2]
    assert all(row["same_answers"] and row["ms_encoder"] > 0 and row["ms_language_model"] > 0 for row in rows)
    assert all(0 < row["present"] < 1 for row in rows)


@pytest.mark.slow
def test_masks_and_encoder_agree_with_one_by_one() -> None:
    rows = figures("masks", *TINY, "--present", "1,3", "--classes", 4)["rows"]
    assert all(row["same"] for row in rows)
    rows = figures("encoder", *TINY, "--batch", 2)["rows"]
    assert rows[0]["same"]
    assert rows[0]["ms_plain"] > 0


@pytest.mark.slow
def test_memory_counts_the_weights() -> None:
    row = figures("memory", *TINY, "--batch", 1, "--classes", 3)["rows"][0]
    assert row["gib_weights"] * 2**30 == pytest.approx(4 * row["parameters"])
    assert row["gib_peak"] is None or row["gib_peak"] > row["gib_weights"]


@pytest.mark.slow
def test_start_ends_with_an_answer() -> None:
    rows = {row["stage"]: row["processor_s"] for row in figures("start", "--repeats", 1)["rows"]}
    whole = rows.pop("all up to the first answer")
    assert whole == pytest.approx(sum(rows.values()) - rows["second answer"])


def test_the_peers_answer_the_same_lists(tmp_path: Path) -> None:
    plot = tmp_path / "peer.svg"
    setting = ("--size", "tiny", "--device", "cpu", "--classes", "1,90", "--batch", 2, "--present", 0.5, "--plot", plot)
    rows = figures("peer", *setting)["rows"]
    assert [row["classes"] for row in rows] == [1, 90]  # nano was not taught all of the 90
    for row in rows:
        assert all(row[f"seconds_{way}"] > 0 for way in WAYS)
        assert row["same_decisions"]
        assert row["same_masks"] == 1
    assert 30 <= rows[1]["present_of_sam3"] <= 60
    assert plot.read_text().startswith("<?xml")


def test_rle_is_the_sdks() -> None:
    rows = figures("rle", "--size", "96x72", "--repeats", 1)["rows"]
    assert [row["mask"] for row in rows] == ["ellipse", "photo", "noise", "strokes"]
    assert all(row["equal"] for row in rows)


def test_strokes_are_anti_aliased() -> None:
    alpha = rgba_samples((240, 320))["strokes"][..., 3]
    assert np.unique(alpha).size > 10


def test_a_wrong_encoder_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.bench.rle.mask_to_brush_rle", lambda mask: [0])
    result = bench("rle", "--size", "64x48", "--repeats", 1)
    assert result.exit_code == 1
    assert "not what label-studio-sdk does" in result.stderr


@pytest.mark.slow
def test_limit_is_arithmetic() -> None:
    """Per position of a Llama layer: two operations per weight, and two per cached key and value."""
    config = random_config("lasagna-7b-tiny")
    rows = {row["stage"]: row for row in limit_rows(config, "paper", 5, 2, 1, 3, "float32", 1e9, 1e9)}
    text = config.text
    width, inner, layers = (text[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    weights = layers * (4 * width**2 + 3 * width * inner)
    later = rows["later passes"]
    assert later["gb_read"] == pytest.approx(2 * 4 * (weights + layers * 2 * width) / 1e9)
    assert later["tflop"] * 1e12 > 2 * 2 * weights
    assert later["tflop"] * 1e12 < 2 * (2 * weights + layers * 4 * width * 1000)
    assert later["ms_least"] == pytest.approx(max(later["ms_operations"], later["ms_weights"]))
    stages = [row["ms_least"] for name, row in rows.items() if not name.startswith("all")]
    assert rows["all"]["ms_least"] == pytest.approx(sum(stages))
    twice = {row["stage"]: row for row in limit_rows(config, "paper", 5, 2, 2, 3, "bfloat16", 1e9, 1e9)}
    assert twice["sam"]["tflop"] == pytest.approx(2 * rows["sam"]["tflop"])
    assert twice["sam"]["gb_read"] == pytest.approx(rows["sam"]["gb_read"] / 2)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["decode", "--random-weights", "lasagna-8b"], "unknown shape 'lasagna-8b'"),
        (["decode", "--dialect", "paper"], "--dialect is for --random-weights"),
        (["rle", "--size", "big"], "not a size"),
        (["rle", "--size", "0x5"], "below one pixel"),
        (["limit", "--flops", "0"], "above 0"),
        (["all", "--skip", "speed"], "no such benchmark"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_used(args: list[str], words: str) -> None:
    result = bench(*args)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.slow
def test_all_runs_each_with_the_options_it_takes() -> None:
    skip = "adapters,bombs,features,soak,corpus,decode,encoder,faults,hour,images,learn,limit,load,memory,peer,"
    skip += "prelabel,quantise,rle,shares,stages,start,submit"
    results = json.loads(bench("all", *TINY, "--skip", skip, "--json").stdout)
    assert [result["benchmark"] for result in results] == ["masks"]
    assert results[0]["setting"] == {"model": "lasagna-7b-tiny", "repeats": 1}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_describe_a_model(name: str) -> None:
    from lasagna.network.model import LasagnaModel

    with torch.device("meta"):
        model = LasagnaModel(random_config(name))
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    assert {"lasagna-7b": 7 < billions < 8, "lasagna-13b": 13 < billions < 15}.get(name, billions < 0.02)


def test_random_weights_are_drawn_in_their_own_format() -> None:
    network = random_network(random_config("lasagna-7b-tiny"), torch.device("cpu"), torch.bfloat16, seed=3)
    again = random_network(random_config("lasagna-7b-tiny"), torch.device("cpu"), torch.bfloat16, seed=3).state_dict()
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    for name, values in network.state_dict().items():
        assert torch.equal(values, again[name]), name
        assert torch.isfinite(values.float()).all(), name
    assert float(network.lm_head.weight.detach().float().std()) == pytest.approx(128**-0.5, rel=0.05)


@pytest.mark.parametrize("dialect", ["paper", "released"])
def test_a_random_model_answers(dialect: str) -> None:
    names = ["traffic light", "potted plant", "sky"]
    model = random_lasagna("lasagna-7b-tiny", dialect, names, "cpu", "float32")
    answer = model.segment(np.zeros((40, 60, 3), np.uint8), names)
    assert [one.name for one in answer.classes] == names
    # The released decision tokens have the ids of the released checkpoint.
    assert (model.prompt.seg == 32003) == (dialect == "released")


def test_word_tokenizer_knows_its_names() -> None:
    names = [f"thing {a}{b}" for a in "abc" for b in "def"]
    tokenizer = word_tokenizer(["traffic light", "potted plant", *names])
    assert len(tokenizer.encode("traffic light")) <= 4
    assert tokenizer.decode(tokenizer.encode("potted plant")) == "potted plant"


def test_stage_seconds_are_those_of_the_calls() -> None:
    part, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    with stage_seconds({"part": part, "other": other}, "cpu") as seconds:
        part(torch.zeros(1, 2))
    assert seconds["part"] > 0
    assert seconds["other"] == 0
    before = dict(seconds)
    part(torch.zeros(1, 2))
    assert seconds == before


_PEAKS = """
import json, numpy
from lab.bench.measure import peak_memory
ways = (lambda: None, lambda: numpy.ones(40_000_000, numpy.float64).sum())
print(json.dumps([peak_memory(way, "cpu")[1] for way in ways]))
"""


@pytest.mark.slow
def test_peak_memory_sees_what_is_freed() -> None:
    # in a process of its own: of a large one the system may reclaim as much meanwhile
    done = subprocess.run([sys.executable, "-c", _PEAKS], capture_output=True, text=True, check=True)
    small, large = json.loads(done.stdout)
    if small is None or large is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert large - small > 0.2


def test_without_a_command_everything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    from lab.bench.command import LONG
    from lasagna.commands.groups import EntryPointGroup

    class Point:
        def __init__(self, name: str, code: int) -> None:
            self.name, self.code = name, code

        def load(self) -> click.Command:
            def measure() -> None:
                click.echo(f"measured {self.name}")
                if self.code:
                    raise SystemExit(self.code)

            return click.Command(self.name, callback=measure)

    points = {name: Point(name, int(name == "wrong")) for name in (*LONG, "first", "wrong", "zuletzt")}
    groups = {"lasagna.benchmarks": points}
    whole = EntryPointGroup._entry_points
    monkeypatch.setattr(EntryPointGroup, "_entry_points", lambda self: groups.get(self._group) or whole(self))
    result = bench()
    assert result.stdout.split() == ["measured", "first", "measured", "wrong", "measured", "zuletzt"]
    assert result.exit_code == 1
    assert "what wrong measured is not right" in result.stderr


@pytest.mark.slow
def test_stages_have_a_cost_each() -> None:
    rows = {row["stage"]: row for row in figures("stages", "--side", 64, "--classes", 3, "--repeats", 1)["rows"]}
    assert {"read", "model", "keep", "append", "encode masks", "encode gallery"} <= set(rows)
    assert all(row["ms"] >= 0 for row in rows.values())
    assert rows["model"]["ms"] > rows["append"]["ms"]
    assert min(rows[stage]["bytes"] for stage in ("read", "keep", "encode masks", "encode coco", "encode voc")) > 0


@pytest.mark.slow
def test_corpus_is_a_soak_in_a_process_of_its_own_for_each_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = figures("corpus", "--tiny", "--images", "3,9", "--side", 32, "--format", "label-studio,coco", "--gallery")
    assert found["setting"]["formats"] == "label-studio,coco"
    assert [row["images"] for row in found["rows"]] == [3, 9]
    for row in found["rows"]:
        assert 0 < row["busy"] <= 1
        assert row["busy"] == pytest.approx(row["model_ms_per_image"] * row["images_per_s"] / 1000)
        assert 0 < row["mib_1"] <= row["mib_peak"]
        thirds = [row["images"] / 3 / row[f"images_per_s_{i}"] for i in (1, 2, 3)]
        assert sum(thirds) == pytest.approx(row["images"] / row["images_per_s"])
