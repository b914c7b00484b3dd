"""A model as an ONNX file gives the label maps that it gives in torch, through the same windows."""

import json
import logging
from contextlib import nullcontext

import numpy as np
import onnxruntime
import pytest
import torch
from launching import parse
from PIL import Image

from benchmark.__main__ import main
from benchmark.commands.predict import predict
from benchmark.errors import UserError
from benchmark.evaluation.inference import predict_logits
from benchmark.export.onnx_file import compare, write_onnx
from benchmark.export.onnx_model import OnnxModel
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
from benchmark.models.windows import label_map, resize_to_cover, rgb_tensor
from benchmark.prediction.inputs import find_inputs, open_image
from benchmark.reporting.model_folder import load_model, save_model
from benchmark.training.loop import train

CLASSES = ["dark", "green", "bright", "far", "near"]
SMALL = {
    "linear": {},
    "mask2former": {"num_queries": 20, "num_blocks": 2, "hidden_size": 64, "ffn_size": 64},
    "multilayer_linear": {},
    "eomt": {"num_queries": 20, "num_blocks": 2},
}
FAMILIES = {
    "absolute": "test_vit",
    "relative": "test_vit_relpos",
    "rotary": "vit_small_patch16_dinov3",
    "rotary with a bias": "eva02_tiny_patch14_224",
    "decomposed relative, in windows": "samvit_base_patch16",
    "relative, shared q and v bias": "beit_base_patch16_224",
}


def make_model(folder, encoder="test_vit", head="linear", crop=(32, 48)):
    torch.manual_seed(0)
    config = SegmentationConfig(
        encoder=encoder,
        head=head,
        head_options=SMALL[head],
        crop_size=crop,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: c for c, name in enumerate(CLASSES)},
    )
    model = SegmentationModel(config)
    model.anneal(1)  # as at the end of a training
    if "num_queries" in SMALL[head]:  # drawn weights give every pixel one class; these give a query its own, in places
        with torch.no_grad():
            model.head.class_layer.weight *= 8
            masks = model.eval()(torch.randn(2, 3, *crop)).masks_queries_logits
            model.head.mask_mlp[-1].weight *= 2 / masks.std()
            model.head.mask_mlp[-1].bias *= 2 / masks.std()
    save_model(folder, config, model.state_dict())
    return folder


