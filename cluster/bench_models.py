"""What `quartet bench memory` can be given: built-in sizes, presets, folders.

Presets, and folders that hold a `config.json` alone, become folders with random weights and a
stand-in for the released processor: shapes and number of words are the architecture's, the words
themselves are not. Each image is one tile (SmolVLM's released processor cuts up to 17).
"""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from cluster.planner.architectures import (
    Architecture,
    load_architecture,
    preset_names,
)
from trainers.data.drawn_model import (
    CHAT_TEMPLATE,
    WORDS,
    build_model,
    build_processor,
    save_pretrained_folder,
)
from trainers.data.errors import UserError
from trainers.data.model_folder import check_model_folder

SIZES = {"drawn": 1, "drawn-wide": 3}
"""Built-in models: the drawn world's LLaVA, and one three times as wide."""
IMAGE = "<image>"
TILE_MARKS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
"""What Idefics3 and SmolVLM write around an image and after a turn."""


@dataclass(slots=True)
class BenchModel:
    """A model that is measured; presets have weights only once one of their cells fits."""

    name: str
    architecture: Architecture
    folder: Path
    has_weights: bool

    def build(self, dtype: torch.dtype) -> None:
        """Write random weights in `dtype`, if there are none.

        Raises:
            UserError: the disk of the temporary folder has no room for them.
        """
        if self.has_weights:
            return
        size = self.architecture.num_parameters * dtype.itemsize
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise UserError(
                f"--models {self.name}: its weights need {size / 1e9:.1f} GB in "
                f"{self.folder.parent}, {free / 1e9:.1f} are free; set TMPDIR to a larger disk"
            )
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(self.architecture.config, dtype=dtype)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.folder)
        let_end(model, int(tokenizer.eos_token_id))
        state = {_released_name(name): tensor for name, tensor in model.state_dict().items()}
        model.save_pretrained(self.folder, state_dict=state)
        self.has_weights = True


def let_end(model: Any, eos_id: int) -> None:
    """Let some answers of random weights end: as one word of tens of thousands EOS never comes.

    A head's row of length s gives logits of standard deviation s, for states that a final norm has
    brought to length sqrt(H) and that point anywhere. At s = 1 + log(V) / 2 EOS is the likeliest
    word, e^z > V, where z is some two deviations out: at one place in thirty or fifty.
    """
    row = model.get_output_embeddings().weight.data[eos_id]
    row.mul_((1 + math.log(model.config.get_text_config().vocab_size) / 2) / row.norm())


def _released_name(name: str) -> str:
    """Puts back the level `vision_model.` that released CLIP towers have, and vLLM looks for."""
    if "vision_tower." not in name or "vision_tower.vision_model." in name:
        return name
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def check_name(name: str) -> None:
    """Refuse a name that `find_model` cannot serve, before anything is built.

    Raises:
        UserError: not a built-in model, a preset or a folder; or a family that cannot be fed.
    """
    if name in SIZES:
        return
    if not _is_preset(name) and not (Path(name) / "config.json").is_file():
        raise UserError(
            f"--models {name}: neither {', '.join(SIZES)} nor a model folder nor a preset; "
            f"presets: {', '.join(preset_names())}"
        )
    if not _is_bare(name):
        check_model_folder(name)
        return
    family = load_architecture(name).family
    if family not in PROCESSORS:
        raise UserError(
            f"--models {name}: a {family} model cannot be fed without its own processor, nor are "
            f"folders with it supported yet; give a preset or folder of {', '.join(PROCESSORS)}"
        )


def find_model(name: str, folder: Path) -> BenchModel:
    """The model of a checked name; what is built lies below `folder`."""
    path = Path(name)
    if name in SIZES:
        path = folder / name
        save_pretrained_folder(widened(SIZES[name]), build_processor(), path)
    elif _is_bare(name):
        path = Path(tempfile.mkdtemp(dir=folder))
        architecture = load_architecture(name)
        architecture.config.save_pretrained(path)
        PROCESSORS[architecture.family](architecture.config).save_pretrained(path)
        return BenchModel(name, architecture, path, has_weights=False)
    return BenchModel(name, load_architecture(str(path)), path, has_weights=True)


