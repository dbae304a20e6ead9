import pytest

from cluster.planner.gpus import GIB, GPUS, find_gpu
from trainers.data.errors import UserError


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("h100", "h100"),
        ("H100", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("rtx 3090", "rtx3090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada"),
        ("AMD Instinct MI300X", "mi300x"),
        ("A10G", "a10"),
    ],
)
def test_names_are_read_as_people_and_drivers_write_them(written, name):
    assert find_gpu(written).name == name


@pytest.mark.parametrize("written", ["80gb", "80", "80 GB", "80G"])
def test_a_size_is_the_smallest_card_sold_with_it(written):
    assert find_gpu(written).memory_bytes == int(79.1 * GIB)
    assert find_gpu(written).name == "80gb"
    # 24 GB: an L4 keeps 21.9 GiB, an RTX 4090 23.5 GiB.
    assert find_gpu("24gb").memory_bytes == find_gpu("l4").memory_bytes


def test_a_size_that_no_card_has_is_taken_at_its_word():
    assert find_gpu("64gb").memory_bytes == 64_000_000_000
    with pytest.raises(UserError, match="at least 1 GB"):
        find_gpu("0gb")


def test_no_name_means_two_cards():
    from cluster.planner.gpus import _key

    keys = [_key(word) for gpu in GPUS for word in {gpu.name, *gpu.aliases}]
    assert len(keys) == len(set(keys))


def test_memory_is_below_what_the_card_is_sold_as():
    for gpu in GPUS:
        assert 0.9 * gpu.marketed_gb * GIB < gpu.memory_bytes < gpu.marketed_gb * GIB


def test_unknown_cards_get_the_nearest():
    with pytest.raises(UserError, match=r"unknown GPU 'h1000'; did you mean h100"):
        find_gpu("h1000")
    # Two sizes were sold under this name.
    with pytest.raises(UserError, match=r"a100-40 or a100-80|a100-80 or a100-40"):
        find_gpu("a100")
    with pytest.raises(UserError, match=r"known: rtx4090, .*or a size such as 80gb"):
        find_gpu("abacus")
