"""The gallery of `report.html`: held-out images with every model's answer, marked against truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from trainers.evaluation import match_mentions
from trainers.gallery import GalleryItem
from trainers.report_charts import color, label


def gallery_section(arms: Sequence[str], items: Sequence[GalleryItem]) -> str:
    """A card for each image: base, then `arms` in order, then who else answered."""
    order = ["base", *arms, "honest"]
    cards = ""
    for item in items:
        names = [n for n in order if n in item.answers]
        names += [n for n in item.answers if n not in names]
        answers = "".join(_answer_block(n, item.answers[n], item.truth) for n in names)
        objects = item.truth.get("objects") or []
        truth = " · ".join(escape(" ".join(str(word) for word in each)) for each in objects)
        prompt = f'<p class="prompt">{escape(item.prompt)}</p>' if item.prompt else ""
        cards += (
            f'<div class="item">{prompt}<div><img alt="held-out scene" '
            f'src="data:image/png;base64,{escape(item.image_png_base64)}">'
            f'<div class="truth">{truth}</div></div><div>{answers}</div></div>'
        )
    return f'<div class="gallery">{cards}</div>' if cards else ""


def _answer_block(name: str, text: str, truth: Mapping[str, Any]) -> str:
    shown, note = escape(text), ""
    expected = truth.get("answer")
    if expected is not None:
        note = f'<span class="muted">expected: {escape(str(expected))}</span>'
    elif truth.get("objects") is not None:
        match = match_mentions(truth, text)
        marked = [(m, "") for m in match.hallucinated]
        marked += [(m, o[2]) for m, o in match.matched if m.position not in (None, o[2])]
        shown, at = "", 0
        for mention, place in sorted(marked, key=lambda each: each[0].start):
            kind = f' class="place" title="is at {escape(place)}"' if place else ""
            shown += escape(text[at : mention.start])
            shown += f"<mark{kind}>{escape(text[mention.start : mention.end])}</mark>"
            at = mention.end
        shown += escape(text[at:])
        if match.missing:
            lost = ", ".join(" ".join(each[:2]) for each in match.missing)
            note = f'<span class="missing">missing: {escape(lost)}</span>'
    shown = shown.strip() or '<span class="muted">(no answer)</span>'
    return (
        f'<div class="answer"><b style="color:{color(name)}">{escape(label(name))}</b>{note}'
        f"<p>{shown}</p></div>"
    )
