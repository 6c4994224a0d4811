"""What the laboratory's tests share with those of the product."""

from tests.backend.conftest import stub
from tests.training.conftest import tiny, tiny_file

__all__ = ["stub", "tiny", "tiny_file"]
