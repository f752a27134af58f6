"""Which device to compute on, and whether it computes in bfloat16."""

from __future__ import annotations

import torch

from .errors import ModelError


def default_device() -> torch.device:
    """The first CUDA GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_or_default(device: torch.device | str | None) -> torch.device:
    """The device asked for, else the default one. Raises ModelError where there is none such."""
    if device is None:
        return default_device()
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{device!r} is no device of torch's: use 'cpu' or 'cuda'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"there is no device '{device}' here, but {torch.cuda.device_count()} CUDA GPUs: use "
            "another, or 'cpu'"
        )
    return device


def supports_bf16(device: torch.device | str) -> bool:
    """Whether `device` has bfloat16 arithmetic in hardware (emulated, it is slower than float32).

    On a CPU that means AVX512-BF16 or AMX; on a GPU, NVIDIA's Ampere generation or later.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # torch before 2.13 has no public list of what the processor can do.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
