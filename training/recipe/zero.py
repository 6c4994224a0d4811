"""DeepSpeed's configuration file, checked without DeepSpeed.

The values that a recipe decides (batch size, accumulation, precision, clipping) have to be "auto", so that the recipe
stays the only place that says them; transformers fills them in. Source of the keys: deepspeed.ai/docs/config-json.
"""

import json
from pathlib import Path
from typing import Any

FROM_RECIPE = (
    ("train_batch_size",),
    ("train_micro_batch_size_per_gpu",),
    ("gradient_accumulation_steps",),
    ("gradient_clipping",),
    ("bf16", "enabled"),
)
OURS = ("optimizer", "scheduler")


def zero_problems(path: Path) -> list[str]:
    """What is wrong with a configuration file, in words; empty where it can be used."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{path} is not readable as JSON ({error})"]
    if not isinstance(config, dict):
        return [f"{path}: a table of settings is needed, not {type(config).__name__}"]
    problems = []
    stage = config.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2):
        problems.append(f"{path}: zero_optimization.stage is 1 or 2 here (3 also splits weights), not {stage!r}")
    for key in FROM_RECIPE:
        value: Any = config
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        if value != "auto":
            problems.append(f'{path}: {".".join(key)} is "auto" here, since the recipe says it; found {value!r}')
    problems += [f"{path}: {key} has to go: the recipe's is used" for key in OURS if key in config]
    if config.get("fp16", {}).get("enabled") not in (None, False):
        problems.append(f"{path}: fp16 and bf16 exclude each other; take fp16 out")
    return problems
