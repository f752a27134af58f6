"""Which device to compute on, and in which precision."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import ModelError


def default_device() -> torch.device:
    """The first CUDA GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_or_default(device: torch.device | str | None) -> torch.device:
    """The device asked for; without one, the default device.

    Raises:
        ModelError: if torch does not know the device, or this machine does not have that GPU.
    """
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
    """Whether `device` has bfloat16 arithmetic in hardware; emulated, it is slower than float32.

    A CPU has it with AVX512-BF16 or AMX, an NVIDIA GPU from the Ampere generation on.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # torch before 2.13 has no public list of what the processor can do; it counts as empty.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def trains_in_bf16(device: torch.device | str, frozen: bool) -> bool:
    """Whether the course trains a policy in bfloat16 (autocast; the weights stay float32).

    It does if the device `supports_bf16` and the policy's lowest layers, its trunk, are frozen, or
    all of them under a LoRA adapter. A policy of which all layers are trained is trained in
    float32, as in the original experiment. What trains no policy (sampling for an evaluation,
    judges) uses bfloat16 on every device that supports it.
    """
    return frozen and supports_bf16(device)


def processor_name() -> str:
    """What the system calls its processor; empty where it has no name for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
