"""The states of a process's random generators (Python's, NumPy's, torch's) as JSON values."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """What every generator of this process would draw next."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": state_of(random),
        "numpy": [str(name), np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(state) for state in _cuda_states()],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set them all; of GPUs as many as both the state and this process have."""
    set_state_of(random, state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        (name, np.array(keys, dtype=np.uint32), position, has_gauss, cached)
    )
    torch.set_rng_state(_tensor(state["torch"]))
    for index, text in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_tensor(text), index)


def check_random_state(state: Any) -> None:
    """Try a state of `random_state` on generators made for it.

    Raises:
        ValueError: it is not one.
    """
    try:
        check_state_of(state["python"])
        name, keys, *rest = state["numpy"]
        np.random.RandomState().set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.Generator().set_state(_tensor(state["torch"]))
        for text in state["cuda"]:
            _tensor(text)
    except (KeyError, IndexError, TypeError, RuntimeError, OverflowError, ValueError) as error:
        raise ValueError(f"not the state of random generators ({error})") from None


def check_state_of(state: list[Any]) -> None:
    """Try a state of `state_of` on a generator made for it.

    Raises:
        ValueError: it is not one.
    """
    try:
        set_state_of(random.Random(), state)
    except (TypeError, OverflowError, ValueError) as error:
        raise ValueError(f"not the state of a random generator ({error})") from None


def _cuda_states() -> list[torch.Tensor]:
    # Asking would start CUDA in a process that has no use for a GPU.
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def state_of(generator: Any) -> list[Any]:
    """The state of a `random.Random`, or of the module's own, as JSON can hold it."""
    version, numbers, gauss = generator.getstate()
    return [version, list(numbers), gauss]


def set_state_of(generator: Any, state: list[Any]) -> None:
    """The reverse of `state_of`."""
    version, numbers, gauss = state
    generator.setstate((version, tuple(numbers), gauss))


def _text(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode("ascii")


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
