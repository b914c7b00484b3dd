import errno
import json
import os
import stat

import pytest
import torch
from torch import nn

from benchmark import checkpoint
from benchmark.checkpoint import find_problem, list_checkpoints, load_checkpoint, save_checkpoint

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


def save(folder, steps=(1,), keep=2):
    model, optimizer = build()
    for number in steps:
        step(model, optimizer)
        save_checkpoint(folder, number, model, optimizer, {"losses": [0.1 + number]}, keep=keep, main=True)
    return model, optimizer


def test_a_run_goes_on_bitwise_from_a_checkpoint(tmp_path):
    model, optimizer = save(tmp_path, steps=(1, 2, 3))
    other, other_optimizer = build(seed=1)
    state = load_checkpoint(tmp_path, other, other_optimizer)
    assert state == {"step": 3, "losses": [3.1]}
    for _ in range(3):
        step(model, optimizer)
        step(other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert [group["initial_lr"] for group in other_optimizer.param_groups] == [0.2, 0.1]


def test_old_ones_are_pruned_and_nothing_else_is_left(tmp_path):
    save(tmp_path, steps=(1, 2, 3, 10), keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000003", "step-00000010"]
    assert sorted(os.listdir(tmp_path / "step-00000010")) == sorted(FILES)


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
    assert find_problem(tmp_path / "step-00000001") is None
    assert load_checkpoint(tmp_path, *build())["step"] == 1
    assert "step-00000002 is skipped" in caplog.text


@pytest.mark.parametrize("number", range(4))
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, number):
    """The disk fills up at each of the files in turn."""
    model, optimizer = save(tmp_path, steps=(1,))
    write, calls = checkpoint.write_durably, []

    def full(path, data):
        calls.append(path)
        if len(calls) > number:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_durably", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, model, optimizer, {}, keep=1, main=True)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert load_checkpoint(tmp_path, *build())["step"] == 1


def test_a_planted_pickle_does_not_run(tmp_path):
    save(tmp_path)
    folder, proof = tmp_path / "step-00000001", tmp_path / "proof"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {proof}",)

    torch.save(Payload(), folder / "optimizer.safetensors")
    data = (folder / "optimizer.safetensors").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["optimizer.safetensors"] = {"size": len(data), "sha256": checkpoint.hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"(?i)header"):
        load_checkpoint(tmp_path, *build())
    assert not proof.exists()


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert load_checkpoint(tmp_path, *build()) is None
