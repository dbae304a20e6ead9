"""How many tokens of the sequence one image becomes, by family, as the processors count them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

IMAGE_SIZE = (480, 640)
"""Height and width in pixels of the usual COCO photograph, which most VLM data is made of."""


def _llava(config: Any, _height: int, _width: int) -> int:
    """Patches of the tower's square; a class token stands before them where the tower is CLIP."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    class_tokens = 1 if vision.model_type == "clip_vision_model" else 0
    dropped = 1 if config.vision_feature_select_strategy == "default" else 0
    return int(patches + class_tokens - dropped)


def _qwen(config: Any, height: int, width: int) -> int:
    """Squares of merged patches, the image resized to whole ones."""
    side = config.vision_config.patch_size * config.vision_config.spatial_merge_size
    return int(max(1, round(height / side)) * max(1, round(width / side)))


def _llava_onevision(config: Any, height: int, width: int) -> int:
    """The whole image in one tile, then at the best grid of tiles without its padding."""
    tile = config.vision_config.image_size
    side = tile // config.vision_config.patch_size

    def fit(grid: tuple[int, int]) -> tuple[int, int]:
        scale = min(grid[0] / height, grid[1] / width)
        used = min(int(height * scale) * int(width * scale), height * width)
        return used, used - grid[0] * grid[1]

    grid = max(config.image_grid_pinpoints, key=fit)
    rows, columns = side * (grid[0] // tile), side * (grid[1] // tile)
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    most_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    shrink = math.sqrt(rows * columns / (most_tiles * side**2))
    if shrink > 1.1:
        rows, columns = int(rows // shrink), int(columns // shrink)
    return int(rows * columns + rows + side**2)  # a newline ends every row


def _internvl(config: Any, height: int, width: int, most_tiles: int = 12) -> int:
    """Tiles in the grid nearest to the aspect ratio, and the whole image in one more."""
    tile_area = math.prod(config.vision_config.image_size)
    sides = range(1, most_tiles + 1)
    grids = [(rows, columns) for rows in sides for columns in sides if rows * columns <= most_tiles]

    def distance(grid: tuple[int, int]) -> tuple[float, int]:
        tiles = grid[0] * grid[1]
        # Of grids of one shape: the largest of under twice the image's area, else the smallest.
        order = -tiles if height * width > 0.5 * tile_area * tiles else tiles
        return abs(width / height - grid[1] / grid[0]), order

    rows, columns = min(grids, key=distance)
    tiles = rows * columns
    return int((tiles + 1 if tiles > 1 else 1) * config.image_seq_length)


def _smolvlm(config: Any, height: int, width: int) -> int:
    """Tiles of the image enlarged to four along its longer side, and the whole image in one."""
    tile = config.vision_config.image_size
    shorter = int(4 * tile * min(height, width) / max(height, width))
    shorter += shorter % 2
    tiles = 4 * max(1, math.ceil(shorter / tile)) + 1
    return int(tiles * (tile // config.vision_config.patch_size) ** 2 // config.scale_factor**2)


IMAGE_TOKENS: dict[str, Callable[[Any, int, int], int]] = {
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
    "internvl": _internvl,
    "idefics3": _smolvlm,
    "smolvlm": _smolvlm,
}
"""`model_type` -> tokens of one image, from (config, height, width in pixels)."""


def patches_per_token(config: Any) -> int:
    """Patches of the vision tower that one token of the sequence stands for."""
    vision = config.vision_config
    merge = getattr(vision, "spatial_merge_size", None) or getattr(config, "scale_factor", None)
    if merge is None:
        merge = 1 / getattr(config, "downsample_ratio", 1)
    return round(merge**2)
