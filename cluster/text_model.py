"""Which text model a run's settings name, if any."""

from __future__ import annotations

from actors.text import check_text_model
from cluster.config import RunConfig
from trainers.data.errors import UserError

INJECTOR, CORRECTIONS = "negatives.injector", "method.corrections.model"


def writer_folder(config: RunConfig) -> str | None:
    """Folder of the run's text model, None for a run without one.

    Raises:
        UserError: two different ones, or one that cannot be loaded.
    """
    corrections = getattr(config.method, "corrections", None)
    wanted = {
        INJECTOR: config.negatives.injector if config.negatives.rejected else None,
        CORRECTIONS: None if corrections is None else corrections.model,
    }
    named = {key: folder for key, folder in wanted.items() if folder is not None}
    for key, folder in named.items():
        check_text_model(folder, key)
    if len(set(named.values())) > 1:
        raise UserError(f"{INJECTOR} and {CORRECTIONS} differ; one text model is loaded a run")
    return next(iter(named.values()), None)
