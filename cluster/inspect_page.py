"""The page of `quartet data inspect --html`: samples with pictures and token masks, one file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.inspect_terminal import facts
from trainers.data.errors import UserError
from trainers.data.image_codec import encode_png
from trainers.data.pieces import Piece
from trainers.data.show_text import visible

if TYPE_CHECKING:
    from PIL import Image

    from cluster.inspect_data import Shown

LONGEST_EDGE = 640
"""Of a picture on the page, in pixels."""
HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>quartet data inspect</title><style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 1rem; }
section { border-top: 1px solid #8886; padding: 1rem 0; overflow-wrap: anywhere; }
img { max-width: 320px; max-height: 320px; min-width: 96px; image-rendering: auto; }
pre, p { white-space: pre-wrap; margin: .3rem 0; } small, .context { opacity: .65; }
.token { display: inline-block; border: 1px solid #8885; border-radius: 4px; padding: 0 .25em;
 margin: 1px; font: 13px/1.5 ui-monospace, monospace; white-space: pre; }
.target { background: #1a7f3733; border-color: #1a7f37; font-weight: 600; opacity: 1; }
.wrong { color: #c02a2a; }
</style></head><body><h1>quartet data inspect</h1>
"""


def write_page(path: Path, lines: Sequence[str], shown: Sequence[Shown]) -> None:
    """Write the page at once; it loads nothing and runs nothing. Raises `UserError`."""
    body = "".join(f"<p>{escape(line)}</p>" for line in lines)
    legend = '<p><span class="token target">target</span> the loss is taken on these; '
    legend += '<span class="token context">context</span> on these not; hover for the id</p>'
    page = HEAD + body + legend + "".join(map(_section, shown)) + "</body></html>\n"
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _section(shown: Shown) -> str:
    sample = shown.sample
    parts = [f"<h2>{_safe(sample.id)}</h2><p><small>{_safe(', '.join(shown.fields))}</small></p>"]
    for name, picture in zip(sample.images, shown.pictures, strict=True):
        parts.append(
            f'<img alt="" src="data:image/png;base64,{_png(picture)}">'
            f"<p><small>{picture.width}x{picture.height}, {name}</small></p>"
        )
    for turn in sample.prompt:
        images = f" [{turn.num_images} image(s)]" if turn.num_images else ""
        parts.append(f"<p><b>{turn.role}{images}</b> {_safe(turn.text)}</p>")
    parts += [f"<p><b>{_safe(name)}</b> {_safe(text)}</p>" for name, text in facts(shown)]
    for name, found in shown.tokens:
        parts.append(f"<p><b>{_safe(name)}</b></p>")
        if isinstance(found, str):
            parts.append(f'<p class="wrong">{_safe(found)}</p>')
        else:
            parts.append("<div>" + "".join(map(_token, found)) + "</div>")
    return f"<section>{''.join(parts)}</section>"


def _token(piece: Piece) -> str:
    kind = "target" if piece.is_target else "context"
    times = f" x{piece.count}" if piece.count > 1 else ""
    return f'<span class="token {kind}" title="{piece.token}">{_safe(piece.text)}{times}</span>'


def _png(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
    return base64.b64encode(encode_png(small)).decode()


def _safe(text: str) -> str:
    return escape(visible(text))
