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
_LIMITS, _RUN_SIZES = np.array([2**size for size in _SIZES[:-1]]), np.array(_SIZES)
_BLOCK = 1 << 15
"""Runs that are written at once: few enough to stay in the processor's cache."""
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
    if values.dtype == np.bool_:
        flat = (flat != 0).view(np.uint8)  # Pillow's arrays of black and white images hold 255 for True
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), len(flat) - 1)
    header = len(flat) * repeat << 5 | _WORD - 1
    for size in _SIZES:
        header = header << 4 | size - 1
    stream = _BitStream()
    stream.write(np.array([header], np.uint64), np.array([_HEADER_BITS]))
    before = -1
    for start in range(0, len(ends), _BLOCK):
        block = ends[start : start + _BLOCK]
        runs = flat[block].astype(np.uint64) * np.uint64(255 if values.dtype == np.bool_ else 1)
        stream.write(*_codes(np.diff(block, prepend=before) * repeat, runs))
        before = int(block[-1])
    return stream.finish()


def _codes(lengths: NDArray[np.int64], runs: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The code of each run, and its number of bits. Longer runs than fit are cut."""
    single = lengths == 1
    choice = np.searchsorted(_LIMITS, lengths)
    if lengths.max() > _LONGEST:  # all pieces but the last are as long as possible, and the last has their run size
        pieces = -(-lengths // _LONGEST)
        rest = lengths - (pieces - 1) * _LONGEST
        last = np.cumsum(pieces) - 1
        lengths = np.full(last[-1] + 1, _LONGEST)
        lengths[last] = rest
        single, choice, runs = (np.repeat(x, pieces) for x in (single, choice, runs))
    sizes = _RUN_SIZES[choice]
    codes = choice.astype(np.uint64) | np.where(single, np.uint64(0), np.uint64(4))
    codes = codes << (sizes + _WORD).astype(np.uint64) | (lengths - 1).astype(np.uint64) << np.uint64(_WORD) | runs
    return codes, 3 + sizes + _WORD


class _BitStream:
    """Codes of different lengths, written one after the other."""

    def __init__(self) -> None:
        self._words: list[NDArray[np.uint64]] = []
        self._rest, self._bits = np.uint64(0), 0  # what does not fill a word of 64 bits yet, and its length

    def write(self, codes: NDArray[np.uint64], bits: NDArray[np.int64]) -> None:
        """Writes codes of 1 to 63 bits each, so that one begins in every word, and at most one goes on in the next."""
        if self._bits:
            codes, bits = np.append(self._rest, codes), np.append(self._bits, bits)
        ends = np.cumsum(bits)
        starts = ends - bits
        word, room = starts >> 6, 64 - (starts & 63)
        over = bits - room  # bits that go into the next word; none where it is negative
        crossing = np.flatnonzero(over > 0)
        begun = codes << np.maximum(-over, 0).astype(np.uint64)
        begun[crossing] = codes[crossing] >> over[crossing].astype(np.uint64)
        first = np.flatnonzero(np.diff(word, prepend=-1))
        whole, self._bits = divmod(int(ends[-1]), 64)
        packed = np.zeros(whole + 1, np.uint64)
        packed[word[first]] = np.bitwise_or.reduceat(begun, first)
        packed[word[crossing] + 1] |= codes[crossing] << (64 - over[crossing]).astype(np.uint64)
        self._words.append(packed[:whole])
        self._rest = packed[whole] >> np.uint64(64 - self._bits) if self._bits else np.uint64(0)

    def finish(self) -> list[int]:
        """The bytes, with at least one bit of padding."""
        rest = self._rest << np.uint64(64 - self._bits) if self._bits else self._rest
        words = np.concatenate([*self._words, [rest]]).astype(">u8")
        whole = 8 * (len(words) - 1)
        return list(words.tobytes()[: whole + self._bits // 8 + 1])
