"""Texts and where tokens end, by hand and with a real byte-level tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.offsets import spell


class Pieces:
    """Tokens as SentencePiece has them: a word's space is lost at the start of what is decoded."""

    def __init__(self, *pieces: str):
        self.pieces = pieces

    def decode(self, ids, **options):
        return "".join(self.pieces[i] for i in ids).removeprefix(" ")


def test_by_hand():
    tokenizer = Pieces("a", " cat", "s", "")
    # "a cats": a ends at 1, " cat" at 5, "s" at 6, EOS adds nothing
    assert spell(tokenizer, [0, 1, 2, 3]) == ("a cats", (1, 5, 6, 6))
    assert spell(tokenizer, []) == ("", ())


def test_white_space_around_the_text_is_not_counted():
    assert spell(Pieces("\n", "ab", " c", " "), [0, 1, 2, 3]) == ("ab c", (0, 2, 4, 4))


def test_what_is_known_is_not_decoded_again():
    class Once(Pieces):
        def decode(self, ids, **options):
            assert tuple(ids) not in seen
            seen.add(tuple(ids))
            return super().decode(ids, **options)

    seen: set[tuple[int, ...]] = set()
    known: dict[tuple[int, ...], str] = {}
    tokenizer = Once("a", " b")
    found = [spell(tokenizer, ids, known) for ids in ([0, 1, 0, 1], [0, 1, 1], [0, 1, 0, 1])]
    assert found[0] == found[2] == ("a ba b", (1, 3, 4, 6)) and found[1] == ("a b b", (1, 3, 5))


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """One token per byte: a character of several bytes takes several tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token=alphabet[0]))
    core.decoder = decoders.ByteLevel()
    ids = {c: i for i, c in enumerate(alphabet)}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def encode(text: str) -> list[int]:
        return [ids[c] for piece, _ in byte_level.pre_tokenize_str(text) for c in piece]

    return PreTrainedTokenizerFast(tokenizer_object=core), encode


def test_a_character_of_two_tokens_ends_with_the_second(bytes_tokenizer):
    tokenizer, encode = bytes_tokenizer
    assert spell(tokenizer, encode("aéb")) == ("aéb", (1, 1, 2, 3))


def test_a_character_that_is_cut_off_is_left_out(bytes_tokenizer):
    tokenizer, encode = bytes_tokenizer
    assert spell(tokenizer, encode("aé")[:-1]) == ("a", (1, 1))


@given(st.text(alphabet="ab é漢🙂.", min_size=1, max_size=12))
def test_every_character_ends_somewhere_and_in_order(bytes_tokenizer, text):
    tokenizer, encode = bytes_tokenizer
    wanted = text.strip()
    ids = encode(text)
    found, ends = spell(tokenizer, ids)
    assert found == wanted
    assert len(ends) == len(ids) and list(ends) == sorted(ends)
    if wanted:
        assert ends[-1] == len(wanted)
        assert set(range(1, len(wanted) + 1)) <= set(ends)


def test_the_drawn_tokenizer(processing):
    text = "top-left red circle ."
    ids = processing.tokenizer.encode(text, add_special_tokens=False)
    ids = [*ids, processing.eos_id]
    assert spell(processing.tokenizer, ids) == (text, (8, 12, 19, 21, 21))
