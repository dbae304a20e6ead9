"""`start.json`: what the base and the judge were like before a run's first round."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

START = "start.json"


class Start(BaseModel):
    """The whole of the file, so that a resumed run need not measure it again."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    base: dict[str, float]
    """Held-out metrics of the base; empty where none are measured."""
    judge: dict[str, float]
    captions: dict[str, list[str]]
    """Model -> its answers to the held-out scenes."""