def draw_images(folder, sizes):
    """Smooth images, in which each class is found somewhere."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return find_inputs([str(folder)], folder / "out")


def agreement(folder, file, images, tmp_path):
    """The share of pixels on which `predict` gives one label with torch and with the file, and all labels."""
    maps = {}
    for name in (str(folder), str(file)):
        assert not predict(name, images, tmp_path / "out", batch_size=3)
        labels = [np.asarray(Image.open(tmp_path / "out" / "labels" / f"{image}.png")).ravel() for image in images]
        maps[name] = np.concatenate(labels)
    ours, theirs = maps.values()
    return (ours == theirs).mean(), np.unique(ours)


def test_a_file_gives_torchs_labels_whatever_the_images_sizes(tmp_path):
    """Of a model with one block, because a block takes a second to export."""
    model = load_model(make_model(tmp_path / "model"))
    model.encoder.backbone.blocks = model.encoder.backbone.blocks[:1]
    file = tmp_path / "x.onnx"
    assert write_onnx(model, file, precision="fp32", about={"mean_iou": "0.5"}).labels == 1
    exported = OnnxModel(file)
    files = draw_images(tmp_path / "images", [(48, 32), (31, 97), (200, 60), (1, 1), (53, 47)])
    pixels = {name: rgb_tensor(open_image(image)) for name, image in files.items()}
    maps = []
    for one in (model, exported):
        images = ((tuple(p.shape[1:]), resize_to_cover(p, (32, 48))) for p in pixels.values())
        windows = predict_logits(one, images, batch_size=3, device=torch.device("cpu"), autocast=nullcontext)
        maps.append(torch.cat([label_map(logits, size).flatten() for size, logits in windows]))
    assert torch.equal(*maps) and len(maps[0].unique()) > 1

    session = onnxruntime.InferenceSession(str(file))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == CLASSES and json.loads(about["crop_size"]) == [32, 48]
    assert about["mean_iou"] == "0.5" and about["precision"] == "fp32"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 48), np.uint8)
    labels, logits = session.run(["labels", "logits"], {"pixels": pixels})
    assert labels.shape == (5, 32, 48) and labels.dtype == np.uint8 and logits.shape == (5, 5, 2, 3)

    with pytest.raises(UserError, match="has the precision of its export"):
        predict(str(file), files, tmp_path / "out", precision="bf16")
    with torch.no_grad():
        model.head.classifier.bias[0] += 100  # another model
    assert compare(model, exported).labels < 0.9


def test_what_is_no_file_of_ours_ends_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_bytes(b"not a graph")
    images = {"a": tmp_path / "a.png"}
    for name, sentence in {"a.onnx": "is not an ONNX file of this project", "b.onnx": "There is no file"}.items():
        with pytest.raises(UserError, match=sentence):
            predict(str(tmp_path / name), images, tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need onnxruntime: run pip install .*\[export\]"):
        OnnxModel(tmp_path / "a.onnx")


def test_a_head_that_takes_the_encoder_is_exported(tmp_path):
    model = load_model(make_model(tmp_path / "model", head="eomt"))
    model.encoder.backbone.blocks = model.encoder.backbone.blocks[-3:]
    for shares in ([0, 0], [0, 0.5]):  # at the end, and of a model that was chosen before it
        model.head.mask_shares = shares
        found = write_onnx(model, tmp_path / "x.onnx", precision="fp32", about={})
        assert found.labels == 1 and found.scores < 1e-5


def test_what_cannot_be_exported_is_named_with_its_reason(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("\x1b[96mThis is step 1/3\x1b[0m") from ValueError("such an operator is not known\nmore")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(
        UserError, match=r"test_vit with the linear head cannot be exported \(such an operator is not kn"
    ):
        write_onnx(load_model(make_model(tmp_path / "model")), tmp_path / "x.onnx", precision="fp32", about={})


@pytest.mark.slow
@pytest.mark.parametrize("head", list(SMALL))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_each_family_of_encoders_on_twenty_images(family, head, tmp_path):
    if head == "eomt" and "relative" in family:
        pytest.skip("its attention cannot carry the head")
    folder = make_model(tmp_path / "model", FAMILIES[family], head, (64, 64))
    main(["export", str(folder), "--format", "onnx"])
    rng = np.random.default_rng(1)
    images = draw_images(tmp_path / "images", rng.integers(20, 200, (20, 2)).tolist())
    equal, labels = agreement(folder, folder / "model_fp32.onnx", images, tmp_path)
    print(f"{family}, {head}: {100 * equal:.4f} % of the pixels, {len(labels)} labels")
    assert equal >= 0.9999 and len(labels) > 1


@pytest.mark.slow
@pytest.mark.parametrize("head", list(SMALL))
def test_a_files_own_score_is_measured(tiny, head, tmp_path):
    run = tmp_path / "run"
    train(parse([*tiny, "--model.head", head, "--train.steps", "30", "--train.eval_every", "30"]))
    trained = json.loads((run / "results.json").read_text())
    level = logging.getLogger().level
    for precision, most in {"fp32": 1e-4, "fp16": 5e-3, "int8": 0.05}.items():
        main(["export", str(run), "--format", "onnx", "--precision", precision])
        assert logging.getLogger().level == level  # or later warnings, of this process, would be lost
        file = run / f"model_{precision}.onnx"
        main(["evaluate", "--model", str(file), "--output", str(tmp_path / "scores.json")])
        scores = json.loads((tmp_path / "scores.json").read_text())
        print(f"{head} {precision}: {scores['mean_iou']:.5f}, torch {trained['mean_iou']:.5f}")
        assert abs(scores["mean_iou"] - trained["mean_iou"]) < most
        assert scores["exported"] == {"format": "onnx", "precision": precision}
        assert scores["parameters"] == trained["parameters"] and scores["protocol"] == trained["protocol"]
        about = OnnxModel(file).about
        assert float(about["mean_iou"]) == trained["mean_iou"] and about["protocol"] == trained["protocol"]
