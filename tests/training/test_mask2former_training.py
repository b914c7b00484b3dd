"""The heads of masks in the loop, and that Mask2Former's can learn a few scenes by heart."""

import json

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from launching import parse
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmark.__main__ import main
from benchmark.data.loaders import EvaluationSamples
from benchmark.evaluation.loop import evaluate
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.modeling import SegmentationModel
from benchmark.models.windows import normalize, split_windows
from benchmark.training.loop import train
from benchmark.training.optim import build_optimizer, set_learning_rates
from data_scripts.preparation import prepare


def test_eomt_loses_its_masks_and_is_scored_the_same_again(tiny, tmp_path):
    """In 8 steps: the last two of the tiny encoder's blocks have four phases. model_best is of step 4."""
    flags = [*tiny, "--model.head", "eomt", "--model.eomt.num_points", "64", "--model.eomt.num_blocks", "2"]
    flags += ["--train.steps", "8", "--train.eval_every", "4", "--train.keep_best", "true"]
    seen = []
    hook = register_optimizer_step_pre_hook(lambda *_: seen.append(list(SegmentationModel.latest.head.mask_shares)))

    def note(self, progress, original=SegmentationModel.anneal):
        SegmentationModel.latest = self
        original(self, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationModel, "anneal", note)
        patch.setattr(SegmentationModel, "latest", None, raising=False)
        results = train(parse(flags))
    hook.remove()
    half = 0.5**0.9
    assert [shares[0] for shares in seen] == pytest.approx([1, 1, 1, half, 0, 0, 0, 0])
    assert [shares[1] for shares in seen] == pytest.approx([1, 1, 1, 1, 1, half, 0, 0])
    saved = json.loads((tmp_path / "run/model/config.json").read_text())
    assert saved["head_options"]["mask_shares"] == [0, 0]
    chosen = json.loads((tmp_path / "run/model_best/chosen.json").read_text())
    shares = json.loads((tmp_path / "run/model_best/config.json").read_text())["head_options"]["mask_shares"]
    assert shares == ([0, 1] if chosen["step"] == 4 else [0, 0])
    for folder, score in (("model", results["mean_iou"]), ("model_best", chosen["mean_iou"])):
        main(["evaluate", "--model", str(tmp_path / "run" / folder), "--output", str(tmp_path / "again.json")])
        assert json.loads((tmp_path / "again.json").read_text())["mean_iou"] == score


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
