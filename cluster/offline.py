"""The environment variables that keep a run from talking to the network or reporting usage."""

from __future__ import annotations

import os

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Read by huggingface_hub, transformers, vLLM and Ray at import; Ray's workers inherit them."""


def go_offline() -> None:
    """Set every variable of `OFFLINE` that the user has not set. Call it before heavy imports."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)
