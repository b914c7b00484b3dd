"""Starting from a trained model, by its folder: what is taken from where is said, and is right."""

import pytest
import torch
from launching import parse
from safetensors.torch import load_file

from benchmark.errors import UserError, as_sentence
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
from benchmark.reporting.model_folder import save_model
from benchmark.training.init_from import shared_classes, start_from
from benchmark.training.loop import train


def build(classes, seed=0, **options) -> SegmentationModel:
    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}
    return SegmentationModel(SegmentationConfig(**{"encoder": "test_vit", "crop_size": (64, 64), **options}, **names))


@pytest.mark.parametrize("head", ["linear", "mask2former"])
def test_encoder_and_rows_of_shared_classes_are_taken(tmp_path, head):
    trained, model = build(["sky", "car", "road"], seed=1, head=head), build(["road", "tree", "sky"], seed=2, head=head)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_model(tmp_path / "model", trained.config, trained.state_dict())
    lines = start_from(model, str(tmp_path))  # the run folder
    assert lines[0] == f"encoder weights from {tmp_path}"
    assert lines[1] == f"the head's rows from {tmp_path} for road, sky; new: tree"
    ours, theirs = model.state_dict(), trained.state_dict()
    layer = {"linear": "head.classifier", "mask2former": "head.class_layer"}[head]
    for key in ours:
        if not key.startswith(layer):
            assert torch.equal(ours[key], theirs[key]), key
    for key in (f"{layer}.weight", f"{layer}.bias"):
        assert torch.equal(ours[key][0], theirs[key][2]) and torch.equal(ours[key][2], theirs[key][0])
        assert torch.equal(ours[key][1], before[key][1])
        if head == "mask2former":
            assert torch.equal(ours[key][3], theirs[key][3])  # "no object"


@pytest.mark.parametrize(
    ("ours", "theirs", "shared"),
    [
        (["Sky", "tree"], ["road", "sky "], {0: 1}),
        (["STRASSE"], ["straße"], {0: 0}),
        (["sky", "Sky"], ["SKY", "sky"], {0: 1}),  # "Sky" could be either
        (["sky"], ["Sky", "SKY"], {}),
        (["sky", "Sky"], ["SKY"], {}),
        (["a b"], ["ab"], {}),
    ],
)
def test_names_are_compared_without_case_where_one_class_can_be_meant(ours, theirs, shared):
    assert shared_classes(ours, theirs) == shared


def test_rows_of_a_class_in_another_case_are_taken_and_said(tmp_path):
    trained, model = build(["sky", "car"], seed=1), build(["tree", " Car"], seed=2)
    save_model(tmp_path, trained.config, trained.state_dict())
    assert start_from(model, str(tmp_path))[1].endswith("for  Car; new: tree")
    rows = [each.head.state_dict()["classifier.weight"] for each in (model, trained)]
    assert torch.equal(rows[0][1], rows[1][1]) and not torch.equal(rows[0][0], rows[1][0])


def test_another_head_is_new_and_another_encoder_refused(tmp_path):
    trained = build(["sky"], head="mask2former")
    save_model(tmp_path, trained.config, trained.state_dict())
    assert "the head is new" in start_from(build(["sky"]), str(tmp_path))[1]
    for encoder in ("test_vit4", "test_vit.r160_in1k"):  # of another size, and of other weights
        with pytest.raises(UserError, match=rf"has the encoder test_vit, and model.encoder is {encoder}: set model"):
            start_from(build(["sky"], encoder=encoder), str(tmp_path))


def test_a_run_starts_from_another_at_another_crop_and_patch(tiny, tmp_path, capsys):
    train(parse([*tiny, "--output.dir", str(tmp_path / "first")]))
    start = ["--model.init_from", str(tmp_path / "first"), "--data.crop_size", "96", "--model.patch_size", "8"]
    flags = [*tiny, *start, "--train.steps", "1", "--optim.lr", "1e-30"]
    capsys.readouterr()
    train(parse(flags))
    assert f"encoder weights from {tmp_path / 'first'}" in capsys.readouterr().out
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in ("first", "run")]
    for key in ("head.classifier.weight", "encoder.backbone.blocks.0.attn.qkv.weight"):
        assert torch.equal(weights[0][key], weights[1][key])
    with pytest.raises(Exception) as error:
        train(parse([*tiny, "--model.init_from", str(tmp_path / "none"), "--output.dir", str(tmp_path / "other")]))
    assert "There is no model folder" in as_sentence(error.value)
