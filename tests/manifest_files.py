"""Manifests of some rows, written as each kind of file."""

import csv
import io
import json

from vmae_jax.data.datasets import make_source

ROWS = [
    {"path": "a, b.mp4", "label": 2, "start": 1.5, "end": 4},
    {"path": "c.mp4", "label": 0, "start_frame": 10, "stop_frame": 40},
    {"path": "d.mp4", "clip_id": "mine"},
    {"path": "/abs/e.mp4", "label": 1, "start": 2},
]


def written(rows, kind):
    if kind == "json":
        return json.dumps(rows)
    if kind == "jsonl":
        return "\n\n".join(json.dumps(row) for row in rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def opened(tmp_path, rows, kind="jsonl", split="train", **options):
    """The source of a manifest; nothing is held out unless asked for."""
    file = tmp_path / f"list.{kind}"
    file.write_text(rows if isinstance(rows, str) else written(rows, kind), newline="")
    return make_source("manifest", str(file), split, **{"held_out_ratio": 0, **options})
