"""Records as parquet in TRL's columns, images inside, for a notebook or another trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.data.errors import UserError
from trainers.data.record_file import read_records
from trainers.data.records import PreferencePair, Sample, ScoredRollout, Turn

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from trainers.data.images import ImageStore

TEXT, NUMBER, INTEGER, FLAG = "string", "float64", "int64", "bool"
CANDIDATES = "candidates"
"""Not a type of Arrow's: a list of objects of the columns of `CANDIDATE`."""
CANDIDATE = {"text": TEXT, "label": TEXT, "score": NUMBER, "critique": TEXT, "aspects": TEXT}
SHARED = {"id": TEXT, "kind": TEXT, "truth": TEXT}
ROLLOUTS = {
    **SHARED,
    "completion": TEXT,
    "score": NUMBER,
    "failure": TEXT,
    "judge": TEXT,
    "critique": TEXT,
    "components": TEXT,
    "sample_id": TEXT,
    "policy_version": INTEGER,
    "finish_reason": TEXT,
    "response_tokens": INTEGER,
}
PAIRS = {
    **SHARED,
    "chosen": TEXT,
    "rejected": TEXT,
    "margin": NUMBER,
    "score_chosen": NUMBER,
    "score_rejected": NUMBER,
    "sample_id": TEXT,
}
"""Column -> type. Beside them every table has `prompt` (turns of typed parts) and `images`."""


def export_parquet(
    path_msgpack: str | os.PathLike[str],
    out: str | os.PathLike[str],
    image_store: ImageStore,
    samples: Iterable[Sample] = (),
) -> list[Path]:
    """Writes one row per judged rollout to `out`, one per preference pair, and returns the paths.

    Pairs go to `out` when the file holds no judged rollouts, and beside it as `<out>_pairs`
    otherwise. Prompts come from the Sample records of the file and from `samples`. The tables load
    with `trainers.data.datasets.load_samples` and, images decoded, with Hugging Face's datasets.
    """
    out = Path(out)
    records = read_records(path_msgpack).records
    known = {sample.id: sample for sample in (*samples, *records) if isinstance(sample, Sample)}
    tables: list[tuple[dict[str, str], list[dict[str, Any]]]] = [(ROLLOUTS, []), (PAIRS, [])]
    for record in records:
        if isinstance(record, ScoredRollout):
            sample = _sample(known, record.rollout.sample_id, path_msgpack)
            tables[0][1].append(_rollout_row(record) | prompt_columns(sample, image_store))
        elif isinstance(record, PreferencePair):
            sample = _sample(known, record.sample_id, path_msgpack)
            tables[1][1].append(_pair_row(record) | prompt_columns(sample, image_store))
    written: list[Path] = []
    for columns, rows in tables:
        if rows:
            target = out.with_stem(f"{out.stem}_pairs") if written else out
            _write(target, columns, rows)
            written.append(target)
    if not written:
        raise UserError(f"{path_msgpack}: holds no judged rollout and no pair to export")
    return written


def _sample(known: dict[str, Sample], sample_id: str, path: str | os.PathLike[str]) -> Sample:
    if sample_id not in known:
        raise UserError(f"{path}: no Sample record {sample_id!r}; pass the samples to the export")
    return known[sample_id]


def _rollout_row(record: ScoredRollout) -> dict[str, Any]:
    rollout, critique = record.rollout, record.critique
    return {
        "id": rollout.id,
        "completion": rollout.text,
        "score": record.score,
        "failure": record.failure,
        "judge": record.judge,
        "critique": None if critique is None else critique.text,
        "components": json.dumps(record.components),
        "sample_id": rollout.sample_id,
        "policy_version": rollout.policy_version,
        "finish_reason": rollout.finish_reason,
        "response_tokens": len(rollout.token_ids),
    }


def _pair_row(record: PreferencePair) -> dict[str, Any]:
    return {
        "id": f"{record.chosen.rollout.id}>{record.rejected.rollout.id}",
        "chosen": record.chosen.rollout.text,
        "rejected": record.rejected.rollout.text,
        "margin": record.margin,
        "score_chosen": record.chosen.score,
        "score_rejected": record.rejected.score,
        "sample_id": record.sample_id,
    }


def prompt_columns(sample: Sample, store: ImageStore) -> dict[str, Any]:
    """The columns `prompt` and `images` (bytes inside), `kind` and `truth` of a sample."""
    return {
        "prompt": [_message(turn) for turn in sample.prompt],
        "images": [
            {"bytes": store.read_bytes(image), "path": store.path(image).name}
            for image in sample.images
        ],
        "kind": sample.kind,
        # Text, because the truths of different rows need not share a structure.
        "truth": None if sample.truth is None else json.dumps(sample.truth, default=str),
    }


def _message(turn: Turn) -> dict[str, Any]:
    parts: list[dict[str, str | None]] = [{"type": "image", "text": None}] * turn.num_images
    return {"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]}


def _write(path: Path, columns: dict[str, str], rows: list[dict[str, Any]]) -> None:
    # Lazily: Arrow takes 0.2 s to import and only an export needs it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows, schema=trl_schema(columns))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error}") from error


def trl_schema(columns: dict[str, str]) -> Any:
    """Arrow schema of `prompt`, `images` and `columns`, with what Hugging Face's datasets reads."""
    import pyarrow as pa

    text = pa.string()
    content = pa.list_(pa.struct([("type", text), ("text", text)]))
    fields = [
        ("prompt", pa.list_(pa.struct([("role", text), ("content", content)]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", text)]))),
        *((name, _arrow_type(kind)) for name, kind in columns.items()),
    ]
    metadata = {"huggingface": json.dumps({"info": {"features": _features(columns)}})}
    return pa.schema(fields, metadata=metadata)


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    if kind != CANDIDATES:
        return pa.type_for_alias(kind)
    return pa.list_(pa.struct([(name, pa.type_for_alias(of)) for name, of in CANDIDATE.items()]))


def _features(columns: dict[str, str]) -> dict[str, Any]:
    """What Hugging Face's datasets reads from the schema: without it images stay bytes."""
    text = {"dtype": TEXT, "_type": "Value"}
    content = {"feature": {"type": text, "text": text}, "_type": "List"}
    return {
        "prompt": {"feature": {"role": text, "content": content}, "_type": "List"},
        "images": {"feature": {"_type": "Image"}, "_type": "List"},
        **{name: _feature(kind) for name, kind in columns.items()},
    }


def _feature(kind: str) -> dict[str, Any]:
    if kind == CANDIDATES:
        return {"feature": {name: _feature(of) for name, of in CANDIDATE.items()}, "_type": "List"}
    return {"dtype": kind, "_type": "Value"}
