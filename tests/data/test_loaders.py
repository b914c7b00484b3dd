"""Which sample comes when: one stream for any number of workers, processes and micro batches, and from any step on."""

import gc
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from launching import ROOT
from PIL import Image
from torchvision.transforms.v2 import functional as F

from benchmark.data.loaders import evaluation_loader, training_loader
from benchmark.data.step_plan import StepPlan, sample_index
from benchmark.errors import UserError

CROP_SIZE = (32, 48)
COUNT = 5


def encode(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_split(folder: Path, count: int = COUNT, broken: int | None = None) -> datasets.Dataset:
    """A prepared split of images of various sizes, with image `broken` cut off."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        height, width = rng.integers(20, 90, 2)
        image = encode(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        if index == broken:
            image["bytes"] = image["bytes"][:100]
        image["path"] = f"{index}.png"
        rows.append({"image": image, "annotation": encode(rng.integers(0, 9, (height, width), dtype=np.uint8))})
    undecoded = datasets.Image(decode=False)
    features = datasets.Features({"image": undecoded, "annotation": undecoded})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(folder))
    return datasets.load_from_disk(str(folder))


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> datasets.Dataset:
    return make_split(tmp_path_factory.mktemp("data") / "split")


def training_batches(split, **options) -> list[dict]:
    plan = StepPlan(4, options.pop("world_size", 1), options.pop("micro_batch_size", 2))
    settings = {"plan": plan, "rank": 0, "start_step": 0, "steps": 4}
    settings |= {"crop_size": CROP_SIZE, "seed": 7, "num_workers": 0}
    return list(training_loader(split, **(settings | options)))


def stream(batches: list[dict]) -> dict[int, dict]:
    """Each sample by its position in the training stream."""
    samples = {}
    for batch in batches:
        for index, position in enumerate(batch["positions"].tolist()):
            assert position not in samples
            samples[position] = {key: value[index] for key, value in batch.items()}
    return samples


def assert_same(first: dict[int, dict], second: dict[int, dict]) -> None:
    assert first.keys() == second.keys()
    for position, sample in first.items():
        for key, value in sample.items():
            assert torch.equal(value, second[position][key]), (position, key)


@pytest.fixture(scope="module")
def expected(split) -> dict[int, dict]:
    samples = stream(training_batches(split))
    assert list(samples) == list(range(16))
    return samples


def test_batches_hold_what_the_device_needs(split):
    for batch in training_batches(split):
        assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
            "pixel_values": (torch.uint8, (2, 3, *CROP_SIZE)),
            "labels": (torch.uint8, (2, *CROP_SIZE)),
            "positions": (torch.int64, (2,)),
            "jitter": (torch.float32, (2, 5)),
            "thumbnails": (torch.uint8, (2, 3, 64, 64)),
            "sizes": (torch.int64, (2, 2)),
        }


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than the machine has cores
@pytest.mark.parametrize("num_workers", [1, 4])
def test_workers_change_no_sample(split, expected, num_workers):
    batches = training_batches(split, num_workers=num_workers)
    assert list(stream(batches)) == list(range(16))  # and not their order
    assert_same(stream(batches), expected)


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_micro_batches_change_no_sample(split, expected, micro_batch_size):
    assert_same(stream(training_batches(split, micro_batch_size=micro_batch_size)), expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_processes_share_each_step_of_the_same_stream(split, expected, num_workers):
    ranks = [
        training_batches(split, rank=rank, world_size=2, micro_batch_size=1, num_workers=num_workers) for rank in (0, 1)
    ]
    assert_same(stream(ranks[0] + ranks[1]), expected)
    for batches, offset in zip(ranks, (0, 2), strict=True):
        positions = torch.cat([batch["positions"] for batch in batches]).view(4, 2)
        assert torch.equal(positions, 4 * torch.arange(4)[:, None] + offset + torch.arange(2))


def test_a_later_start_gives_the_rest_of_the_stream(split, expected):
    rest = stream(training_batches(split, start_step=3))
    assert_same(rest, {position: expected[position] for position in range(12, 16)})


def test_seeds_give_other_samples(split, expected):
    other = stream(training_batches(split, seed=8))
    assert not any(torch.equal(other[position]["jitter"], expected[position]["jitter"]) for position in expected)


def test_a_loader_has_the_micro_batches_of_its_steps(split):
    options = {"crop_size": CROP_SIZE, "seed": 0, "plan": StepPlan(4, 2, 1), "rank": 1}
    batches = list(training_loader(split, **options, steps=5, start_step=2, num_workers=1))
    assert len(batches) == 6


def test_loading_leaves_the_global_generator_alone(split):
    before = torch.get_rng_state()
    training_batches(split)
    list(evaluation_loader(split, crop_size=CROP_SIZE, rank=0, world_size=1, num_workers=0))
    assert torch.equal(torch.get_rng_state(), before)


def test_stream_is_one_permutation_after_another():
    epochs = np.array([sample_index(position, 50, seed=3) for position in range(200)]).reshape(4, 50)
    assert (np.sort(epochs) == np.arange(50)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert sample_index(123, 50, seed=3) == epochs[2, 23]
    assert [sample_index(position, 50, seed=4) for position in range(50)] != epochs[0].tolist()


@pytest.mark.parametrize(
    ("global_batch_size", "world_size", "most", "expected"),
    [
        (16, 1, 16, (16, 1)),
        (16, 1, 100, (16, 1)),
        (16, 1, 5, (4, 4)),
        (12, 2, 5, (3, 2)),
        (7, 1, 6, (1, 7)),
        (16, 16, 4, (1, 1)),
    ],
)
def test_micro_batch_is_the_largest_divisor(global_batch_size, world_size, most, expected):
    plan = StepPlan.fit(global_batch_size, world_size, most)
    assert (plan.micro_batch_size, plan.accumulation) == expected


@pytest.mark.parametrize(
    ("global_batch_size", "world_size", "message"),
    [(4, 8, "8 processes cannot share a step of 4 images"), (16, 3, "16 does not divide by 3 processes")],
)
def test_a_step_that_cannot_be_shared_is_one_sentence(global_batch_size, world_size, message):
    with pytest.raises(UserError, match=message) as error:
        StepPlan.fit(global_batch_size, world_size, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_takes_each_image_once(split, world_size):
    indices = []
    for rank in range(world_size):
        loader = evaluation_loader(split, crop_size=CROP_SIZE, rank=rank, world_size=world_size, num_workers=0)
        indices += [item["index"] for item in loader]
    assert sorted(indices) == list(range(COUNT))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_images_just_cover_the_crop(split, num_workers):
    loader = evaluation_loader(split, crop_size=CROP_SIZE, rank=0, world_size=1, num_workers=num_workers)
    for item in loader:
        image, label = (
            np.array(Image.open(io.BytesIO(split[item["index"]][key]["bytes"]))) for key in ("image", "annotation")
        )
        height, width = label.shape
        factor = max(CROP_SIZE[0] / height, CROP_SIZE[1] / width)
        size = [round(height * factor), round(width * factor)]
        expected = F.resize(torch.tensor(image).permute(2, 0, 1), size, antialias=True)
        assert torch.equal(item["pixel_values"], expected)
        assert np.array_equal(item["labels"].numpy(), label)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_one_sentence_that_names_it(tmp_path, num_workers):
    split = make_split(tmp_path / "split", broken=3)
    evaluation = evaluation_loader(split, crop_size=CROP_SIZE, rank=0, world_size=1, num_workers=num_workers)
    for load in (lambda: training_batches(split, num_workers=num_workers), lambda: list(evaluation)):
        with pytest.raises(UserError) as error:
            load()
        assert str(error.value).startswith(f"The image or annotation of 3.png, row 3 of {tmp_path / 'split'}, cannot")
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads a process's memory from Linux's /proc")
def test_memory_of_a_worker_stays_flat_over_10_000_samples(tmp_path):
    split = make_split(tmp_path / "split", count=50)
    options = {"plan": StepPlan(10, 1, 10), "rank": 0, "start_step": 0, "steps": 1000}
    batches = training_loader(split, crop_size=(256, 256), seed=0, num_workers=1, **options)
    next(batches)
    (worker,) = (process.pid for process in multiprocessing.active_children())

    def resident_mib(process: int) -> float:
        gc.collect()
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    for _ in range(99):
        next(batches)
    before = resident_mib(worker), resident_mib(os.getpid())
    for _ in range(900):
        next(batches)
    after = resident_mib(worker), resident_mib(os.getpid())
    assert after[0] - before[0] < 16, (before, after)
    assert after[1] - before[1] < 16, (before, after)


def test_a_row_whose_bytes_changed_is_not_decoded(tmp_path):
    """A flipped bit may crash a decoder, or give other pixels silently."""
    from data_scripts.images import checksum

    rows = make_split(tmp_path / "split").to_list()
    for row in rows:
        row["checksum"] = checksum(row["image"]["bytes"], row["annotation"]["bytes"])
    data = bytearray(rows[2]["annotation"]["bytes"])
    data[len(data) // 2] ^= 1
    rows[2]["annotation"]["bytes"] = bytes(data)
    for load in (lambda: training_batches(rows), lambda: list(evaluation_loader(rows, **EVALUATION))):
        with pytest.raises(UserError, match=r"2\.png, row 2 of .* \(its checksum differs\): remove that folder"):
            load()


EVALUATION = {"crop_size": CROP_SIZE, "rank": 0, "world_size": 1, "num_workers": 0}


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="Linux alone tells who sent a signal")
def test_workers_outlive_signals_to_the_group_though_torch_has_threads():
    """Ctrl-C of a sweep and Slurm signal every process of a run; only the one that trains is to act."""
    script = (
        "import os, signal, subprocess, time, torch\n"
        "from benchmark.data.loaders import _load\n"
        "from benchmark.data.workers import SIGNALS\n"
        "received = []\n"
        "for number in SIGNALS:\n"
        "    signal.signal(number, lambda number, _: received.append(number))\n"
        "torch.set_num_threads(2)\n"
        "for count, _ in enumerate(_load(range(200), 1, batch_size=None)):\n"
        "    if count in (20, 40, 60, 80):\n"
        "        command = ['kill', f'-{SIGNALS[count // 20 - 1]}', '--', f'-{os.getpgid(0)}']\n"
        "        subprocess.run(command, start_new_session=True)\n"
        "        time.sleep(0.2)\n"
        "print(count, sorted(received) == sorted(SIGNALS))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "199 True\n", done.stderr
