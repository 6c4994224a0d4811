"""What a first answer imports: in a process of its own, since another test may have imported everything."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

HEAVY = ["torch._dynamo", "transformers", "scipy", "sympy", "torch.distributed.tensor"]


def loaded(code: str, names: list[str]) -> list[str]:
    """Which of the modules are there after the code has run in a new process."""
    program = f"import sys\n{code}\nprint(' '.join(name for name in {names!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_first_answer_needs_neither_the_compiler_nor_transformers() -> None:
    """And the module alone no torchvision."""
    code = """
import lasagna.assistant.lasagna
print(*{'torchvision', 'timm'} & set(sys.modules))
import numpy as np
from lasagna import Lasagna
Lasagna.from_pretrained('nano', device='cpu').segment(np.zeros((64, 64, 3), np.uint8), ['sky', 'cat'])
"""
    assert loaded(code, [*HEAVY, "timm.models.vision_transformer_relpos"]) == []


def test_what_was_put_off_is_there_when_it_is_called() -> None:
    code = """
from lasagna.network.compat import create_timm_model, ensure_torchvision
create_timm_model('test_efficientnet')
import timm
timm.create_model('test_vit')
from torchvision.ops.roi_align import is_compile_supported
assert 'torch._dynamo' in sys.modules or is_compile_supported('cpu') in (True, False)
"""
    assert loaded(code, ["timm.models", "torch._dynamo"]) == ["timm.models", "torch._dynamo"]
