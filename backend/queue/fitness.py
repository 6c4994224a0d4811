"""Whether a Redis keeps what it is given: what would lose tasks, or refuses to work, in words.

What always holds: nothing is changed but one key that ends by itself; where the server does not let us ask, what it
would have said is left out.
"""

import re
from contextlib import suppress
from typing import Any

import redis

from backend.queue.store import PREFIX

OLDEST = (6, 2)
"""The first version with GETDEL and ZRANGE ... REV."""


def unfitness(connection: "redis.Redis") -> list[str]:
    """Why this Redis cannot be used as it is set up; [] where it can.

    Raises:
        redis.RedisError: It does not answer.
    """
    said = []
    server, memory, cluster = (_info(connection, section) for section in ("server", "memory", "cluster"))
    version = str(server.get("redis_version") or "")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST:
        said.append(f"its version is {version}, and {OLDEST[0]}.{OLDEST[1]} is the oldest that will do")
    if str(cluster.get("cluster_enabled")) == "1" or server.get("redis_mode") == "cluster":
        said.append("it is a cluster, and one script changes keys of several slots: use a single server")
    policy, most = str(memory.get("maxmemory_policy") or ""), int(memory.get("maxmemory") or 0)
    if policy not in ("", "noeviction") and most > 0:
        said.append(
            f"with maxmemory-policy {policy} it throws tasks away where its memory of {most} bytes is full: set "
            "maxmemory-policy noeviction"
        )
    try:
        connection.set(f"{PREFIX}written", "1", ex=60)
    except redis.ResponseError as error:  # MISCONF, READONLY, OOM, NOPERM
        said.append(f"it refuses to write: {str(error)[:200]}")
    return said


def _info(connection: "redis.Redis", section: str) -> dict[str, Any]:
    with suppress(redis.ResponseError):
        found = connection.info(section)
        return found if isinstance(found, dict) else {}
    return {}
