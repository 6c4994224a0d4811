"""Names of versions, with heads and questions."""

import pytest

from backend.studio.version_names import base_version, parse_version, version_family, without_question

NAMES = {
    "nano-ec805b63": ("nano-ec805b63", None, "", "nano-ec805b63", "nano-ec805b63"),
    "nano-ec805b63+h12": ("nano-ec805b63", 12, "", "nano-ec805b63+h", "nano-ec805b63+h12"),
    "nano-ec805b63~3f2a9c": ("nano-ec805b63", None, "3f2a9c", "nano-ec805b63", "nano-ec805b63"),
    "nano-ec805b63+h12~3f2a9c": ("nano-ec805b63", 12, "3f2a9c", "nano-ec805b63+h", "nano-ec805b63+h12"),
    "yolo~v8": ("yolo~v8", None, "", "yolo~v8", "yolo~v8"),
    "a+b~c~3f2a9c": ("a+b~c", None, "3f2a9c", "a+b~c", "a+b~c"),
    "": ("", None, "", "", ""),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    base, head, question, family, answering = NAMES[name]
    assert parse_version(name) == (base, head, question)
    assert base_version(name) == base
    assert version_family(name) == family
    assert without_question(name) == answering
