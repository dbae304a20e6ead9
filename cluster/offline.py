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


LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's name for whether other machines may join. With 0 a Ray that is started here listens on
127.0.0.1 only; else on all addresses."""

ON_LOOPBACK = {"QUARTET_HOST_IP": "127.0.0.1", "VLLM_HOST_IP": "127.0.0.1"}
"""Where processes of one machine meet: DeepSpeed's ranks (`actors.rendezvous`) and vLLM's."""


def go_offline() -> None:
    """Set every variable of `OFFLINE`, and `LOOPBACK`, that the user has not set. Call it before
    heavy imports.
    """
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)
    if "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault(LOOPBACK, "0")
