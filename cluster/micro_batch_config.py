"""Settings of how rows are laid into the forwards of training."""

from __future__ import annotations

from pydantic import Field

from trainers.config import Settings


class MicroBatchConfig(Settings):
    """None of them changes the gradient, but by rounding."""

    micro_batch_size: int = Field(default=16, ge=2)
    """Rows per forward, of a step and where copies and the judge's model score rows. As many as the
    smallest default step has, so that the methods' peaks are of equal batches."""
    max_tokens_per_micro_batch: int = Field(default=0, ge=0)
    """Tokens per forward, padding counted, in place of rows; a group (a pair, say) that has more
    goes alone. 0: `micro_batch_size` decides."""
    packing: bool = False
    """Rows lie end to end in a forward, without padding."""
    share_images: bool = False
    """An image that several rows of a forward have passes the vision tower once."""
