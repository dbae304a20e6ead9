"""Micro-batches of similar length hold the same rows as one batch would."""

from __future__ import annotations

from itertools import islice

from actors.streams import CritiquePairs, DrawnConversations
from rewards.critique import CRITIQUE_REQUEST
from rewards.drawn_pairs import preference_examples
from trainers.data.drawn_sft import Phase


def critiques_of(batch, tokenizer):
    """The target text of each row, in order."""
    texts, start = [], 0
    for count in batch.mask_BR.sum(1).tolist():
        ids = batch.targets_N[start : start + count].tolist()
        texts.append(tokenizer.decode(ids, skip_special_tokens=True))
        start += count
    return texts


def test_the_ranks_share_a_minibatch_of_pairs_and_keep_each_pair_together(processing, samples):
    examples = list(preference_examples([(sample, ()) for sample in samples], 0))[:9]
    stream = CritiquePairs(examples, CRITIQUE_REQUEST, len(examples), seed=0)
    found = []
    for rank in range(2):
        batches = next(stream(processing, rank, 2))
        lengths = [batch.input_ids_BT.shape[1] for batch in batches]
        assert len(batches) > 1
        assert lengths == sorted(lengths)
        for batch in batches:
            texts = critiques_of(batch, processing.tokenizer)
            found += zip(texts[0::2], texts[1::2], strict=True)
    wanted = [(e.chosen_critique.text, e.rejected_critique.text) for e in examples]
    assert sorted(found) == sorted(wanted)


def test_no_conversation_is_lost_between_micro_batches(processing):
    phase = Phase(
        steps=1,
        batch_size=10,
        max_lr=1e-3,
        warmup_share=0.0,
        caption_share=0.5,
        questions=3,
        max_objects=4,
        critique_rows=7,
    )
    for batches in islice(DrawnConversations(phase, 0, biased=False)(processing, 0, 1), 3):
        assert sum(batch.num_rows for batch in batches) == 17
