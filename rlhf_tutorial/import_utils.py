"""TRL's `trl.import_utils`, for scripts that ask it what is installed."""

from accelerate.utils import is_npu_available, is_wandb_available, is_xpu_available
from transformers.utils import is_bitsandbytes_available, is_peft_available

__all__ = [
    "is_bitsandbytes_available",
    "is_npu_available",
    "is_peft_available",
    "is_wandb_available",
    "is_xpu_available",
]