def _is_preset(name: str) -> bool:
    return name.lower() in preset_names()


def _is_bare(name: str) -> bool:
    """A preset, or a folder that holds nothing of a model but its config."""
    own = ("*processor*.json", "tokenizer*", "*.safetensors*")
    return _is_preset(name) or not any(any(Path(name).glob(pattern)) for pattern in own)


def widened(factor: int) -> Any:
    """The drawn world's architecture, that many times as wide, with random weights."""
    model = build_model(0)
    if factor == 1:
        return model
    config = model.config
    for part in (config.vision_config, config.text_config):
        part.hidden_size *= factor
        part.intermediate_size *= factor
        if hasattr(part, "head_dim"):
            part.head_dim = part.hidden_size // part.num_attention_heads
    return type(model)(config)


def _tokenizer(
    config: Any,
    marks: tuple[str, ...] = (),
    fixed: dict[str, int] | None = None,
    names: dict[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """The drawn world's words, then numbered ones, until every row of the embedding is a token;
    image and padding token where the config has them, as it has the `fixed` ones.
    """
    text = config.get_text_config()
    vocabulary = fixed or {IMAGE: int(config.image_token_id)}
    pad = getattr(text, "pad_token_id", None)
    if pad is not None and 0 <= pad < text.vocab_size:
        vocabulary["<pad>"] = int(pad)
    words = dict.fromkeys(("<pad>", "</s>", "<s>", "<unk>", *marks, *WORDS))
    missing = [word for word in words if word not in vocabulary]
    missing += [f"w{number}" for number in range(text.vocab_size)]
    taken = set(vocabulary.values())
    free = (index for index in range(text.vocab_size) if index not in taken)
    vocabulary.update((word, index) for index, word in zip(free, missing, strict=False))
    # An empty mapping would take the place of the list.
    named = {"extra_special_tokens": names} if names else {}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        additional_special_tokens=[*(fixed or (IMAGE,)), *marks],
        padding_side="right",
        **named,
    )


def _llava(config: Any) -> LlavaProcessor:
    """Images are resized to the tower's square."""
    side = config.vision_config.image_size
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            do_resize=True, size={"height": side, "width": side}, do_center_crop=False
        ),
        tokenizer=_tokenizer(config),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        # A class token stands before the patches where the tower is CLIP.
        num_additional_image_tokens=int(config.vision_config.model_type == "clip_vision_model"),
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def _smolvlm(config: Any) -> Idefics3Processor:
    """Idefics3's processor, of which SmolVLM's is a copy that knows videos, too."""
    vision = config.vision_config
    side = {"longest_edge": vision.image_size}
    return Idefics3Processor(
        image_processor=Idefics3ImageProcessor(
            do_image_splitting=False, size=side, max_image_size=side
        ),
        tokenizer=_tokenizer(config, TILE_MARKS),
        image_seq_len=(vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2,
        chat_template=CHAT_TEMPLATE,
    )


def _qwen2_5_vl(config: Any) -> Qwen2_5_VLProcessor:
    """Images are resized to some `QWEN_TOKENS` squares of merged patches, as a photograph has; the
    released processor keeps their own size.
    """
    vision = config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    edges = dict.fromkeys(("shortest_edge", "longest_edge"), QWEN_TOKENS * side**2)
    sizes = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "size": edges,
    }
    names = {f"{kind}_token": mark for kind, mark in QWEN_MARKS.items()}
    fixed = {mark: int(getattr(config, f"{kind}_token_id")) for kind, mark in QWEN_MARKS.items()}
    image = "".join(QWEN_MARKS[kind] + " " for kind in ("vision_start", "image", "vision_end"))
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes),
        _tokenizer(config, fixed=fixed, names=names),
        Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE.replace(f"{IMAGE} ", image),
    )


QWEN_MARKS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
QWEN_TOKENS = 391
"""Of an image of 640 x 480 pixels, as the planner counts them."""
PROCESSORS = {"llava": _llava, "smolvlm": _smolvlm, "qwen2_5_vl": _qwen2_5_vl}
"""`model_type` -> what makes a processor that a model of this config can be fed with."""
