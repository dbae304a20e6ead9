"""Liger's fused kernels (RMS norm, rotary embedding, SwiGLU) in place of a model's own; GPUs only.

The language head is not theirs: `trainers.logprobs` applies it in chunks for all methods alike.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from trainers.data.errors import UserError


def use_liger(vlm: Any) -> None:
    """Swap the kernels of `vlm`, in place.

    Raises:
        UserError: there is no GPU, the package is missing, or it does not know the family.
    """
    remedy = "set train.liger=false"
    if not torch.cuda.is_available():
        raise UserError(f"train.liger: its kernels need a GPU, and there is none; {remedy}")
    try:
        liger = import_module("liger_kernel.transformers.monkey_patch")
    except ImportError:
        raise UserError(
            f"train.liger needs the package liger-kernel: pip install liger-kernel, or {remedy}"
        ) from None
    family = vlm.config.model_type
    if family not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"train.liger: liger-kernel has nothing for {family}; {remedy}")
    # Only what it does inside the layers: losses are the methods' own.
    liger._apply_liger_kernel_to_instance(
        vlm, cross_entropy=False, fused_linear_cross_entropy=False
    )
