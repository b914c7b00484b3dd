"""A Space's app shows the label map that `predict` writes."""

import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmark.__main__ import main
from benchmark.commands.predict import predict
from benchmark.errors import UserError
from benchmark.export.space import write_space
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
from benchmark.reporting.model_folder import save_model

NAMES = {"id2label": {0: "sky", 1: "road"}, "label2id": {"sky": 0, "road": 1}}


def test_the_app_shows_what_predict_writes(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    config = SegmentationConfig(encoder="test_vit", crop_size=(32, 32), colors=[(9, 0, 255), (0, 16, 0)], **NAMES)
    save_model(tmp_path / "model", config, SegmentationModel(config).state_dict())
    main(["export", str(tmp_path / "model"), "--format", "space", "--output", str(tmp_path / "space")])
    assert str(tmp_path / "space") in capsys.readouterr().out
    Image.effect_noise((70, 50), 80).convert("RGB").save(tmp_path / "image.png")

    parts = {name: lambda *args, _name=name, **kwargs: (_name, args, kwargs) for name in ("Image", "AnnotatedImage")}
    monkeypatch.setitem(
        sys.modules, "gradio", SimpleNamespace(Interface=lambda *a, **k: (a, k), Error=ValueError, **parts)
    )
    (label, given, shown), _ = runpy.run_path(str(tmp_path / "space" / "app.py"))["page"]
    assert given[0] == "Image" and given[2]["image_mode"] is None  # else gradio cuts 16 bits before `label` sees them
    with pytest.raises(ValueError, match="more than 8 bits"):
        label(Image.fromarray(np.full((50, 70), 3000, np.uint16)))
    assert shown[2]["color_map"] == {"sky": "#0900ff", "road": "#001000"}
    with Image.open(tmp_path / "image.png") as image:
        picture, regions = label(image)
    predict(str(tmp_path / "model"), {"image": tmp_path / "image.png"}, tmp_path / "out")
    expected = np.asarray(Image.open(tmp_path / "out" / "labels" / "image.png"))
    assert picture.size == (70, 50)
    for mask, name in regions:
        np.testing.assert_array_equal(mask, expected == NAMES["label2id"][name])
    assert sum(mask.sum() for mask, _ in regions) == 70 * 50 and regions[0][0].sum() >= regions[-1][0].sum()


def test_a_space_of_a_model_on_the_hub_holds_no_copy_of_it(tmp_path):
    write_space(tmp_path, tmp_path / "cache", "me/my-model")
    assert {path.name for path in tmp_path.iterdir()} == {"app.py", "requirements.txt", "README.md"}
    assert 'MODEL = "me/my-model"' in (tmp_path / "app.py").read_text()
    metadata = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert metadata["sdk"] == "gradio" and metadata["app_file"] == "app.py" and metadata["title"] == "my-model"
    needed = {line.partition(">")[0] for line in (tmp_path / "requirements.txt").read_text().split()}
    assert needed == {"gradio", "numpy", "pillow", "timm", "torch", "transformers"}


def test_a_precision_is_refused(tmp_path):
    with pytest.raises(UserError, match="--precision is of an ONNX file"):
        main(["export", str(tmp_path), "--format", "space", "--precision", "int8"])
