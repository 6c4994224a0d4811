"""The small encoder as OpenVINO runs it: the same network, in less of the processor's time.

    use_openvino(model.encoder, folder)          from now on, on the CPU, where no gradient is wanted

OpenVINO (Apache-2.0, docs.openvino.ai) fuses a convolution with what follows it and chooses its kernels for this
processor. The network is traced once and kept as a file, named by the content of its weights; loading that takes less
than a second. A file that nobody loaded for a month goes when another one is made. What always holds: the weights stay
in torch, which trains, fingerprints and moves them; what the engine gives are the encoder's own outputs to about 1e-5
of their range in float32; a process that was forked, a copy and a pickle compute in torch, for the engine's threads
live in one process.
"""

import copy
import hashlib
import os
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from lasagna.errors import ConfigError
from lasagna.extras import load_extra
from lasagna.files import write_atomically
from lasagna.network.pyramid import PyramidEncoder
from lasagna.network.vision import EncodedImages

_TRACED = (1, 3, 384, 512)
_KEPT_SECONDS = 30 * 24 * 3600
"""After which a traced network goes that nobody loaded, when another one is made."""
_FORMAT = 2
"""Of the traced outputs: one more where `PyramidEncoder.forward` gives others."""


class OpenVinoEngine:
    """An encoder that OpenVINO runs, for any number of threads at once; they share the cores that torch had when it was
    made (`lasagna.assistant.side_by_side`).

    Args:
        compile_for: A number of callers at once to OpenVINO's compiled model: float32 (B, 3, H, W) to what `_Outputs`
            gives.
        has_pixels, has_skips: Whether pixel embedding and skips are among these.
    """

    def __init__(self, compile_for: Callable[[int], Any], has_pixels: bool, has_skips: bool) -> None:
        self._compile_for, self._has_pixels, self._has_skips = compile_for, has_pixels, has_skips
        self._cores = torch.get_num_threads()
        self._process = os.getpid()
        self._compiling = threading.Lock()
        self._idle: dict[int, SimpleQueue[Any]] = {}
        self._compiled: dict[int, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()

    def runs(self, image: Tensor) -> bool:
        """Whether it can take the place of torch here."""
        return image.device.type == "cpu" and not torch.is_grad_enabled() and os.getpid() == self._process

    def __call__(self, image: Tensor) -> EncodedImages:
        """As `PyramidEncoder.forward`, in the image's number format."""
        callers = max(1, self._cores // torch.get_num_threads())
        compiled, idle = self._for(callers)
        try:
            request = idle.get_nowait()
        except Empty:
            request = compiled.create_infer_request()
        try:
            found = request.infer([image.float().contiguous().numpy()])
            # The results are views of memory that the next call writes to.
            values = [torch.tensor(found[i], dtype=image.dtype) for i in range(len(found))]
        finally:
            idle.put(request)
        tokens, embedding, *rest = values
        pixels = rest.pop(0) if self._has_pixels else None
        skips = (rest.pop(0), rest.pop(0)) if self._has_skips else None
        return EncodedImages(tokens, embedding, pixels, skips, tuple(rest))

    def _for(self, callers: int) -> "tuple[Any, SimpleQueue[Any]]":
        """The compiled model for so many callers, and its requests that are not in use.

        Compiling takes half a second: one caller is content with what was compiled for several.
        """
        with self._compiling:
            if callers == 1 and self._compiled:
                callers = min(self._compiled)
            if callers not in self._compiled:
                self._compiled[callers] = self._compile_for(callers)
                self._idle[callers] = SimpleQueue()
            return self._compiled[callers], self._idle[callers]


def _nothing() -> None:
    return None


class _Outputs(nn.Module):
    """The encoder with a flat list of outputs."""

    def __init__(self, encoder: PyramidEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.encoder({"image": image})
        pixels = [] if found.pixel_embedding is None else [found.pixel_embedding]
        return (found.tokens, found.embedding, *pixels, *(found.skips or ()), *(found.stages or ()))


def use_openvino(encoder: nn.Module, folder: Path) -> None:
    """Lets OpenVINO run an encoder.

    Args:
        encoder: Of a model on the CPU, in float32 or bfloat16: the engine computes in that.
        folder: Where traced networks are kept.

    Raises:
        ConfigError: OpenVINO is not installed, or has no way for this encoder, device or number format.
    """
    if not isinstance(encoder, PyramidEncoder):
        raise ConfigError(
            "openvino runs the encoder of nano and its like; this model sees with SAM and CLIP: use torch"
        )
    weight = next(encoder.parameters())
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(
            f"openvino computes on the CPU in float32 or bfloat16, the model is on {weight.device} in "
            f"{str(weight.dtype).removeprefix('torch.')}: use torch for the encoder"
        )
    openvino = load_extra("openvino", "openvino", "the encoder's engine openvino")
    path = _trace(encoder, folder, openvino)
    core = openvino.Core()
    network = core.read_model(path)  # now: the folder may be emptied while a model serves
    precision = "bf16" if weight.dtype == torch.bfloat16 else "f32"

    def compile_for(callers: int) -> Any:
        return core.compile_model(
            network,
            "CPU",
            {
                "NUM_STREAMS": callers,
                "INFERENCE_NUM_THREADS": torch.get_num_threads() * callers,
                "INFERENCE_PRECISION_HINT": precision,
                "ENABLE_CPU_PINNING": False,  # other processes work beside
            },
        )

    encoder.engine = OpenVinoEngine(compile_for, encoder.pixel_out is not None, encoder.skip8 is not None)


def _trace(encoder: PyramidEncoder, folder: Path, openvino: Any) -> Path:
    """The file of an encoder; made where it is missing."""
    path = folder / f"{_fingerprint(encoder)}-{openvino.__version__.partition('-')[0]}.xml"
    weights = path.with_suffix(".bin")
    if path.exists() and weights.exists():
        os.utime(path)
        return path
    _remove_unused(folder)
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # The network is traced in float32; the engine rounds by itself where it computes in bfloat16.
    flat = _Outputs(copy.deepcopy(encoder).float()).eval()
    example = torch.zeros(_TRACED)
    # torch.export would fix the adaptive pooling to one size of photo. openvino.convert_model would report the
    # conversion to its makers; the two calls that it makes do not.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(flat, example_input=(example,))  # read until the end of `convert`
        model = frontend.convert(frontend.load(decoder))
    model.reshape({model.inputs[0]: openvino.PartialShape([-1, 3, -1, -1])})
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{path.stem}.{os.getpid()}.xml"
    openvino.save_model(model, beside, compress_to_fp16=False)
    beside.with_suffix(".bin").replace(weights)
    write_atomically(path, beside.read_text(encoding="utf-8"))
    beside.unlink()
    return path


def _remove_unused(folder: Path) -> None:
    """Every version of a model has a traced network, of some 20 MB; what nobody needs any more can be made again."""
    for path in folder.glob("*.xml"):
        with suppress(OSError):  # another process does the same
            if path.stat().st_mtime < time.time() - _KEPT_SECONDS:
                path.unlink()
                path.with_suffix(".bin").unlink()


def _fingerprint(encoder: PyramidEncoder) -> str:
    """Of all weights and of the shape of the network."""
    digest = hashlib.sha256(f"{_FORMAT} {encoder.vision}".encode())
    for key, value in sorted(encoder.state_dict().items()):
        content = value.detach().float().contiguous().numpy().tobytes()
        digest.update(f"{key} {tuple(value.shape)} {value.dtype} ".encode() + content)
    return digest.hexdigest()[:24]
