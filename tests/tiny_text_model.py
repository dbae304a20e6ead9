"""A text model of a few thousand weights that has learned one reply, whatever it is asked."""

from __future__ import annotations

from pathlib import Path

import torch

REPLY = "Q: is there a red circle ?\nA: no\nQ: is there a blue square ?\nA: yes"
# Long requests are cut to their end, so that a model trained on short ones can answer them.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% set text = m['content'] %}"
    "{{ text if text|length < 200 else text[-20:] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>' }}{% endif %}"
)


def save_text_model(folder: Path) -> None:
    """Train and save it, characters as tokens, as transformers and vLLM load it."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = sorted({*REPLY, *"abcdefghijklmnopqrstuvwxyz :.?<>/"})
    names = ["<pad>", "</s>", "<s>", "<unk>", *characters]
    core = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # of 32, the smallest that vLLM computes on a CPU
        max_position_embeddings=2048,
        initializer_range=0.1,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    answer = torch.tensor([[2, *tokenizer(REPLY, add_special_tokens=False).input_ids, 1]])
    for step in range(300):
        request = torch.randint(3, len(names), (1, 7 * step % 30))
        labels = torch.cat([torch.full_like(request, -100), answer], 1)
        loss = model(input_ids=torch.cat([request, answer], 1), labels=labels).loss
        if float(loss.detach()) < 4e-3:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
