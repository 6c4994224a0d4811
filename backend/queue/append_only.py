"""Redis's append-only file after its disk was full: written anew, so that Redis can read it again.

Valkey (seen with 9.1.2) and Redis (7.0.15) cut a half-written entry off when the disk is full, but write on behind the
cut where the file was begun by a rewrite. What is left is a hole of zeros in the middle, and the next start ends with
"Bad file format". `lasagna bench faults` found it. What always holds: as long as a worker lives, and the server lets it
ask, the file is written anew, from memory, soon after it can be written again.
"""

import logging

import redis

from backend.queue.store import PREFIX

logger = logging.getLogger(__name__)

_KEY = f"{PREFIX}append-only"
"""The server and the number of its refusals after which the file was written anew."""


def mend_append_only_file(connection: redis.Redis) -> bool:
    """Has the file written anew where Redis has refused a write since it was last; returns whether.

    Where Redis cannot write yet, or does not let us ask, nothing happens.
    """
    try:
        refusals = connection.info("errorstats").get("errorstat_MISCONF", {}).get("count", 0)
        if not refusals:
            return False
        state = connection.info("persistence")
        if not state.get("aof_enabled") or state.get("aof_last_write_status") != "ok":
            return False
        seen = f"{connection.info('server')['run_id']} {refusals}".encode()
        if connection.get(_KEY) == seen:
            return False
        connection.bgrewriteaof()
        connection.set(_KEY, seen)
    except redis.ResponseError as error:  # a server that allows neither INFO nor BGREWRITEAOF, or refuses again
        logger.debug("the append-only file is left as it is: %s", error)
        return False
    logger.warning("Redis could not write its append-only file for a while; it is written anew")
    return True
