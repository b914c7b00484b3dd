import errno
import json
import os
import shutil
import stat
import subprocess
from dataclasses import asdict

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from benchmark.errors import UserError, as_sentence
from benchmark.reporting import run_folder
from benchmark.reporting.manifest import Damaged, encode_manifest, entry, read_manifest
from benchmark.training import checkpoint
from benchmark.training.checkpoint import Progress, find_checkpoint, list_checkpoints, read_checkpoint, save_checkpoint

IDENTITY = "0123"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def build(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    groups = [{"params": model[1].parameters(), "initial_lr": 0.2}, {"params": [model[0].weight], "initial_lr": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    return model, optimizer


def step(model, optimizer):
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save_step(folder, number, model, optimizer, keep=2):
    progress = Progress(step=number, logged_step=number, saved_step=number, losses=[{"loss": 0.1 + number}])
    save_checkpoint(folder, Accelerator(), model, optimizer, progress, identity=IDENTITY, keep=keep)


def save(folder, steps=(1,), keep=2):
    model, optimizer = build()
    for number in steps:
        step(model, optimizer)
        save_step(folder, number, model, optimizer, keep)
    return model, optimizer


def load_checkpoint(folder, model, optimizer, identity=IDENTITY):
    """What a run that starts does: the newest sound one, or None."""
    found = find_checkpoint(folder, Accelerator(), identity)
    return found and checkpoint.load_checkpoint(found, Accelerator(), model, optimizer)


def test_a_run_resumes_bitwise_from_a_checkpoint(tmp_path):
    model, optimizer = save(tmp_path, steps=(1, 2, 3))
    other, other_optimizer = build(seed=1)
    state = load_checkpoint(tmp_path, other, other_optimizer)
    assert state == Progress(step=3, logged_step=3, saved_step=3, losses=[{"loss": 3.1}])
    for _ in range(3):
        step(model, optimizer)
        step(other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert [group["initial_lr"] for group in other_optimizer.param_groups] == [0.2, 0.1]


def test_old_ones_are_pruned_and_nothing_else_is_left(tmp_path):
    save(tmp_path, steps=(1, 2, 3, 10), keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000003", "step-00000010"]
    assert sorted(os.listdir(tmp_path / "step-00000010")) == sorted(FILES)


def test_what_a_user_keeps_beside_them_is_neither_resumed_from_nor_removed(tmp_path):
    save(tmp_path, steps=(1, 2))
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-backup")
    (tmp_path / "step-notes.txt").write_text("the first one is good")
    (tmp_path / "step-3").write_text("")
    assert checkpoint.find_checkpoint(tmp_path, Accelerator(), IDENTITY).path == tmp_path / "step-00000002"
    save(tmp_path, steps=(3, 4), keep=1)
    assert sorted(os.listdir(tmp_path)) == ["step-00000004", "step-3", "step-backup", "step-notes.txt"]


def test_a_new_one_is_kept_where_later_ones_were_found_broken(tmp_path):
    save(tmp_path, steps=(6, 9))
    for name in ("step-00000006", "step-00000009"):
        (tmp_path / name / "state.json").unlink()
    (tmp_path / ".step-00000009.incomplete").mkdir()
    save(tmp_path, steps=(3,))
    assert os.listdir(tmp_path) == ["step-00000003"]
    assert load_checkpoint(tmp_path, *build()).step == 3


def test_files_have_the_modes_of_the_umask(tmp_path):
    previous = os.umask(0o022)
    try:
        save(tmp_path)
    finally:
        os.umask(previous)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "step-00000001").iterdir()}
    assert modes == {0o644}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_noticed_and_the_checkpoint_before_is_used(tmp_path, caplog, name, damage):
    save(tmp_path, steps=(1, 2))
    file = tmp_path / "step-00000002" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    read_checkpoint(tmp_path / "step-00000001")
    assert load_checkpoint(tmp_path, *build()).step == 1
    assert "step-00000002 is skipped" in caplog.text


@pytest.mark.parametrize("number", range(4))
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, number):
    """The disk fills up at each of the files in turn."""
    model, optimizer = save(tmp_path, steps=(1,))
    write, calls = run_folder.write_durably, []

    def full(path, data):
        calls.append(path)
        if len(calls) > number:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(run_folder, "write_durably", full)
    with pytest.raises(OSError, match="No space left"):
        save_step(tmp_path, 2, model, optimizer, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert load_checkpoint(tmp_path, *build()).step == 1


def sign(folder, **changes):
    """Write the manifest again, as anyone can who may write to the folder."""
    manifest = read_manifest(folder) if not changes else json.loads((folder / "manifest.json").read_text()) | changes
    about = {key: value for key, value in manifest.items() if key not in ("files", "sha256")}
    files = {name: entry((folder / name).read_bytes()) for name in manifest["files"]}
    (folder / "manifest.json").write_bytes(encode_manifest(about, files))


@pytest.mark.parametrize("name", FILES)
def test_a_planted_pickle_does_not_run(tmp_path, name):
    """Also where the manifest vouches for it."""
    save(tmp_path)
    folder, proof = tmp_path / "step-00000001", tmp_path / "proof"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {proof}",)

    torch.save(Payload(), folder / name)
    if name != "manifest.json":
        sign(folder)
        with pytest.raises(Exception, match=r"(?i)header|decode"):
            load_checkpoint(tmp_path, *build())
    else:
        assert load_checkpoint(tmp_path, *build()) is None
    assert not proof.exists()


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path):
    save(tmp_path)
    file = tmp_path / "step-00000001" / "manifest.json"
    data = file.read_bytes()
    for position in range(len(data)):
        file.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises(Damaged):
            read_checkpoint(file.parent)
    file.write_bytes(data)
    read_checkpoint(file.parent)


def test_the_manifest_says_step_recipe_and_world_size(tmp_path, caplog):
    save(tmp_path)
    manifest = json.loads((tmp_path / "step-00000001" / "manifest.json").read_text())
    assert manifest["step"] == 1 and manifest["world_size"] == 1
    assert set(manifest["files"]) == {name for name in FILES if name != "manifest.json"}
    assert load_checkpoint(tmp_path, *build(), identity="4567") is None
    assert "another recipe" in caplog.text


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model, optimizer = save(tmp_path)
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"1\.weight is not finite after step 2"):
        save_step(tmp_path, 2, model, optimizer, keep=1)
    assert load_checkpoint(tmp_path, *build()).step == 1


def test_a_checkpoint_without_an_optimizer_is_refused_in_one_sentence(tmp_path):
    """As DeepSpeed leaves it, whose optimizer only pickles."""
    save(tmp_path)
    folder = tmp_path / "step-00000001"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    del files["optimizer.safetensors"]
    (folder / "optimizer.safetensors").unlink()
    sign(folder, files=files)
    with pytest.raises(UserError, match="DeepSpeed, which can only pickle") as error:
        load_checkpoint(tmp_path, *build())
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kibibytes", [20, 24, 28, 32])
def test_a_disk_that_is_full_in_truth(tmp_path, kibibytes):
    """A tmpfs that has room for one checkpoint and a part of another."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = f"size={kibibytes}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a tmpfs can only be mounted by root")
    try:
        model, optimizer = save(disk, steps=(1,), keep=1)
        with pytest.raises(OSError, match="No space left") as error:
            for number in range(2, 5):
                save_step(disk, number, model, optimizer, keep=5)
        assert "No space is left on the disk" in as_sentence(error.value)
        assert load_checkpoint(disk, *build()).step == number - 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path, *build()) is None


def test_progress_is_kept_whole():
    told = {name: value + 3 if isinstance(value, int | float) else value for name, value in asdict(Progress()).items()}
    told |= {"losses": [{"loss": 1.5}], "digests": {"shapes": "content-a"}, "scaler": {"scale": 2.0}, "step": 7}
    progress = Progress.from_json(json.dumps(told).encode())
    assert asdict(progress) == told | {"saved_step": 7}
    older = {key: value for key, value in told.items() if key != "digests"} | {"digest": "content-b"}
    assert Progress.from_json(json.dumps(older).encode()).digests == {"": "content-b"}
