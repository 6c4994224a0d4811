"""The one place that works around how torchvision's wheel is built.

segment-anything, timm and transformers import torchvision where it is installed. PyPI's wheel of torchvision is built
for CUDA; beside a CPU build of torch its compiled part cannot be loaded, so its operators do not exist, and `import
torchvision` fails while it registers their shapes. None of the code that we use calls these operators: defining their
schemas lets the import pass. Where torchvision imports by itself, nothing is touched.
"""

import importlib
import sys

_library = None  # keeps the schemas registered for the life of the process


def ensure_torchvision() -> None:
    """Makes `import torchvision` work. Call it before importing segment_anything, timm or transformers."""
    global _library
    if "torchvision" in sys.modules:
        return
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
