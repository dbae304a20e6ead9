"""Bytes that pass through the driver: what Ray serialises in this process and brings back to it.

Images and weights travel as references, so that a round's bytes grow with its answers and not with
its pictures or its model.
"""

from __future__ import annotations

from typing import Any

from ray._private.worker import global_worker


class Traffic:
    """Counts on the driver's connection to Ray; one for each connection."""

    def __init__(self) -> None:
        self.sent = self.received = 0
        # No public call tells the size of an argument or a result.
        context: Any = global_worker.get_serialization_context()
        serialize, deserialize = context.serialize, context.deserialize_objects

        def count_sent(value: Any) -> Any:
            result = serialize(value)
            self.sent += result.total_bytes
            return result

        def count_received(objects: Any, *args: Any, **kwargs: Any) -> Any:
            self.received += sum(len(data) for data, *_ in objects if data is not None)
            return deserialize(objects, *args, **kwargs)

        context.serialize, context.deserialize_objects = count_sent, count_received

    def take(self) -> dict[str, int]:
        """Bytes since the last call, under the names they have in `metrics.jsonl`."""
        taken = {"driver/bytes_sent": self.sent, "driver/bytes_received": self.received}
        self.sent = self.received = 0
        return taken
