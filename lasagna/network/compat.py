"""The one place that works around how torchvision is built and imported.

segment-anything and timm import torchvision. None of the code of theirs that we use calls what is dealt with here, and
where torchvision has been imported before, nothing is touched.

- PyPI's wheel of torchvision is built for CUDA; beside a CPU build of torch its compiled part cannot be loaded, so its
  operators do not exist, and `import torchvision` fails while it registers their shapes. Defining their schemas lets
  the import pass.
- Its `roi_align` asks torch's compiler, at its import, for one function. That import takes longer than everything else
  that a first answer needs; here the function imports the compiler when it is called.
- `import timm` reads all architectures, one of which imports the compiler too; `create_timm_model` reads one family.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_library = None  # keeps the schemas registered for the life of the process


def ensure_torchvision() -> None:
    """Makes `import torchvision` work, and quick. Call it before importing segment_anything, timm or transformers."""
    global _library
    if "torchvision" in sys.modules:
        return
    import torch

    with _deferred("torch._dynamo", "torch._dynamo.utils"):
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


class _Deferred(ModuleType):
    """Stands for a module whose functions are imported by name and not called yet."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return call


@contextlib.contextmanager
def _deferred(*names: str) -> Iterator[None]:
    """Imports from these modules get functions that import them when they are called; none where the first of them has
    been imported already."""
    if names[0] in sys.modules:
        yield
        return
    sys.modules.update({name: _Deferred(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            if isinstance(sys.modules.get(name), _Deferred):
                del sys.modules[name]


def create_timm_model(name: str, **options: Any) -> Any:
    """`timm.create_model`, with timm's EfficientNets alone where the name is one of theirs: `import timm` reads some
    hundred architectures and torch's compiler first. Raises RuntimeError for a name that timm does not know."""
    ensure_torchvision()
    with _bare("timm", "timm.models"):
        importlib.import_module("timm.models.efficientnet")
        factory = importlib.import_module("timm.models._factory")
        registry = importlib.import_module("timm.models._registry")
    if not registry.is_model(name):
        importlib.import_module("timm")
    return factory.create_model(name, **options)


@contextlib.contextmanager
def _bare(*names: str) -> Iterator[None]:
    """Modules of these packages can be imported without what the packages' own files import; nothing is changed where
    the first package has been imported. An import of a package afterwards finds the modules that are there."""
    if names[0] in sys.modules:
        yield
        return
    for name in names:
        sys.modules[name] = module_from_spec(_without_code(name))
    sys.modules[names[0]].__dict__["__version__"] = version(names[0])
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _without_code(name: str) -> ModuleSpec:
    found = find_spec(name)
    assert found is not None, f"{name} is not installed"
    bare = ModuleSpec(name, None, is_package=True)
    bare.submodule_search_locations = list(found.submodule_search_locations or ())
    return bare
