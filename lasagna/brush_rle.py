"""Label Studio's brush format, written with NumPy: byte for byte what label-studio-sdk 2.1.2 writes, without its speed.

The format (thi.ng/rle-pack, most significant bit first): a 32-bit count of values, 5-bit word size - 1, four 4-bit run
sizes - 1, then runs. A run is one bit (1: a value that repeats), 2 bits that choose the run size, the run's length - 1
in so many bits, and the value in one word. The values are the RGBA bytes of an image. What always holds, as in the SDK:
words of 8 bits, run sizes of 3, 4, 8 and 16 bits, the smallest that holds the length; a value that comes once has the
bit 0; at the end there is at least one bit of padding, so that a stream of whole bytes gets a zero byte more.
"""

import numpy as np
from numpy.typing import NDArray

_WORD, _SIZES = 8, (3, 4, 8, 16)
_LONGEST = 2 ** _SIZES[-1]
_HEADER_BITS = 32 + 5 + 4 * len(_SIZES)


def encode_brush_rle(values: NDArray[np.uint8] | NDArray[np.bool_], repeat: int = 1) -> list[int]:
    """Encodes a sequence of bytes.

    Args:
        values: uint8, or bool for 0 and 255; read in C order; at least one.
        repeat: So many times each value stands: 4 for a grey image, all of whose channels are alike.

    Returns:
        The bytes of the RLE, as the JSON of a region has them.
    """
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), len(flat) - 1)
    lengths = np.diff(ends, prepend=-1) * repeat
    runs = flat[ends].astype(np.uint64) * (255 if values.dtype == np.bool_ else 1)
    if lengths.max() > _LONGEST:  # in pieces, all but the last as long as possible
        pieces = -(-lengths // _LONGEST)
        last = np.cumsum(pieces) - 1
        rest = lengths - (pieces - 1) * _LONGEST
        runs = np.repeat(runs, pieces)
        lengths = np.full(len(runs), _LONGEST)
        lengths[last] = rest
        # A piece of one value is written as part of a series.
        single = np.zeros(len(runs), np.bool_)
        single[last] = (rest == 1) & (pieces == 1)
    else:
        single = lengths == 1

    choice = np.searchsorted([2**size for size in _SIZES[:-1]], lengths)
    # The first two sizes hold short runs; what is left of a long run may be short, and keeps the size of the long one.
    if len(lengths) != len(ends):
        choice[np.repeat(pieces, pieces) > 1] = len(_SIZES) - 1
    sizes = np.array(_SIZES, np.int64)[choice]
    codes = choice.astype(np.uint64) | np.where(single, np.uint64(0), np.uint64(4))
    codes = codes << (sizes + _WORD).astype(np.uint64) | (lengths - 1).astype(np.uint64) << np.uint64(_WORD) | runs

    header = len(flat) * repeat << 5 | _WORD - 1
    for size in _SIZES:
        header = header << 4 | size - 1
    return _packed(np.append(np.uint64(header), codes), np.append(_HEADER_BITS, 3 + sizes + _WORD))


def _packed(codes: NDArray[np.uint64], bits: NDArray[np.int64]) -> list[int]:
    """The bytes of codes of different lengths, written one after the other.

    Every code is shorter than a word of 64 bits, so that one begins in each word, and at most one goes on in the next.
    """
    ends = np.cumsum(bits)
    total = int(ends[-1])
    starts = ends - bits
    word, room = starts >> 6, 64 - (starts & 63)
    over = bits - room  # bits that go into the next word; none where negative
    crossing = np.flatnonzero(over > 0)
    begun = codes << np.maximum(-over, 0).astype(np.uint64)
    begun[crossing] = codes[crossing] >> over[crossing].astype(np.uint64)
    first = np.flatnonzero(np.diff(word, prepend=-1))
    packed = np.zeros((total >> 6) + 1, np.uint64)
    packed[word[first]] = np.bitwise_or.reduceat(begun, first)
    packed[word[crossing] + 1] |= codes[crossing] << (64 - over[crossing]).astype(np.uint64)
    # At least one bit of padding: what the SDK does.
    return list(packed.astype(">u8").tobytes()[: (total >> 3) + 1])
