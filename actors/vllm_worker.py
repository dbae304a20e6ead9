"""What vLLM imports first in each worker process of its own, where nothing of ours has run yet."""

from actors.vllm_imports import complete_imports

complete_imports()


class Extension:
    """Adds nothing to vLLM's worker: naming it is what gets this module imported."""
