"""Names of the methods for the command line, whose help must not load torch.

A test holds them against `trainers.config.METHODS`.
"""

from __future__ import annotations

METHOD_NAMES = (
    "ppo",
    "grpo",
    "dpo",
    "simpo",
    "rpo",
    "selm",
    "nsft",
    "sft",
    "rejection",
    "reward_weighted",
    "steerlm",
    "povid",
    "sapo",
)
COMPARED = ("ppo", "dpo", "nsft", "sft")
"""The methods of the built-in comparison; `bench`, and `plan all`, show them."""
