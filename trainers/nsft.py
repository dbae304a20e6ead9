"""nSFT: continual SFT with negative supervision: 1 copy (policy).

From Zhu et al., "Continual SFT Matches Multimodal RLHF with Negative Supervision"
(arXiv 2411.14797): what the rejected response would teach through DPO's second log-probability is
written as ordinary question-and-answer turns that state the truth and deny the error, so

    L = NLL(chosen) + correction_coef * NLL(corrective turns)

with no reference in memory. The paper is offline and lets GPT-4 write the turns; here pairs come
from the policy's own judged rollouts, exactly as for DPO, and the turns from the judge's findings
on the rejected response (or from another of `trainers.correction_writers`). Affirmations are
balanced with denials, or the model learns to say no.
Each of the two terms is a mean over its own tokens of the optimiser step.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainers.batch import Batch, Group, Row
from trainers.config import NSFTConfig
from trainers.correction_writers import write_corrections
from trainers.corrections import AbsentClaim
from trainers.data.records import Sample, ScoredRollout
from trainers.losses import Metrics, sft_loss
from trainers.method import Method, Optimisation, Outputs, Selection
from trainers.pairs import mine_pairs
from trainers.roles import Copy, Role


class NSFT(Method):
    """nSFT; see the module's head."""

    name = "nsft"
    copies = (Copy("policy", trained=True),)
    rows_per_group = 2

    def __init__(self, config: NSFTConfig):
        self.config = config

    def select(
        self, scored: Sequence[ScoredRollout], samples: Mapping[str, Sample], rng: random.Random
    ) -> Selection:
        """The round's rows, from judged rollouts."""
        config = self.config
        mined = mine_pairs(scored, rng=rng, **config.pairs.model_dump())
        corrections = write_corrections(
            mined.pairs,
            samples,
            config.corrections,
            rng,
            absent=_absent_claims(scored),
            text_model=self.text_model,
        )
        groups: list[Group] = []
        for pair, correction in zip(mined.pairs, corrections, strict=True):
            sample = samples[pair.sample_id]
            chosen = pair.chosen.rollout
            rows = [Row.of_response(sample, chosen.token_ids, chosen.id, correction=0.0)]
            if correction is not None:
                rows.append(
                    Row(
                        id=f"{correction.rollout_id}/correction",
                        prompt=(),
                        images=sample.images,
                        turns=correction.turns,
                        scalars={"correction": 1.0},
                    )
                )
            groups.append(tuple(rows))
        written = [correction for correction in corrections if correction is not None]
        stats = dict(mined.stats)
        stats["corrections"] = float(len(written))
        stats["corrections_failed"] = float(len(groups) - len(written))
        return Selection(groups, stats, mined.why_none, written)

    def optimisation(self, role: Role) -> Optimisation:
        """How `role` is optimised in this round."""
        return Optimisation.of(self.config)

    def totals(self, batch: Batch) -> dict[str, float]:
        """Counts that the loss divides by."""
        tokens_B = batch.mask_BR.sum(1).float()
        correction_B = batch.scalars["correction"]
        return {
            "chosen": float((tokens_B * (1 - correction_B)).sum()),
            "correction": float((tokens_B * correction_B).sum()),
        }

    def loss(
        self, role: Role, outputs: Outputs, batch: Batch, totals: Mapping[str, float]
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch as a share of the optimiser step, and metrics."""
        assert outputs.logprobs_BR is not None
        correction_B = batch.scalars["correction"]
        # One weighted sum instead of two passes: each row's tokens carry their own term's divisor.
        weights_B = torch.where(
            correction_B > 0,
            self.config.correction_coef / max(totals["correction"], 1.0),
            self.config.chosen_coef / max(totals["chosen"], 1.0),
        )
        loss, _ = sft_loss(outputs.logprobs_BR, batch.mask_BR, weights_B, normalizer=1.0)
        nll_B = -(outputs.logprobs_BR.detach() * batch.mask_BR).sum(1)
        tokens_B = batch.mask_BR.sum(1).float()
        metrics: Metrics = {
            f"nll/{name}": (float((nll_B * share_B).sum()), float((tokens_B * share_B).sum()))
            for name, share_B in (("chosen", 1 - correction_B), ("correction", correction_B))
        }
        return loss, metrics


def _absent_claims(scored: Sequence[ScoredRollout]) -> AbsentClaim:
    """A source of claims to deny: what critiques of the same round say of other images.

    A critique that goes through everything in the image (as the built-in judge's does) leaves only
    absent things unnamed; with other judges a claim drawn here may be true of the image.
    """
    pool = sorted(
        {
            finding.claim
            for item in scored
            if item.critique is not None
            for finding in item.critique.findings
            if finding.kind == "existence" and finding.verdict in ("bad", "absent")
        }
    )

    def draw(known: frozenset[str], rng: random.Random) -> str | None:
        candidates = [claim for claim in pool if claim not in known]
        return rng.choice(candidates) if candidates else None

    return draw
