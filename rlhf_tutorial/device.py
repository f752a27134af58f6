"""Which device to compute on, and whether it computes in bfloat16."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """The first CUDA GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
