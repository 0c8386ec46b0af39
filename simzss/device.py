"""Devices and arithmetic: bf16 where the hardware has it."""

from typing import Any

import torch

from simzss.errors import InputError, nearest

PRECISIONS = ("auto", "bf16-mixed", "32-true")


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` as what suits the device: bf16-mixed where it is native, else 32-true.

    Raises:
        InputError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision} is unknown; {nearest(precision, PRECISIONS)}")
    if precision != "auto":
        return precision
    return "bf16-mixed" if has_native_bf16(device) else "32-true"


def has_native_bf16(device: torch.device) -> bool:
    """Tell whether bf16 products run in hardware: CUDA from Ampere on; CPUs with AMX tiles or AVX-512 BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        # Not public, but the only question that torch answers about this; absent on some builds.
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return False


def enable_tf32(precision: str) -> None:
    """Enable TF32 matmul on GPUs in a run of `bf16-mixed`.

    What stays in float32 there are products of the losses: factors of 11 bits have 8 times as many steps as bfloat16.
    """
    if precision == "bf16-mixed":
        torch.set_float32_matmul_precision("high")


def allocator(device: torch.device) -> Any:
    """The module that counts the memory of a device, such as `torch.cuda`; None for a CPU, and where nothing counts."""
    module = None if device.type == "cpu" else torch.get_device_module(device)
    return module if hasattr(module, "max_memory_allocated") else None


def best_device() -> torch.device:
    """The machine's accelerator when it has one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def device_of(accelerator: str) -> torch.device:
    """Return the CPU for `cpu`, else the machine's best device."""
    return torch.device("cpu") if accelerator == "cpu" else best_device()
