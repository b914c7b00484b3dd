"""The linear head's loss beside torch's own upsampling and cross-entropy in double precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from benchmark.models import linear_head as module
from benchmark.models.linear_head import inverse_frequencies, upsampled_cross_entropy
from benchmark.models.upsampling import bands, bilinear_mix

SHAPES = [
    (2, 5, (4, 4), (32, 32)),
    (3, 7, (3, 5), (31, 44)),
    (1, 2, (1, 1), (9, 7)),
    (2, 3, (6, 5), (6, 5)),
    (1, 4, (9, 8), (5, 6)),
]


def oracle(logits, labels, weights=None):
    """Each image's loss, by torch's own functions in double precision."""
    large = F.interpolate(logits.double(), labels.shape[-2:], mode="bilinear")
    if weights is not None:
        weights = torch.tensor(weights, dtype=torch.float64, device=logits.device)
        images = zip(large[:, None], labels[:, None].long(), strict=True)
        return torch.stack([F.cross_entropy(image, label, weights, ignore_index=255) for image, label in images])
    loss = F.cross_entropy(large, labels.long(), ignore_index=255, reduction="none").sum(dim=(1, 2))
    return loss / (labels != 255).sum(dim=(1, 2)).clamp(min=1)


def example(batch, classes, grid, size, spread=3.0, ignored=0.3):
    generator = torch.Generator().manual_seed(batch * 100 + classes)
    logits = spread * torch.randn(batch, classes, *grid, generator=generator)
    labels = torch.randint(0, classes, (batch, *size), generator=generator).to(torch.uint8)
    return logits, labels.masked_fill(torch.rand(batch, *size, generator=generator) < ignored, 255)


def derivatives(function, logits, labels, *weights):
    leaf = logits.clone().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()  # strides as a head's are
    loss = function(leaf, labels, *weights)
    weights = torch.arange(1, len(loss) + 1, device=loss.device)  # each image's own gradient, not only their sum
    (loss * weights).sum().backward()
    return loss.detach().double(), leaf.grad.double()


@pytest.mark.parametrize("elements", [2, 40, 2**19])
@pytest.mark.parametrize(("batch", "classes", "grid", "size"), SHAPES)
def test_loss_and_gradient_are_torchs(batch, classes, grid, size, elements, monkeypatch):
    monkeypatch.setattr(module, "CPU_ELEMENTS", elements)
    logits, labels = example(batch, classes, grid, size)
    loss, gradient = derivatives(upsampled_cross_entropy, logits, labels)
    expected_loss, expected_gradient = derivatives(oracle, logits, labels)
    assert (loss - expected_loss).abs().max() < 1e-6
    assert (gradient - expected_gradient).abs().max() < 1e-6 * max(1.0, float(expected_gradient.abs().max()))


def test_an_image_without_a_label_has_neither_loss_nor_gradient():
    logits, labels = example(3, 5, (4, 4), (32, 32))
    labels[1] = 255
    loss, gradient = derivatives(upsampled_cross_entropy, logits, labels)
    assert loss[1] == 0
    assert not gradient[1].any()
    assert gradient[0].any()


@pytest.mark.parametrize("elements", [40, 2**19])
def test_weighted_loss_and_gradient_are_torchs(elements, monkeypatch):
    """Also with weights below 1, whose sum over an image may be, too, and with a class that weighs nothing."""
    monkeypatch.setattr(module, "CPU_ELEMENTS", elements)
    logits, labels = example(3, 5, (4, 4), (32, 32))
    for weights in ([0.5, 2.0, 0.0, 1.0, 7.0], [1e-5] * 5):
        loss, gradient = derivatives(upsampled_cross_entropy, logits, labels, weights)
        expected_loss, expected_gradient = derivatives(oracle, logits, labels, weights)
        assert (loss - expected_loss).abs().max() < 1e-6
        assert (gradient - expected_gradient).abs().max() < 1e-6 * max(1.0, float(expected_gradient.abs().max()))
    once = derivatives(upsampled_cross_entropy, logits, labels)[0]
    assert torch.allclose(derivatives(upsampled_cross_entropy, logits, labels, [1.0] * 5)[0], once, rtol=1e-6)


def test_an_image_whose_pixels_weigh_nothing_has_neither_loss_nor_gradient():
    logits, labels = example(2, 3, (4, 4), (32, 32))
    labels[0] = 1
    loss, gradient = derivatives(upsampled_cross_entropy, logits, labels, [1.0, 0.0, 1.0])
    assert loss[0] == 0 and not gradient[0].any() and gradient[1].any()


def test_inverse_frequencies_are_scikit_learns_balanced_weights():
    pixels = [40, 3, 7]
    labels = np.repeat(np.arange(3), pixels)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert inverse_frequencies(pixels) == pytest.approx(expected.tolist(), rel=1e-12)
    assert inverse_frequencies([40, 0, 3, 7]) == pytest.approx([expected[0], 0, *expected[1:]], rel=1e-12)


@pytest.mark.parametrize("spread", [1e2, 1e4])
def test_far_logits_stay_finite(spread):
    logits, labels = example(1, 5, (4, 4), (32, 32), spread=spread)
    loss, gradient = derivatives(upsampled_cross_entropy, logits, labels)
    expected_loss, expected_gradient = derivatives(oracle, logits, labels)
    assert torch.isfinite(gradient).all()
    assert (loss / expected_loss - 1).abs().max() < 1e-5
    assert (gradient - expected_gradient).abs().max() < 1e-3


def test_bfloat16_logits_under_autocast_are_computed_in_fp32():
    logits, labels = example(2, 5, (4, 4), (32, 32))
    logits = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient = derivatives(upsampled_cross_entropy, logits, labels)
    assert loss.dtype == torch.float64
    assert (loss - oracle(logits, labels)).abs().max() < 1e-6
    assert gradient.abs().max() > 0


def test_without_gradients_the_loss_is_the_same():
    logits, labels = example(2, 5, (4, 4), (32, 32))
    with torch.no_grad():
        alone = upsampled_cross_entropy(logits, labels)
    assert torch.equal(alone, upsampled_cross_entropy(logits.requires_grad_(), labels).detach())


@pytest.mark.parametrize(("tokens", "pixels", "most"), [(4, 32, 100), (4, 32, 3), (5, 31, 100), (7, 5, 2), (1, 6, 100)])
def test_bands_cover_each_pixel_once_with_its_own_tokens(tokens, pixels, most):
    mix = bilinear_mix(tokens, pixels)
    covered = []
    for start, end, first, second in bands(tokens, pixels, most):
        assert 0 < end - start <= most
        assert mix.first[start:end].eq(first).all() and mix.second[start:end].eq(second).all()
        covered += range(start, end)
    assert covered == list(range(pixels))
    ramp = torch.arange(tokens, dtype=torch.float32)
    expected = F.interpolate(ramp[None, None, :, None], (pixels, 1), mode="bilinear")[0, 0, :, 0]
    torch.testing.assert_close(torch.lerp(ramp[mix.first], ramp[mix.second], mix.share), expected)


def all_rows_at_once(logits, labels, weights=None):
    weights = None if weights is None else torch.tensor([*weights, *[0.0] * (256 - len(weights))])
    loss, gradient = module._loss_and_gradient_at_once(logits, labels, weights)
    return loss, gradient


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("grid", "size"), [((4, 4), (32, 32)), ((3, 5), (21, 44)), ((1, 1), (9, 7)), ((6, 5), (6, 5))])
def test_what_a_gpu_compiles_is_torchs(grid, size, weighted):
    logits, labels = example(3, 5, grid, size)
    weights = [0.5, 2.0, 0.0, 1.0, 3.0] if weighted else None
    loss, gradient = all_rows_at_once(logits, labels, weights)
    leaf = logits.clone().requires_grad_()
    expected = oracle(leaf, labels, weights)
    expected.sum().backward()
    assert (loss - expected).abs().max() < 1e-6
    assert (gradient - leaf.grad).abs().max() < 1e-6


def test_what_a_gpu_compiles_has_no_loss_for_an_unknown_class():
    logits, labels = example(3, 5, (4, 4), (32, 32))
    labels[1, 3, 4] = 5
    assert all_rows_at_once(logits, labels)[0].isnan().tolist() == [False, True, False]


@pytest.mark.gpu
@pytest.mark.parametrize("weights", [None, [0.5, *[1.0] * 148, 3.0]])
@pytest.mark.parametrize(("grid", "size"), [((16, 16), (256, 256)), ((9, 14), (135, 210))])
def test_on_a_gpu_the_compiled_loss_is_torchs(grid, size, weights):
    logits, labels = (tensor.cuda() for tensor in example(4, 150, grid, size))
    expected_loss, expected_gradient = derivatives(oracle, logits, labels, *([weights] if weights else []))
    for compiled in (False, True):
        loss, gradient = derivatives(upsampled_cross_entropy, logits, labels, weights, compiled)
        assert (loss - expected_loss).abs().max() < 2e-6
        assert (gradient - expected_gradient).abs().max() < 1e-6


@pytest.mark.gpu
def test_on_a_gpu_the_compiled_loss_takes_a_tenth_of_the_memory():
    logits, labels = (tensor.cuda() for tensor in example(16, 150, (32, 32), (512, 512)))

    def peak(function, *options):
        derivatives(function, logits, labels, *options)  # which compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        derivatives(function, logits, labels, *options)
        return torch.cuda.max_memory_allocated() - before

    def upsampled(logits, labels):
        large = F.interpolate(logits, labels.shape[-2:], mode="bilinear")
        return F.cross_entropy(large, labels.long(), ignore_index=255, reduction="none").mean((1, 2))

    assert peak(upsampled_cross_entropy, None, True) < 0.1 * peak(upsampled)
