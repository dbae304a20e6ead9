"""Probabilities of single words as an answer's first token, from an engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from actors.engine import Engine, Request
from rewards.asking import Failed, Prompt
from trainers.data.errors import UserError


def choose(
    engine: Engine, prompts: Sequence[Prompt], words: Sequence[str]
) -> list[dict[str, float] | Failed]:
    """The probability of each word as the first token, to each prompt; 0 for a spelling that the
    tokenizer has no token for.

    vLLM returns log-probabilities of exactly the tokens asked for (`logprob_token_ids`), taken from
    the full softmax at temperature 1: with the `allowed_token_ids` instead they would be
    renormalised over the few, and with the top few a token that is not among them has none.
    """
    from vllm import SamplingParams

    engine.require_awake()
    ids = {word: word_ids(engine.processing.tokenizer, word) for word in words}
    asked = sorted({token for tokens in ids.values() for token in tokens})
    if not asked:
        raise UserError(
            f"{engine.spec.model_dir}: no single token says any of {', '.join(words)}; this model "
            "cannot be asked such questions"
        )
    params = SamplingParams(max_tokens=1, temperature=1.0, logprob_token_ids=asked)
    results: list[dict[str, float] | Failed] = [Failed("not asked")] * len(prompts)
    inputs, slots = [], []
    for index, prompt in enumerate(prompts):
        try:
            read = engine.processing.expanded_prompt_ids(
                f"question {index}", prompt.turns, prompt.images
            )
            asked_input = engine.prompt_input(Request(prompt.turns, prompt.images))
        except ValueError as error:
            results[index] = Failed(str(error))
            continue
        if len(read) >= engine.spec.max_model_len:
            results[index] = Failed(
                f"question of {len(read)} tokens exceeds rollout.max_model_len="
                f"{engine.spec.max_model_len}"
            )
            continue
        inputs.append(asked_input)
        slots.append(index)
    for index, output in zip(slots, engine.ask(inputs, params), strict=True):
        first = output.outputs[0].logprobs[0]
        results[index] = {
            word: sum(math.exp(first[token].logprob) for token in tokens)
            for word, tokens in ids.items()
        }
    return results


def word_ids(tokenizer: Any, word: str) -> list[int]:
    """Ids of the tokens that are `word` and nothing else, with and without a space before it; none
    where no single token says it.
    """
    found = set()
    for text in (word, f" {word}"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids and ids[-1] != tokenizer.unk_token_id and tokenizer.decode(ids[-1:]).strip() == word:
            found.add(int(ids[-1]))
    return sorted(found)
