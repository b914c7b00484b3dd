"""A saved model in an interpreter that has none of our packages: the very label maps of `predict` and of evaluation."""

import io
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import ExifTags, Image
from transformers.dynamic_module_utils import get_imports

from benchmark.commands.predict import predict
from benchmark.evaluation.loop import evaluate
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
from benchmark.reporting.model_folder import save_model
from benchmark.training.cpu import multiply_with_onednn

CLASSES = ["dark", "green", "bright", "far", "near"]
PIPELINE = """
import json, sys
import importlib.abc

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("benchmark", "data_scripts"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import numpy as np
from PIL import Image
from transformers import pipeline

folders, images, output = json.loads(sys.argv[1])
for number, folder in enumerate(folders):
    segment = pipeline("image-segmentation", model=folder, trust_remote_code=True)
    classes = segment.model.config.label2id
    for place, regions in enumerate(segment(images, batch_size=1 + number)):
        labels = np.full(np.asarray(regions[0]["mask"]).shape, 255, np.uint8)
        for region in regions:
            labels[np.asarray(region["mask"]) > 0] = classes[region["label"]]
        np.save(f"{output}/{number}-{place}.npy", labels)

deep = Image.fromarray(np.full((60, 80), 30_000, np.uint16))
deep.save(f"{output}/deep.png")
for image in (deep, f"{output}/deep.png"):
    try:
        segment(image)
    except Exception as error:
        assert "more than 8 bits a channel" in str(error), error
    else:
        raise AssertionError("16 bits were cut to 8")
assert "benchmark" not in sys.modules
"""


@pytest.fixture
def folders(tmp_path):
    """A model of each head, with weights of a size at which every class is predicted somewhere."""
    paths = []
    for head in ("linear", "mask2former"):
        torch.manual_seed(0)
        config = SegmentationConfig(
            encoder="test_vit",
            head=head,
            crop_size=(48, 64),
            patch_size=8,
            id2label=dict(enumerate(CLASSES)),
            label2id={name: c for c, name in enumerate(CLASSES)},
        )
        paths.append(tmp_path / head / "model")  # as every run calls its own
        save_model(paths[-1], config, SegmentationModel(config).state_dict())
    return paths


@pytest.fixture
def images(tmp_path):
    """Sizes and modes: one window and several, larger than the crop and smaller; the last is turned by its EXIF."""
    rng = np.random.default_rng(0)
    shapes = {"rgb.png": (150, 90, 3), "rgba.png": (30, 101, 4), "gray.png": (97, 300)}
    (tmp_path / "images").mkdir()
    for name, shape in shapes.items():
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, *shape[2:]), np.uint8))
        coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC).save(tmp_path / "images" / name)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by a quarter
    Image.open(tmp_path / "images" / "rgb.png").save(tmp_path / "images" / "turned.jpg", exif=exif)
    return [tmp_path / "images" / name for name in (*shapes, "turned.jpg")]


def evaluated(folder, images):
    """What an evaluation says of each image: the prediction, its windows pooled with those of the other images."""
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in images]
    annotations = []
    for file in images:
        buffer = io.BytesIO()
        Image.new("L", Image.open(file).size).save(buffer, "PNG")
        annotations.append({"bytes": buffer.getvalue(), "path": "label.png"})
    features = datasets.Features({key: datasets.Image(decode=False) for key in ("image", "annotation")})
    split = datasets.Dataset.from_dict({"image": rows, "annotation": annotations}, features=features)
    model = SegmentationModel.from_pretrained(folder)
    accelerator = Accelerator(cpu=True)
    result = evaluate(model, split, CLASSES, accelerator, batch_size=4, num_workers=0, sample_indices=[0, 1, 2])
    return [sample.prediction for sample in result.samples]


def test_pipeline_predict_and_evaluation_agree_bit_for_bit(folders, images, tmp_path):
    arguments = json.dumps([[str(f) for f in folders], [str(i) for i in images], str(tmp_path)])
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    done = subprocess.run(
        [sys.executable, tmp_path / "pipeline.py", arguments],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for number, folder in enumerate(folders):
        output = tmp_path / f"out{number}"
        predict(str(folder), {file.stem: file for file in images}, output, batch_size=3, precision="fp32")
        predictions = [np.asarray(Image.open(output / "labels" / f"{file.stem}.png")) for file in images]
        assert len(np.unique(np.concatenate([p.ravel() for p in predictions]))) > 1
        for place, ours in enumerate(predictions):
            np.testing.assert_array_equal(ours, np.load(tmp_path / f"{number}-{place}.npy"))
        assert predictions[3].shape == (90, 150)  # turned; a dataset's images and annotations are taken as stored
        for ours, theirs in zip(predictions, evaluated(folder, images[:3]), strict=False):
            np.testing.assert_array_equal(ours, theirs)


def test_loading_needs_timm_and_transformers_and_their_dependencies(folders):
    """transformers refuses to load code whose imports are not installed, SciPy of the loss among them."""
    asked = {package for file in folders[1].glob("*.py") for package in get_imports(file)}
    assert asked - set(sys.stdlib_module_names) == {"timm", "transformers", "torch", "numpy", "PIL"}


@pytest.mark.parametrize("set_up", [lambda: None, lambda: multiply_with_onednn(tokens=1)])
def test_a_windows_logits_do_not_depend_on_its_batch(folders, set_up):
    """In fp32, whatever kernels the shape of a batch would choose."""
    set_up()
    for folder in folders:
        model = SegmentationModel.from_pretrained(folder).eval()
        pixel_values = torch.randn(5, 3, 48, 64)
        with torch.no_grad():
            together = model(pixel_values)
            alone = [model(window) for window in pixel_values.split(1)]
        for key in together:
            assert torch.equal(together[key], torch.cat([output[key] for output in alone]))
