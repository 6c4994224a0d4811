"""The files that deploy the product: `docker-compose.yml` and what it names."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


class StrictLoader(yaml.SafeLoader):
    """YAML in which a key may come once: PyYAML lets the last one win, Compose refuses the file."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.value != "<<"]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"keys given twice: {sorted(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def test_a_key_given_twice_is_noticed() -> None:
    with pytest.raises(yaml.YAMLError, match="given twice: \\['a'\\]"):
        yaml.load("x: {a: 1, b: 2, a: 3}", StrictLoader)


def test_no_key_is_given_twice() -> None:
    compose = yaml.load((ROOT / "docker-compose.yml").read_text(), StrictLoader)
    assert set(compose["services"]) == {"redis", "backend", "worker", "training", "label-studio"}
