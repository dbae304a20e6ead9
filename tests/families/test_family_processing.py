"""What every family's processor makes of a conversation, through the one code path."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.families.builders import BUILDERS
from tests.families.folders import VISION_HIDDEN
from trainers.batch import Row, collate, encode_row
from trainers.data.errors import UserError
from trainers.data.model_folder import FAMILIES
from trainers.data.processing import Processing
from trainers.data.records import Turn

MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def test_every_supported_family_is_tested():
    assert set(FAMILIES) <= set(BUILDERS)


@pytest.mark.parametrize("family", BUILDERS)
def test_tokens_are_the_processors_own(processing_of, prompts, family):
    processing = processing_of(family)
    for sample in prompts:
        encoded = processing.encode(sample.id, sample.prompt, sample.images, response_ids=())
        full = processing.processor(
            text=processing.chat_text(sample.prompt, add_generation_prompt=True),
            images=processing.images(sample.images) or None,
            return_tensors="pt",
        )
        assert encoded.input_ids.tolist() == full["input_ids"][0].tolist()
        named = {name for name in full if name.startswith(("pixel", "image"))}
        assert named <= set(encoded.model_inputs)
        if len(sample.images) == 1:
            for name in named:
                torch.testing.assert_close(encoded.model_inputs[name], full[name])


@pytest.mark.parametrize("family", BUILDERS)
def test_placeholders_and_marks_are_banned(processing_of, family):
    processing = processing_of(family)
    banned = set(processing.banned_ids())
    marks = {token for token in processing.tokenizer.get_vocab() if "<" in token and ">" in token}
    ids = set(processing.tokenizer.convert_tokens_to_ids(sorted(marks)))
    assert processing.image_token_id in banned and processing.eos_id not in banned
    assert ids - {processing.eos_id} <= banned
    # and the rows of the embedding that stand for no token
    assert set(range(len(processing.tokenizer), processing.vocab_size)) <= banned
    with pytest.raises(ValueError, match=r"row r7: .* among the target tokens"):
        processing.encode(
            "r7",
            (Turn(role="user", text="What?"),),
            (),
            response_ids=(processing.image_token_id,),
        )


@pytest.mark.parametrize("family", BUILDERS)
def test_a_placeholder_in_the_text_names_the_row(processing_of, prompts, family):
    processing = processing_of(family)
    text = f"What is {processing.processor.image_token}?"
    with pytest.raises(ValueError, match="row r7: 2 image placeholders, 1 images"):
        processing.encode(
            "r7",
            (Turn(role="user", text=text, num_images=1),),
            prompts[0].images,
            response_ids=(),
        )


@pytest.mark.parametrize("family", BUILDERS)
def test_only_the_assistants_words_are_targets(processing_of, prompts, family):
    processing = processing_of(family)
    turns = (
        Turn(role="user", text="What do you see?", num_images=1),
        Turn(role="assistant", text="a red circle"),
        Turn(role="user", text="Is there a blue square?"),
        Turn(role="assistant", text="No."),
    )
    encoded = processing.encode("r", (), prompts[1].images, turns=turns)
    targets = processing.tokenizer.decode(encoded.input_ids[encoded.target_mask])
    eos = processing.tokenizer.eos_token
    assert targets.replace(" ", "") == f"aredcircle{eos}No.{eos}"


@pytest.mark.parametrize("family", MROPE)
def test_mrope_positions_go_on_after_the_image(processing_of, tiny_folder, prompts, family):
    from actors.modules import load_vlm

    processing = processing_of(family)
    row = Row.of_response(prompts[0], (100, 101, 102), "r")
    batch = collate([row], [encode_row(row, processing)], processing)
    positions, _ = load_vlm(tiny_folder(family)).model.get_rope_index(
        batch.input_ids_BT,
        mm_token_type_ids=batch.token_inputs["mm_token_type_ids"],
        image_grid_thw=batch.model_inputs["image_grid_thw"],
        attention_mask=batch.attention_mask_BT,
    )
    # 64 x 64 pixels in patches of 16, four to a token: a 2 x 2 image of 4 tokens, which takes 2
    # positions. Text counts on from there, all three axes alike, and so does the response.
    length = batch.input_ids_BT.shape[1]
    assert int((batch.input_ids_BT == processing.image_token_id).sum()) == 4
    assert positions[:, 0, -3:].tolist() == [[length - 5, length - 4, length - 3]] * 3


@pytest.mark.parametrize("family", BUILDERS)
def test_image_sizes_matter_where_the_family_looks_at_them(processing_of, family):
    assert processing_of(family).images_are_alike() == (family == "llava")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3"])
def test_a_rank_without_images_runs_the_tower_and_nothing_changes(
    processing_of, tiny_folder, prompts, family
):
    from actors.modules import PolicyModule, load_vlm
    from actors.spare_image import run_tower_always

    processing = processing_of(family)
    row = Row.of_response(prompts[3], (100, 101, 102), "text alone")
    batch = collate([row], [encode_row(row, processing)], processing)
    values = []
    for ranks in (1, 2):
        vlm = load_vlm(tiny_folder(family))
        run_tower_always(vlm, tiny_folder(family), ranks)
        module = PolicyModule(vlm, banned_ids=[])
        values.append(module(batch).logprobs_BR)
    torch.testing.assert_close(*values, atol=1e-5, rtol=0)
    values[1].sum().backward()
    tower = [p for name, p in vlm.named_parameters() if "vision" in name or "visual" in name]
    assert all(p.grad is not None and not p.grad.any() for p in tower if p.grad is not None)
    assert any(p.grad is not None for p in tower)


# What is refused ------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder("qwen2_5_vl"), tmp_path / "model"))


def refused(folder: Path, pictures, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        Processing(folder, pictures)
    line = str(caught.value)
    assert "\n" not in line and str(folder) in line
    for part in (*parts, "families that work: llava, llava_next"):
        assert part in line


def test_a_folder_without_a_chat_template(folder, pictures):
    (folder / "chat_template.jinja").unlink()
    refused(folder, pictures, "(qwen2_5_vl)", "no chat template")


def test_a_tokenizer_without_the_placeholder(folder, pictures):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = folder / name
        file.write_text(file.read_text().replace("<|image_pad|>", "<|picture|>"))
    config = folder / "processor_config.json"
    config.write_text(config.read_text().replace("<|picture|>", "<|image_pad|>"))
    tokenizer = folder / "tokenizer_config.json"
    lines = [line for line in tokenizer.read_text().splitlines() if '"image_token"' not in line]
    tokenizer.write_text("\n".join(lines))
    refused(folder, pictures, "no token '<|image_pad|>'")


def test_a_config_that_names_a_token_which_is_not_there(folder, pictures):
    config = folder / "config.json"
    text = config.read_text()
    number = Processing(folder, pictures).image_token_id
    config.write_text(text.replace(f'"image_token_id": {number}', '"image_token_id": 9999'))
    refused(folder, pictures, "token 9999")


def test_a_processor_that_does_not_fit_its_model_names_the_row(processing_of, prompts, tiny_folder):
    from contextlib import nullcontext

    from actors.micro_batches import Forwards
    from actors.modules import PolicyModule, load_vlm
    from actors.scoring import score_rows

    for family in ("llava", "idefics3"):
        processing = Processing(tiny_folder(family), processing_of(family).store)
        settings = processing.processor
        if family == "llava":
            settings.num_additional_image_tokens = 0  # one token fewer than the tower's features
        else:
            settings.image_seq_len = 3  # of 4
        vlm = load_vlm(tiny_folder(family))
        assert vlm.config.vision_config.hidden_size == VISION_HIDDEN
        rows = [Row.of_response(sample, (100,), f"row-{sample.id}") for sample in prompts[2:4]]
        with (
            pytest.raises(ValueError, match=r"^row row-high: .* differ in number"),
            torch.no_grad(),
        ):
            score_rows(
                PolicyModule(vlm, banned_ids=[]),
                processing,
                rows,
                Forwards(rows=8),
                torch.device("cpu"),
                lambda _: nullcontext(),
            )
