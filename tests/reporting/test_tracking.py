import json

import numpy as np
import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from benchmark.errors import UserError
from benchmark.reporting.tracking import Tracking, check_trackers, cut_back


def test_cutting_back_drops_later_lines_and_a_torn_one(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "train/loss": step / 3}) + "\n" for step in (2, 4, 4, 6)]
    file.write_text("".join(lines) + '{"step": 6, "tra')
    cut_back(file, 6)
    assert file.read_text() == "".join(lines)
    cut_back(file, 4)
    assert file.read_text() == "".join(lines[:3])
    cut_back(file, 0)
    assert file.read_text() == ""
    file.write_bytes(lines[0].encode() + b'{"step": 4, "name": "\xff"}\n' + lines[3].encode())
    with pytest.raises(UserError, match=r"Line 2 of .* is damaged: remove the line"):
        cut_back(file, 6)


def test_tensorboard_gets_scalars_pictures_the_recipe_and_hparams_in_one_run(tmp_path):
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=tmp_path)
    recipe = {"seed": 7, "model.encoder": "test_vit", "model.head": "linear", "optim.lr": 1e-3}
    recipe |= {"data.val": ["shapes"], "model.checkpoint": None}
    tracking = Tracking(accelerator, tmp_path, start_step=0, steps=4, recipe=recipe, recipe_text="optim: {lr: 1e-3}")
    tracking.log({"train/loss": 2.0, "val/mean_iou": 0.5, "val/iou/never": None}, 2)
    tracking.picture("val/panel/0", np.zeros((4, 6, 3), np.uint8), 2)
    tracking.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {"train/loss", "val/mean_iou"} and tags["images"] == ["val/panel/0"]
    picture = events.Images("val/panel/0")[0]
    assert (picture.width, picture.height) == (6, 4)
    assert b"lr: 1e-3" in events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    columns = HParamsPluginData.FromString(start).session_start_info.hparams
    # TensorBoard opens with all of them; the rest of the recipe is in its text.
    assert set(columns) == {"encoder", "head", "lr", "seed"} and columns["encoder"].string_value == "test_vit"
    assert b"val/mean_iou" in events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 2, "train/loss": 2.0, "val/mean_iou": 0.5, "val/iou/never": None}


def test_a_tracker_that_is_not_there_is_named():
    check_trackers(["tensorboard"])
    check_trackers([])
    with pytest.raises(UserError, match="names tensorbord, which accelerate does not know"):
        check_trackers(["tensorbord"])


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("benchmark.reporting.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(UserError, match="names wandb, which is not installed"):
        check_trackers(["tensorboard", "wandb"])
