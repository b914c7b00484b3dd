"""The Mask2Former head in the loop, and that it can learn a few scenes by heart."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from launching import parse

from benchmark.data.loaders import EvaluationSamples
from benchmark.evaluation.loop import evaluate
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
from benchmark.models.windows import normalize, split_windows
from benchmark.training.loop import train
from benchmark.training.optim import build_optimizer, set_learning_rates
from data_scripts.preparation import prepare

MASK2FORMER = ["--model.head", "mask2former"]


def test_a_recipe_trains_and_scores_it(tiny, tmp_path):
    results = train(parse([*tiny, *MASK2FORMER, "--model.mask2former.num_points", "256", "--train.steps", "2"]))
    assert results["head"] == "mask2former" and 0 < results["mean_iou"] < 1
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_it_overfits_eight_scenes(cache_dir, tmp_path):
    """Trained without augmentation on the windows of eight scenes, it gives back their label maps; ten minutes."""
    crop, epochs, batch_size = (128, 128), 100, 4
    dataset = prepare("shapes", root=tmp_path, cache_dir=cache_dir)
    scenes = dataset.splits["train"].select(range(8))
    images, labels = [], []
    for scene in EvaluationSamples(scenes, crop, rank=0, world_size=1):
        label = F.interpolate(scene["labels"][None, None], scene["pixel_values"].shape[-2:], mode="nearest-exact")[0]
        images.append(split_windows(scene["pixel_values"], crop))
        labels.append(split_windows(label, crop)[:, 0])
    images, labels = torch.cat(images), torch.cat(labels).long()

    torch.manual_seed(0)
    config = SegmentationConfig(
        encoder="test_vit",
        head="mask2former",
        crop_size=crop,
        patch_size=4,
        head_options={"num_points": 1024},
        id2label=dict(enumerate(dataset.classes)),
        label2id={name: index for index, name in enumerate(dataset.classes)},
    )
    model = SegmentationModel(config).train()
    optimizer = build_optimizer(model, lr=5e-4, encoder_lr_multiplier=1.0, weight_decay=0.05)
    pixel_values = normalize(images, config.image_mean, config.image_std)
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(images)).split(batch_size)]
    for step, chosen in enumerate(batches):
        set_learning_rates(optimizer, step=step + 1, steps=len(batches), power=0.9)
        positions = torch.arange(step * batch_size, (step + 1) * batch_size)
        model(pixel_values=pixel_values[chosen], labels=labels[chosen], positions=positions).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    evaluation = evaluate(model, scenes, dataset.classes, Accelerator(cpu=True), batch_size=1, num_workers=0)
    assert evaluation.scores["mean_iou"] >= 0.95, evaluation.scores
