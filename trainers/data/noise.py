"""Diffusion noise on a processed image: a picture the model half sees, for answers to reject.

BPO, POVID and SeVa distort the *normalised* pixel tensor, not the picture, by one schedule. Its
steps are not those of DDPM's linear schedule: this one is mild, and at step 999 a twelfth of the
signal's variance is still there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

NUM_STEPS = 1000
BETA_START, BETA_END = 1e-5, 0.5e-2
SIGMOID_RANGE = 6.0


@dataclass(frozen=True, slots=True)
class ImageNoise:
    """Which noise an image gets: how much, and which draw.

    Example: `ImageNoise(step=500, key="scene-7")`. Equal keys, steps and shapes give equal noise,
    in every process.
    """

    step: int
    """Of the schedule, 0 (next to nothing) to 999."""
    key: str
    """Seeds the draw; the sample's id, so that another run sees the same distortion."""

    def __post_init__(self) -> None:
        if not 0 <= self.step < NUM_STEPS:
            raise ValueError(f"noise step {self.step}: give one from 0 to {NUM_STEPS - 1}")

    @property
    def name(self) -> str:
        """For caches: an image with this noise is another image."""
        return f"noise-{self.step}-{self.key}"


@cache
def signal_shares() -> Tensor:
    """abar_t of every step t, shape (1000,), float64: the share of variance that is still signal.

        beta_t = sigmoid(linspace(-6, 6, 1000)_t) * (0.005 - 1e-5) + 1e-5
        abar_t = prod_{s <= t} (1 - beta_s)

    abar_0 = 1 - 2.234e-5, and it falls strictly: 0.745 at step 500, 0.218 at 800, 0.133 at 900.
    Source: the released code of BPO (arXiv 2403.08730), POVID (2402.11411) and SeVa (2404.10501),
    which agree.
    """
    spread = torch.linspace(-SIGMOID_RANGE, SIGMOID_RANGE, NUM_STEPS, dtype=torch.float64)
    betas = torch.sigmoid(spread) * (BETA_END - BETA_START) + BETA_START
    return torch.cumprod(1.0 - betas, dim=0)


def add_noise(pixels: Tensor, noise: ImageNoise) -> Tensor:
    """x_t = sqrt(abar_t) * x + sqrt(1 - abar_t) * eps, eps standard normal, seeded by the key.

    Limiting case: a tensor of zeros becomes eps scaled by sqrt(1 - abar_t).

    Args:
        pixels: the image processor's normalised output, any shape.
        noise: step and key.

    Returns:
        A new tensor of the same shape and dtype.
    """
    seed = int.from_bytes(hashlib.sha256(noise.key.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(pixels.shape, generator=generator, dtype=torch.float32)
    share = float(signal_shares()[noise.step])
    noised: Tensor = share**0.5 * pixels.float() + (1.0 - share) ** 0.5 * eps
    return noised.to(pixels.dtype)
