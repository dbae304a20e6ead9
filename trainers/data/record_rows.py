"""Record files of our own (`.msgpack`) as rows in TRL's columns: what a run wrote is data again.

    samples              a row each, as `quartet data convert` writes them
    judged rollouts      candidates of their sample; with scores that differ, the best is `chosen`
                         and the worst `rejected`, unless the sample has answers of its own
    preference pairs     a row each

Images are those of the folder `images` beside the file, or of the run that the file belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.record_file import read_records
from trainers.data.records import PreferencePair, Sample, ScoredRollout

Row = dict[str, Any]
LEVELS = 3
"""A round's file is in `rounds` of an arm of a comparison, which has the images."""


class RecordRows:
    """A row's position is its number, from 0. The records are in memory, their images are not."""

    def __init__(self, path: Path, image_root: Path | None = None) -> None:
        self.path = path
        found = read_records(path)
        self.kind = "records"
        if found.warning is not None:
            self.kind = f"records, the last {found.dropped_bytes} bytes cut off"
        self._store = _image_store(path, image_root)
        self._samples = {item.id: item for item in found.records if isinstance(item, Sample)}
        self._judged: dict[str, list[ScoredRollout]] = {}
        self._entries: list[Sample | PreferencePair] = []
        for item in found.records:
            if isinstance(item, ScoredRollout) and item.score is not None:
                self._judged.setdefault(item.rollout.sample_id, []).append(item)
            elif isinstance(item, PreferencePair):
                self._entries.append(item)
        if not self._entries:
            self._entries = list(self._samples.values())
        if found.records and not self._entries:
            kinds = sorted({type(item).__name__ for item in found.records})
            raise UserError(
                f"{path}: holds no Sample, only {', '.join(kinds)}; give a round's file"
            )

    def rows(self) -> Iterator[tuple[int, int, Row]]:
        """Every row."""
        for position in range(len(self._entries)):
            yield position + 1, position, self._row(position)

    def read(self, positions: Sequence[int]) -> list[Row]:
        """These rows."""
        return [self._row(position) for position in positions]

    def _row(self, position: int) -> Row:
        entry = self._entries[position]
        if isinstance(entry, Sample):
            return self._sample_row(entry) | self._answers(entry)
        if entry.sample_id not in self._samples:
            raise UserError(f"{self.path}: a pair of {entry.sample_id!r}, which has no Sample")
        chosen, rejected = entry.chosen.rollout, entry.rejected.rollout
        return self._sample_row(self._samples[entry.sample_id]) | {
            "id": f"{chosen.id}>{rejected.id}",
            "chosen": chosen.text,
            "rejected": rejected.text,
            "margin": entry.margin,
        }

    def _sample_row(self, sample: Sample) -> Row:
        return {
            "id": sample.id,
            "prompt": [
                {
                    "role": turn.role,
                    "content": [{"type": "image"}] * turn.num_images
                    + [{"type": "text", "text": turn.text}],
                }
                for turn in sample.prompt
            ],
            "images": [self._image(image) for image in sample.images],
            "kind": sample.kind,
            "truth": sample.truth,
            "chosen": sample.chosen,
            "rejected": sample.rejected,
            "is_tie": sample.is_tie,
            "margin": sample.margin,
            "candidates": [asdict(item) for item in sample.candidates],
            "provenance": sample.provenance,
        }

    def _answers(self, sample: Sample) -> Row:
        """What the sample's judged rollouts add to its row; nothing if there are none."""
        judged = self._judged.get(sample.id, [])
        if not judged or sample.candidates:
            return {}
        candidates: list[Row] = [
            {
                "text": item.rollout.text,
                "label": item.judge,
                "score": item.score,
                "critique": item.critique.text if item.critique else None,
                "aspects": item.components,
            }
            for item in judged
            if item.rollout.text
        ]
        row: Row = {"candidates": candidates}
        scores = [item["score"] for item in candidates]
        own = sample.chosen is not None or sample.rejected is not None
        if not own and scores and min(scores) < max(scores):
            best, worst = (candidates[scores.index(pick(scores))] for pick in (max, min))
            row |= {"chosen": best["text"], "rejected": worst["text"]}
            row["margin"] = best["score"] - worst["score"]
        return row

    def _image(self, image_hash: str) -> str | dict[str, bytes]:
        """The file's bytes; where it is missing a path that is refused with the row."""
        if self._store is None:
            return f"images/{image_hash}"
        try:
            return {"bytes": self._store.read_bytes(image_hash)}
        except UserError:
            return f"images/{image_hash}"


def _image_store(path: Path, image_root: Path | None) -> ImageStore | None:
    """The store that the file's images are in; None if there is no such folder."""
    folders = [parent / "images" for parent in path.absolute().parents[:LEVELS]]
    for folder in folders if image_root is None else [image_root]:
        if folder.is_dir():
            return ImageStore(folder)
    return None
