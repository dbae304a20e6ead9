"""Names that an older vLLM imports from transformers and a newer transformers no longer has.

They are of Pixtral's vision tower, which transformers 5.17 computes in another way. None of our
families has it; but vLLM's modules of the LLaVA families import it, and vLLM 0.24 by the names that
are gone. Stand-ins let those imports pass, and refuse to be used.

Every process of vLLM needs them: this one (`complete_imports`), the one that inspects models, in
whose place this one does it, and workers of their own (`WORKER`, vLLM's `worker_extension_cls`).
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from actors.vllm_api import NEWEST, release, vllm_version
from trainers.data.errors import UserError

GONE = {
    "transformers.models.pixtral.modeling_pixtral": (
        "PixtralRotaryEmbedding",
        "position_ids_in_meshgrid",
    )
}
WORKER = "actors.vllm_worker.Extension"


class StandIn:
    """Can be imported, and raises when it is called.

    Args:
        name: what it stands for, with its module.
    """

    def __init__(self, name: str):
        self._name = name

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """As class or as function.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"vLLM {vllm_version()} needs {self._name}, which the installed transformers does not "
            "have: install a newer vLLM (docs/versions.md)"
        )


def complete_imports() -> bool:
    """Call before vLLM loads a model; returns whether its workers have to, too."""
    version = vllm_version()
    if not version or release(version) >= NEWEST:
        return False
    lacking = [stand_in(import_module(place), names) for place, names in GONE.items()]
    if not any(lacking):
        return False
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda inspect: inspect()
    return True


def stand_in(module: ModuleType, names: tuple[str, ...]) -> bool:
    """Give `module` those of the names that it lacks; returns whether it has any stand-in now."""
    for name in names:
        if not hasattr(module, name):
            setattr(module, name, StandIn(f"{module.__name__}.{name}"))
    return any(isinstance(getattr(module, name), StandIn) for name in names)
