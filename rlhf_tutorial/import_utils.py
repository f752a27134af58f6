"""TRL's `trl.import_utils`, for scripts that ask it what is installed."""

import re
from collections.abc import Callable
from importlib.util import find_spec

from accelerate.utils import is_npu_available, is_wandb_available, is_xpu_available
from transformers.utils import is_bitsandbytes_available, is_peft_available

__all__ = [
    "is_bitsandbytes_available",
    "is_npu_available",
    "is_peft_available",
    "is_wandb_available",
    "is_xpu_available",
]


def __getattr__(name: str) -> Callable[[], bool]:
    """`is_rich_available` and the like, of any package."""
    if (asked := re.fullmatch(r"is_([a-z_]+)_available", name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package = {"llmblender": "llm_blender", "pil": "PIL"}.get(asked[1], asked[1])
    return lambda: find_spec(package) is not None
