"""Where in a response its findings' claims stand, for critiques that do not say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainers.data.records import Critique, Finding


def locate(claim: str, response: str, start: int = 0) -> tuple[int, int] | None:
    """Characters of the first `claim` in `response` from `start` on, case aside; None if absent.

    Only whole words are found: "red" is not in "bored".
    """
    text, wanted = response.lower(), claim.strip().lower()
    # Lower case may have another length in some scripts: then places would be wrong.
    if not wanted or len(text) != len(response):
        return None
    at = text.find(wanted, start)
    while at >= 0:
        end = at + len(wanted)
        before, after = text[at - 1 : at], text[end : end + 1]
        if not (before.isalnum() and wanted[0].isalnum()) and not (
            after.isalnum() and wanted[-1].isalnum()
        ):
            return at, end
        at = text.find(wanted, at + 1)
    return None


def with_spans(critique: Critique, response: str) -> Critique:
    """The critique with a span for every claim said in `response` that has none.

    Findings on things that are said (`ok`, `bad`) take the occurrences of their claim in order, so
    that the n-th finding on "red circle" gets the n-th "red circle". A listed object that is not in
    the response keeps None.
    """
    return replace(critique, findings=_located(critique.findings, response))


def _located(findings: Sequence[Finding], response: str) -> tuple[Finding, ...]:
    next_start: dict[str, int] = {}
    result = []
    for finding in findings:
        if finding.span is None and finding.verdict in ("ok", "bad"):
            key = finding.claim.strip().lower()
            span = locate(finding.claim, response, next_start.get(key, 0))
            if span is not None:
                next_start[key] = span[1]
                finding = replace(finding, span=span)
        result.append(finding)
    return tuple(result)
