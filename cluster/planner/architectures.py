"""Architectures to plan for: presets by name, or a local folder's `config.json`; never weights.

Every shape is read from the module that transformers builds from the config on the meta device, so
no number of parameters is typed by hand, and nothing is read from the network.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.planner.image_tokens import IMAGE_SIZE, IMAGE_TOKENS
from trainers.data.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

PRESETS = Path(__file__).with_name("presets")
"""`<name>.json` each: what decides shapes, from the config that the model was released with."""

TEXT_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
"""Of the language model; one that a folder leaves out is refused where the family has a number to
put in its place. Towers are not held to this: released configs leave theirs to the family."""

BUILD_ERRORS = (
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    ImportError,
)
"""What modules raise on sizes that do not fit together; torch asserts some of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One trainable tensor of the model."""

    name: str
    """As in the module's `named_parameters()`."""
    shape: tuple[int, ...]
    part: Literal["vision", "language"]
    """Embeddings and `lm_head` are language; tower, projector and image newline are vision."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """One tensor that moves with the module and is not trained."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    """As the module makes it; a later `module.to(torch.bfloat16)` casts floating point ones."""
    persistent: bool
    """Whether checkpoints hold it."""

    @property
    def num_bytes(self) -> int:
        """Bytes in its own dtype."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Shapes of a vision-language model, without weights."""

    name: str
    """Of the preset, or of the folder."""
    family: str
    """`model_type` of the config."""
    config: Any
    """The transformers config object."""
    parameters: tuple[Parameter, ...]
    """In the module's order; a tied tensor stands once, under its first name."""
    buffers: tuple[Buffer, ...]
    """In the module's order, persistent or not."""

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters, tied ones counted once."""
        return sum(parameter.numel for parameter in self.parameters)

    @property
    def text_config(self) -> Any:
        """The language model's part of the config."""
        return self.config.get_text_config()

    @property
    def text_hidden_size(self) -> int:
        """Width of the language model."""
        return int(self.text_config.hidden_size)

    @property
    def text_intermediate_size(self) -> int:
        """Width inside the language model's MLP."""
        return int(self.text_config.intermediate_size)

    @property
    def num_text_layers(self) -> int:
        """Decoder layers of the language model."""
        return int(self.text_config.num_hidden_layers)

    @property
    def num_attention_heads(self) -> int:
        """Query heads of a decoder layer."""
        return int(self.text_config.num_attention_heads)

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads of a decoder layer, as many as query heads without grouping."""
        heads = getattr(self.text_config, "num_key_value_heads", None)
        return int(heads or self.num_attention_heads)

    @property
    def head_dim(self) -> int:
        """Width of a head of the language model."""
        width = getattr(self.text_config, "head_dim", None)
        return int(width or self.text_hidden_size // self.num_attention_heads)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding and of `lm_head`."""
        return int(self.text_config.vocab_size)

    def image_tokens(self, height: int = IMAGE_SIZE[0], width: int = IMAGE_SIZE[1]) -> int:
        """Tokens of the sequence that one image of `height` by `width` pixels becomes.

        As the family's processor in transformers counts them with the settings it was released
        with; the few markers around an image or a tile are not counted. LLaVA-1.5 resizes every
        image to its tower's square: 576 whatever the size. The others depend on the size:
        Qwen2.5-VL makes one token of 28 x 28 pixels (Qwen3-VL 32 x 32) and scales only images of
        under a hundred or over three thousand pixels a side, which this count does not;
        LLaVA-OneVision, InternVL and SmolVLM cut tiles, enlarging a small image first.

        Raises:
            UserError: The family is not one of those above.
        """
        count = IMAGE_TOKENS.get(self.family)
        if count is None:
            raise UserError(
                f"{self.name}: how many tokens a {self.family} model makes of an image is not "
                f"known here, only for {', '.join(sorted(IMAGE_TOKENS))}"
            )
        return count(self.config, height, width)


def preset_names() -> list[str]:
    """Names that `load_architecture` knows."""
    return sorted(path.stem for path in PRESETS.glob("*.json"))


