import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from benchmark.evaluation.inference import label_image
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.errors import ModelError
from benchmark.models.heads import HEADS
from benchmark.models.image_processing import processor
from benchmark.models.linear_head import LinearHead, upsampled_cross_entropy
from benchmark.models.modeling import SegmentationModel, parameter_counts, semantic_logits, window_logits
from benchmark.models.windows import label_map, normalize, resize_to_cover, split_windows


def build(**options) -> SegmentationModel:
    torch.manual_seed(0)
    defaults = {"encoder": "test_vit", "crop_size": (32, 48), "patch_size": 8, "id2label": dict(enumerate("abcd"))}
    return SegmentationModel(SegmentationConfig(**defaults | options)).eval()


@pytest.mark.parametrize(
    "options", [{}, {"head": "mask2former", "head_options": {"num_points": 64}}, {"encoder": "eva02_tiny_patch14_224"}]
)
def test_save_and_load_give_equal_output(tmp_path, options):
    model = build(**options)
    model.save_pretrained(tmp_path)
    loaded = SegmentationModel.from_pretrained(tmp_path)
    pixel_values = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        first, second = (semantic_logits(m(pixel_values), (32, 48)) for m in (model, loaded))
    assert torch.equal(first, second)
    assert loaded.config.id2label == dict(enumerate("abcd"))


def test_first_weights_are_timms_and_not_overwritten():
    """transformers would draw them again with a deviation of 0.02; PyTorch's default for the head is uniform."""
    weight = build().head.classifier.weight.detach()
    assert weight.abs().max() <= weight.shape[1] ** -0.5
    assert weight.std() == pytest.approx(weight.shape[1] ** -0.5 / 3**0.5, rel=0.2)


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_weights_that_do_not_fit_are_an_error(tmp_path, damage):
    build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    bias = weights.pop("head.classifier.bias")
    if damage == "shape":
        weights["head.classifier.bias"] = bias[:2].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"head\.classifier\.bias"):
        SegmentationModel.from_pretrained(tmp_path)


def test_an_unknown_head_is_refused():
    with pytest.raises(ModelError, match="one of linear, multilayer_linear, mask2former"):
        build(head="linaer")


@pytest.mark.parametrize("options", [{}, {"head": "mask2former", "head_options": {"num_points": 64}}])
def test_a_batchs_loss_is_the_mean_of_its_images_losses(options):
    """However the images of a step are split, and however much of each is labelled."""
    model = build(**options)
    pixel_values, labels = torch.randn(4, 3, 32, 48), torch.randint(0, 4, (4, 32, 48))
    labels[0, 5:] = 255
    labels[1] = 255
    positions = torch.tensor([3, 10, 11, 12])
    together = model(pixel_values, labels, positions).loss
    apart = [model(pixel_values[i : i + 1], labels[i : i + 1], positions[i : i + 1]).loss for i in range(4)]
    torch.testing.assert_close(together, torch.stack(apart).mean(), rtol=1e-5, atol=1e-6)


def test_auxiliary_logits_are_returned_on_request():
    model = build(head="mask2former")
    pixel_values = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        asked, plain = model(pixel_values, output_auxiliary_logits=True), model(pixel_values)
    assert plain.auxiliary_logits is None and len(asked.auxiliary_logits) == 9
    shapes = {tuple(values.shape) for layer in asked.auxiliary_logits for values in layer.values()}
    assert shapes == {(2, 100, 5), (2, 100, 4, 6)}
    torch.testing.assert_close(asked.masks_queries_logits, plain.masks_queries_logits, rtol=1e-4, atol=1e-4)


def test_cross_entropy_is_each_images_own_and_zero_without_labels():
    logits, labels = torch.randn(3, 5, 4, 6), torch.randint(0, 5, (3, 32, 48))
    labels[1, :20] = 255
    labels[2] = 255
    expected = [
        F.cross_entropy(
            F.interpolate(logits[i : i + 1], (32, 48), mode="bilinear"), labels[i : i + 1], ignore_index=255
        )
        for i in range(2)
    ]
    loss = upsampled_cross_entropy(logits, labels)
    torch.testing.assert_close(loss, torch.stack([*expected, torch.tensor(0.0)]))


def test_every_trained_parameter_gets_a_gradient_and_a_frozen_encoder_none():
    for freeze in (False, True):
        model = build(freeze_encoder=freeze).train()
        model(torch.randn(2, 3, 32, 48), torch.randint(0, 4, (2, 32, 48))).loss.backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        assert any(p.requires_grad for p in model.encoder.parameters()) != freeze
        total, trained = parameter_counts(model)
        assert total == sum(p.numel() for p in model.parameters())
        assert (trained == total) != freeze


def test_the_processor_gives_the_label_map_of_the_windows(tmp_path):
    model = build(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor(model.config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["crop_size"] == [32, 48]
    for key in ("image_mean", "image_std", "head"):
        assert saved[key] == getattr(model.config, key), key
    images = [torch.randint(0, 256, size, dtype=torch.uint8) for size in ((40, 90, 3), (70, 50, 3))]
    features = processor(model.config)([image.numpy() for image in images])
    with torch.no_grad():
        outputs = model(**features)
    maps = processor(model.config).post_process_semantic_segmentation(outputs, [(40, 90), (70, 50)])
    for image, found in zip(images, maps, strict=True):
        windows = split_windows(resize_to_cover(image.permute(2, 0, 1), (32, 48)), (32, 48))
        with torch.no_grad():
            logits = window_logits(model(normalize(windows, model.config.image_mean, model.config.image_std)), (32, 48))
        assert torch.equal(found, label_map(logits, image.shape[:2]).long())


def test_a_head_that_shares_its_outputs_name_keeps_its_own_way_to_logits(monkeypatch):
    class Negated(LinearHead):
        @staticmethod
        def semantic_logits(outputs, size, rows=None):
            return -LinearHead.semantic_logits(outputs, size, rows)

    monkeypatch.setitem(HEADS, "negated", Negated)
    model = build(head="negated").eval()
    image = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    expected = label_image(model, image)
    model.config.head = "linear"
    assert not np.array_equal(label_image(model, image), expected)
    model.config.head = "negated"
    features = processor(model.config)(image)
    with torch.no_grad():
        (found,) = processor(model.config).post_process_semantic_segmentation(model(**features), [(40, 90)])
    assert np.array_equal(found.numpy(), expected)
