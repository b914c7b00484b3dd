"""The multi-layer linear head beside timm's own intermediate layers."""

import pytest
import timm
import torch

from benchmark.models.configuration import SegmentationConfig
from benchmark.models.errors import ModelError
from benchmark.models.modeling import SegmentationModel


def test_logits_are_a_linear_layer_on_timms_normalised_layers():
    torch.manual_seed(0)
    config = SegmentationConfig("vit_small_patch14_reg4_dinov2", "multilayer_linear", (32, 48), 16)
    model = SegmentationModel(config).eval()
    reference = timm.create_model(config.encoder, img_size=(32, 48), patch_size=16, num_classes=0).eval()
    reference.load_state_dict(model.encoder.backbone.state_dict())
    pixel_values = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        layers = reference.get_intermediate_layers(pixel_values, n=4, norm=True)
        expected = model.head.classifier(torch.cat(layers, dim=-1)).transpose(1, 2).unflatten(2, (2, 3))
        torch.testing.assert_close(model(pixel_values).logits, expected, atol=1e-5, rtol=0)
    assert model.head.classifier.weight.shape == (2, 4 * 384)


def test_every_parameter_has_a_gradient():
    model = SegmentationModel(SegmentationConfig("eva02_tiny_patch14_224", "multilayer_linear", (32, 32), 16))
    model(torch.randn(1, 3, 32, 32), labels=torch.zeros(1, 32, 32, dtype=torch.long)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_encoder_of_too_few_layers_is_refused(monkeypatch):
    monkeypatch.setattr("benchmark.models.multilayer_linear_head.LAYERS", 99)
    with pytest.raises(ModelError, match=r"takes 99 layers and test_vit has \d+: set model.head to linear\."):
        SegmentationModel(SegmentationConfig("test_vit", "multilayer_linear", (32, 32), 16))
