"""The table of `lasagna bench loop`: of what a run reports, with the gate's own figures."""

from dataclasses import asdict

from lab.loop.command import Shown, table
from training.evaluation.paired import Change


def test_a_row_before_training_and_one_after_each_round() -> None:
    regions = {"accepted": 0.5, "changed": 1.0, "added": 0.25, "deleted": 0.0}
    before, at_once, after = (asdict(Shown(f"nano-{at}", at, 0.9, 0.06, regions)) for at in (0.375, 0.401, 0.483))
    trained = {
        "corrected": 16,
        "promoted": True,
        "replay_miou": asdict(Change(0.104, 0.111, (-0.005, 0.015))),
        "training_seconds": 430.4,
        "at_once": at_once,
        "shown": after,
    }
    _, _, first, head, second = table({"rounds": [{"corrected": 0, "shown": before}, trained]}).splitlines()
    assert [cell.strip() for cell in first.split("|")[1:5]] == ["0", "the model", "", "0.375"]
    assert [cell.strip() for cell in head.split("|")[1:5]] == ["16", "model and head, at once", "", "0.401"]
    cells = [cell.strip() for cell in second.split("|")[1:-1]]
    assert cells[:4] == ["16", "after the fine-tune", "yes", "0.483"]
    assert cells[4:] == ["0.900", "6.0 %", "0.50", "1.00", "0.25", "0.00", "0.104 to 0.111", "430 s"]


def test_a_version_that_passed_when_it_was_judged_again_is_in_the_row_of_the_next() -> None:
    shown = asdict(Shown("nano-1", 0.3, 0.9, 0.06, dict.fromkeys(("accepted", "changed", "added", "deleted"), 0.0)))
    rounds = [
        {"corrected": 0, "shown": shown},
        {"corrected": 16, "promoted": False, "promoted_later": False, "shown": shown},
        {"corrected": 32, "promoted": False, "promoted_later": True, "shown": shown},
        {"corrected": 48, "promoted": True, "promoted_later": False, "shown": shown},
    ]
    rows = table({"rounds": rounds}).splitlines()[2:]
    assert [row.split("|")[3].strip() for row in rows] == ["", "no", "no, the one before", "yes"]
