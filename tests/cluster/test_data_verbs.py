"""`quartet data inspect` and `convert`: what they print and write, and what they refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from cluster.cli import main
from cluster.inspect_terminal import half_blocks, id_text, token_text
from trainers.data.datasets import load_samples
from trainers.data.images import ImageStore
from trainers.data.pieces import Piece, pieces
from trainers.data.record_file import read_records
from trainers.data.records import Sample, Turn
from trainers.data.show_text import visible


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (72, 48), (200, 30, 30)).save(tmp_path / "red.png")
    return tmp_path


def rows(number: int = 20) -> list[dict[str, Any]]:
    return [
        {
            "id": f"p{i}",
            "image": "red.png",
            "prompt": "describe the image .",
            "chosen": "a red circle .",
            "rejected": "a blue square .",
            "chosen_reason": "right \x1b[2J colour",
            "rejected_reason": "wrong <b>shape</b>",
            "ls_factor": 0.5,
        }
        for i in range(number)
    ]


def write(home: Path, content: list[dict[str, Any]]) -> str:
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return "pairs.jsonl"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["data", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("quartet: ")
    return lines[0]


def test_inspect_shows_counts_lengths_and_masks(home, tiny_model, capsys):
    content = rows()
    content[4]["prompt"] = " "
    content[7]["prompt"] = "describe the image . " * 10
    words = ["inspect", write(home, content), "--model", tiny_model, "-n", "2"]
    assert main(["data", *words, "--max-model-len", "100", "--html", "out.html"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("pairs.jsonl: MM-RLHF JSONL, 19 samples (19 with images, 1 different")
    assert "  dropped: row 5: prompt is empty" in out
    # 72x48 is drawn on 64x64: 16 placeholders; user : ... assistant : are 4, the text has 4
    assert "prompt tokens: 50 % 24, 90 % 24, 99 % 60, longest 60" in out
    assert "chosen tokens: 50 % 4, 90 % 4, 99 % 4, longest 4" in out
    assert "1 of 19 prompts would be dropped at --max-model-len 100 with --max-tokens 64" in out
    assert re.findall(r"--- (.*) ---", out) == ["p0#1", "p10#11"]
    assert out.count("image 72x48, ") == 2
    assert "prompt and chosen: 29 tokens, 5 of them targets in [[ ]]" in out
    assert "<image>x16 describe the image . assistant : [[a red circle . </s>]]" in out
    assert "\x1b" not in out and "right \\x1b[2J colour" in out
    assert "\u2580" not in out  # no picture where there are no colours

    page = (home / "out.html").read_text()
    assert page.count('<img alt="" src="data:image/png;base64,') == 2
    assert page.count('class="token target"') == 2 * (5 + 5) + 1  # and one in the legend
    assert "wrong &lt;b&gt;shape&lt;/b&gt;" in page and "<b>shape" not in page
    assert "default-src 'none'" in page and "<script" not in page


def test_inspect_needs_no_model(home, capsys):
    content = rows(2)
    content[1]["chosen"] = "an unheard-of word"
    content[1]["image"] = content[0]["image"] = None
    assert main(["data", "inspect", write(home, content)]) == 0
    out = capsys.readouterr().out
    assert "tokens of the built-in processor; give --model for yours" in out
    assert "no tokens: row p1#2: <unk> among the target tokens" in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["inspect", "none.jsonl"], "none.jsonl: no such file"),
        (["inspect", "bad.jsonl"], "no row can be used"),
        (["inspect", "pairs.jsonl", "--format", "llava"], "no row can be used"),
        (["inspect", "pairs.jsonl", "--model", "nowhere"], "nowhere: no config.json"),
        (["convert", "pairs.jsonl", "out.csv"], "out.csv: the suffix is '.csv'; use .parquet or"),
        (["convert", "pairs.jsonl", "out.parquet", "--to", "msgpack"], "use .msgpack"),
        (["convert", "pairs.jsonl", "pairs.jsonl"], "the suffix is '.jsonl'"),
        (["convert", "bad.jsonl", "out.parquet"], "2 of 2 rows cannot be used, more than 5%"),
        (["convert", "there.parquet", "there.parquet"], "there.parquet: exists; remove it"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(words, part, home, capsys):
    write(home, rows(3))
    (home / "bad.jsonl").write_text('{"prompt": " "}\n' * 2)
    (home / "there.parquet").touch()
    before = set(home.iterdir())
    assert part in refused(capsys, *words)
    assert set(home.iterdir()) == before


def test_convert_both_ways_gives_equal_samples(home, capsys):
    content = rows()
    content[3]["image"] = "none.png"
    expected = load_samples(write(home, content), ImageStore(home / "store")).samples
    assert main(["data", "convert", "pairs.jsonl", "new/out.parquet"]) == 0
    out = capsys.readouterr().out
    assert "dropped: row 4: " in out and "none.png: no such image file" in out
    assert "new/out.parquet: 19 samples, " in out
    again = load_samples("new/out.parquet", ImageStore(home / "again"))
    assert again.samples == expected
    assert main(["data", "convert", "new/out.parquet", "records/out.msgpack"]) == 0
    assert read_records("records/out.msgpack").records == expected
    image = ImageStore(home / "records" / "images").get(expected[0].images[0])
    assert image.size == (72, 48)
    assert sorted(path.name for path in (home / "new").iterdir()) == ["out.parquet"]


def test_pieces_count_placeholders_and_keep_targets_apart(processing, store):
    picture = store.put_image(Image.new("RGB", (64, 64)))
    prompt = (Turn(role="user", text="describe the image .", num_images=1),)
    sample = Sample(id="s", prompt=prompt, images=(picture,))
    found = pieces(processing, sample, "a a red circle .")
    assert [(p.text, p.count) for p in found if p.text == "<image>"] == [("<image>", 16)]
    assert [p.text for p in found if p.is_target] == ["a", "a", "red", "circle", ".", "</s>"]
    asked = pieces(processing, sample, None)
    assert not any(piece.is_target for piece in asked)
    assert [p.token for p in asked] == [p.token for p in found[: len(asked)]]


def test_tokens_on_a_terminal():
    found = [Piece(4, "<image>", False, 16), Piece(7, "a\x07", True), Piece(7, "b", True)]
    assert token_text(found).plain == "<image>x16 [[a\\x07 b]] "
    assert id_text(found).plain == "ids 4x16 7 7 "


def test_picture_in_half_blocks(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    picture = Image.new("RGB", (2, 2), (255, 0, 0))
    picture.putpixel((0, 1), (0, 0, 255))
    console = Console(force_terminal=True, color_system="truecolor", width=60)
    with console.capture() as capture:
        console.print(half_blocks(picture.resize((48, 40), Image.Resampling.NEAREST)))
    lines = capture.get().splitlines()
    assert len(lines) == 20 and all(line.count("\u2580") == 48 for line in lines)
    assert lines[0].startswith("\x1b[38;2;255;0;0;48;2;255;0;0m\u2580")
    assert lines[-1].startswith("\x1b[38;2;0;0;255;48;2;0;0;255m\u2580")
    wide = half_blocks(Image.new("RGB", (1000, 1)))
    assert wide.plain == "\u2580" * 48


def test_control_characters_are_shown_not_obeyed():
    assert visible("a\x1b[31m\r\nb\u202ec\ud800") == "a\\x1b[31m\\x0d\nb\\u202ec\\ud800"
    assert visible("caf\u00e9 \u732b") == "caf\u00e9 \u732b"


def test_help_of_data_loads_nothing_heavy():
    code = (
        "import sys\nfrom cluster.cli import main\n"
        "try:\n    main(['data', 'inspect', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'ray', 'pyarrow', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
