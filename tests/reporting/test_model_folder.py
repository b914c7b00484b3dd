"""A model folder is loaded as it was saved, or not at all."""

import json

import pytest
import torch

from benchmark.errors import UserError
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
from benchmark.reporting.model_folder import load_model, save_model


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = SegmentationModel(SegmentationConfig(encoder="test_vit", crop_size=(32, 32)))
    save_model(tmp_path / "model", model.config, model.state_dict())
    return tmp_path / "model"


def test_it_names_the_sums_of_weights_and_configurations(folder):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) == {"model.safetensors", "config.json", "preprocessor_config.json"}
    assert isinstance(load_model(folder), SegmentationModel)


@pytest.mark.parametrize("head", ["linear", "mask2former"])
def test_it_holds_the_code_of_its_own_head_and_of_no_other(tmp_path, head):
    config = SegmentationConfig(encoder="test_vit", crop_size=(32, 32), head=head)
    save_model(tmp_path, config, SegmentationModel(config).state_dict())
    shared = {"configuration", "encoder", "errors", "heads", "image_processing", "modeling", "pipeline"}
    shared |= {"head", "meta", "sizes", "upsampling", "windows"}
    own = {"linear": {"linear_head"}, "mask2former": {f"mask2former_{part}" for part in ("head", "loss", "points")}}
    own["mask2former"].add("mask_head")
    assert {file.stem for file in tmp_path.glob("*.py")} == shared | own[head]
    assert (tmp_path / "heads.py").read_text().count("import") == 1  # whether it loads, test_remote_code.py shows


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json", "manifest.json"])
def test_one_flipped_bit_is_noticed(folder, name):
    """In the weights it would give other weights, and other numbers, silently."""
    data = bytearray((folder / name).read_bytes())
    data[len(data) * 3 // 4] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"is damaged: {name} .*Download the model again"):
        load_model(folder)


def test_a_file_that_is_missing_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_model(folder)


def test_a_folder_without_sums_loads(folder):
    """Models that were saved by older versions have none."""
    (folder / "manifest.json").unlink()
    assert isinstance(load_model(folder), SegmentationModel)
