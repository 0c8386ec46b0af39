"""Which arithmetic to run in: bf16 where the hardware has it."""

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
    """Whether bf16 products run in hardware: CUDA from Ampere on; CPUs with AMX tiles or AVX-512 BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        # Not public, but the only question that torch answers about this; absent on some builds.
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return False


def best_device() -> torch.device:
    """The machine's accelerator when it has one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")