def load_architecture(name_or_folder: str) -> Architecture:
    """Architecture of a preset, or of the model whose `config.json` lies in a local folder.

    Presets come first: a folder of the same name is written `./name`.

    Raises:
        UserError: Neither a preset nor a folder; or the folder's config is missing, is not that of
            a vision-language model, or lacks a size that the planner would have to guess.
    """
    presets = preset_names()
    if name_or_folder.lower() in presets:
        name = name_or_folder.lower()
        source = PRESETS / f"{name}.json"
        config = _config(source)
    else:
        folder = Path(name_or_folder).expanduser()
        if not folder.is_dir():
            wanted = name_or_folder.lower().rpartition("/")[2]
            near = difflib.get_close_matches(wanted, presets, n=2)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UserError(
                f"{name_or_folder!r} is neither a preset nor a folder; {hint}presets: "
                f"{', '.join(presets)}; a local folder with a config.json works too"
            )
        name = folder.resolve().name
        source = folder / "config.json"
        raw = _read(source)
        config = _config(source)
        _check_complete(raw, config, source)
    try:
        return _architecture(name, config)
    except BUILD_ERRORS as error:
        raise UserError(f"{source}: transformers cannot build it ({_one_line(error)})") from None


def meta_model(architecture: Architecture) -> nn.Module:
    """The model on the meta device: shapes in float32, no storage."""
    model: nn.Module = _build(architecture.config)
    return model


def _build(config: Any) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    with _quiet(), torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32)


def _architecture(name: str, config: Any) -> Architecture:
    model = _build(config)
    modules = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    language = {id(each) for module in modules if module for each in module.parameters()}
    if all(id(each) in language for each in model.parameters()):
        raise ValueError("its image tower cannot be told apart from its language model")
    saved = model.state_dict().keys()
    return Architecture(
        name=name,
        family=config.model_type,
        config=config,
        parameters=tuple(
            Parameter(
                name=key,
                shape=tuple(each.shape),
                part="language" if id(each) in language else "vision",
            )
            for key, each in model.named_parameters()
        ),
        buffers=tuple(
            Buffer(name=key, shape=tuple(each.shape), dtype=each.dtype, persistent=key in saved)
            for key, each in model.named_buffers()
        ),
    )


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a folder's `config.json`."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent}: no config.json in this folder; give a Hugging Face model folder or "
            f"one of {', '.join(preset_names())}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({_one_line(error)})") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise UserError(f"{path}: no model_type; is this the config.json of a transformers model?")
    return raw


def _config(path: Path) -> Any:
    """The config object of a file; code that a folder may bring along is never run."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        with _quiet():
            return AutoConfig.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False
            )
    except (ValueError, TypeError, KeyError, OSError, StrictDataclassError) as error:
        raise UserError(f"{path}: transformers cannot read it ({_one_line(error)})") from None


def _check_complete(raw: Mapping[str, Any], config: Any, path: Path) -> None:
    """Refuse what transformers would fill in silently with numbers of some other model."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as VISION_LANGUAGE,
    )

    family = config.model_type
    if family not in VISION_LANGUAGE:
        raise UserError(
            f"{path}: model_type {family!r} is not a vision-language model; the planner needs one "
            f"that answers in text about images"
        )
    if not isinstance(raw.get("vision_config"), dict):
        raise UserError(f"{path}: no vision_config; the planner would have to guess it")
    # Qwen2-VL's and Qwen2.5-VL's released configs have the language model's fields at top level.
    nested = raw.get("text_config")
    given = nested if isinstance(nested, dict) else raw
    text = config.get_text_config()
    for field in TEXT_SIZES:
        names = {field, text.attribute_map.get(field, field)}
        has_default = any(isinstance(getattr(type(text), name, None), int) for name in names)
        if has_default and all(given.get(name) is None for name in names):
            raise UserError(
                f"{path}: no text_config.{field}; the planner would have to guess it: add the "
                f"number (transformers would silently take that of another {family} model)"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings: some are about its own defaults, not about this config."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
