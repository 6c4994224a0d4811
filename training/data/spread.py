"""Which items to take where not all are wanted: evenly spread, as neighbours are often alike (frames of one video)."""


def spread(length: int, limit: int | None) -> list[int]:
    """Indices of `limit` of `length` items, evenly spread and in order; all of them without a limit."""
    if limit is None or limit >= length:
        return list(range(length))
    return [i * length // limit for i in range(limit)]
