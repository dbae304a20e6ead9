"""From text to words: the language tools that each benchmark's own script uses, or ours.

The numbers depend on tokenizer, singulariser and tagger, so one is never replaced by another in
silence. `original` is what the benchmark's script uses and needs packages and data that are
installed by hand (nothing is downloaded); `wordnet` is NLTK's tokenizer and noun lemmas; `own`
needs nothing, and its numbers are marked as not comparable with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainers.data.errors import UserError

CHOICES = ("original", "wordnet", "own")
OWN_NOTE = (
    "words: Quartet's own tokenizer and singulariser, so these numbers are NOT comparable with "
    "published ones"
)
NLTK_INSTALL = "pip install 'quartet-rlhf[eval]'"
SIMILARITY = 0.8
"""AMBER: above it two nouns count as the same."""
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "oxen": "ox", "calves": "calf",
    "knives": "knife", "shelves": "shelf", "leaves": "leaf", "loaves": "loaf", "halves": "half",
    "buses": "bus", "skis": "ski",
}  # fmt: skip
_UNCHANGED = {"bus", "scissors", "grass", "glass", "dress", "glasses", "is", "this", "has", "was"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """How text becomes words."""

    tokens: Callable[[str], list[str]]
    singular: Callable[[str], str]
    note: str
    """Which tools these are; shown with the numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nouns:
    """How text becomes noun lemmas, and which two nouns mean the same (AMBER)."""

    lemmas: Callable[[str], list[str]]
    similar: Callable[[str, str], bool]
    note: str


def own_tokens(text: str) -> list[str]:
    """Runs of letters, digits, apostrophes and inner hyphens, and every other sign by itself."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]", text)


def own_singular(word: str) -> str:
    """English singular by ending: `boxes` -> `box`, `cherries` -> `cherry`, `dogs` -> `dog`."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _UNCHANGED or len(word) < 3 or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses", "zes", "oes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


def own_words() -> Words:
    """Needs nothing installed."""
    return Words(tokens=own_tokens, singular=own_singular, note=OWN_NOTE)


def wordnet_words() -> Words:
    """NLTK's tokenizer and WordNet's noun lemmas, as RLAIF-V's script uses them."""
    nltk = _nltk("tokenizers/punkt_tab", "corpora/wordnet")
    lemmatizer = nltk.stem.WordNetLemmatizer()
    return Words(
        tokens=nltk.word_tokenize,
        singular=lemmatizer.lemmatize,
        note=f"words: NLTK {nltk.__version__} tokens and WordNet noun lemmas",
    )


def pattern_words() -> Words:
    """NLTK's tokenizer and pattern's singulariser, as CHAIR's script uses them."""
    nltk = _nltk("tokenizers/punkt_tab")
    try:
        from pattern.en import singularize
    except ImportError:
        raise UserError(
            "CHAIR's original words need the package pattern (pip install pattern), which does not "
            "install everywhere; or give --words wordnet or --words own, which are other words"
        ) from None
    note = f"words: NLTK {nltk.__version__} tokens and pattern's singulariser, as the original"
    return Words(tokens=nltk.word_tokenize, singular=singularize, note=note)


def own_nouns() -> Nouns:
    """Every word counts as a noun, and only equal words are the same."""
    return Nouns(
        lemmas=lambda text: [own_singular(word.lower()) for word in own_tokens(text)],
        similar=lambda first, second: first == second,
        note=OWN_NOTE + " (no tagger: every word may be a noun; no word vectors)",
    )


def tagged_nouns() -> Nouns:
    """NLTK's tagger and WordNet's lemmas; spaCy's vectors, as AMBER's script uses them."""
    nltk = _nltk(
        "tokenizers/punkt_tab", "taggers/averaged_perceptron_tagger_eng", "corpora/wordnet"
    )
    lemmatizer = nltk.stem.WordNetLemmatizer()
    vectors = _vectors()
    known: dict[str, Any] = {}

    def lemmas(text: str) -> list[str]:
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        return [lemmatizer.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]

    def vector(word: str) -> Any:
        if word not in known:
            known[word] = vectors(word)
        return known[word]

    return Nouns(
        lemmas=lemmas,
        similar=lambda first, second: vector(first).similarity(vector(second)) > SIMILARITY,
        note=f"words: NLTK {nltk.__version__} and spaCy en_core_web_lg, as the original",
    )


def choose(name: str, choices: dict[str, Callable[[], Any]], benchmark: str) -> Any:
    """The tools of `--words name`.

    Raises:
        UserError: the benchmark has no such tools, or they are not installed.
    """
    if name not in choices:
        raise UserError(f"--words {name}: {benchmark} has {', '.join(choices)}")
    return choices[name]()


def _nltk(*resources: str) -> Any:
    """NLTK, after a check that its data are there."""
    try:
        import nltk
        import nltk.stem
    except ImportError:
        raise UserError(
            f"the original words need NLTK: {NLTK_INSTALL}; or give --words own, whose numbers are "
            "not comparable with published ones"
        ) from None
    for resource in resources:
        try:
            nltk.data.find(resource)
        except LookupError:
            if _zipped(nltk, resource):
                continue
            name = resource.rpartition("/")[2]
            raise UserError(
                f"NLTK has no {resource}: run `python -m nltk.downloader {name}` where there is a "
                "network, and set NLTK_DATA to its folder here; or give --words own"
            ) from None
    return nltk


def _zipped(nltk: Any, resource: str) -> bool:
    """Corpora are used from their zip archive, which `nltk.data.find` does not look into."""
    try:
        nltk.data.find(f"{resource}.zip")
    except LookupError:
        return False
    return True


def _vectors() -> Any:
    try:
        import spacy

        return spacy.load("en_core_web_lg")
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"AMBER's word similarity needs spaCy with en_core_web_lg ({reason}): {NLTK_INSTALL}, "
            "then install the model's wheel from github.com/explosion/spacy-models; or give "
            "--words own, whose numbers are not comparable with published ones"
        ) from None
