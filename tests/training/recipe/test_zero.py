"""DeepSpeed's file: the shipped one can be used, and what a recipe decides stands nowhere else."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.recipe.zero import zero_problems

SHIPPED = Path(__file__).parents[3] / "training" / "recipes" / "zero2.json"


def test_the_shipped_file_can_be_used() -> None:
    assert zero_problems(SHIPPED) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, "stage is 1 or 2 here"),
        ({"zero_optimization": {}}, "not None"),
        ({"train_batch_size": 16}, 'train_batch_size is "auto" here, since the recipe says it; found 16'),
        ({"bf16": {"enabled": True}}, 'bf16.enabled is "auto" here'),
        ({"gradient_clipping": None}, "gradient_clipping"),
        ({"optimizer": {"type": "Adam"}}, "optimizer has to go"),
        ({"scheduler": {}}, "scheduler has to go"),
        ({"fp16": {"enabled": True}}, "fp16 and bf16 exclude each other"),
    ],
)
def test_a_problem_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({**json.loads(SHIPPED.read_text()), **change}))
    (problem,) = zero_problems(path)
    assert message in problem
    assert str(path) in problem


@pytest.mark.parametrize("text", ["{", "[]"])
def test_what_is_no_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(text)
    assert len(zero_problems(path)) == 1
    assert len(zero_problems(tmp_path / "missing.json")) == 1
