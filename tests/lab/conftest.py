"""What the laboratory's tests share with those of the product."""

from tests.backend.conftest import redis_db, stub
from tests.training.conftest import tiny, tiny_file

__all__ = ["redis_db", "stub", "tiny", "tiny_file"]
