"""The Mask2Former loss, against transformers' own functions with the same points."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as reference

from benchmark.models import mask2former_loss as module
from benchmark.models.errors import ModelError
from benchmark.models.mask2former_head import Mask2FormerHead
from benchmark.models.mask2former_loss import Mask2FormerPredictions, draw_points, sample_labels, softplus_sum
from benchmark.models.mask2former_loss import mask2former_loss as loss_and_parts
from benchmark.models.mask2former_points import _sample_by_gathering, sample
from benchmark.models.mask_head import semantic_logits
from benchmark.throughput.loss import count_operations

NUM_LABELS, NUM_QUERIES, NUM_LAYERS, NUM_POINTS, SEED = 6, 8, 3, 400, 5
NUM_CANDIDATES, NUM_UNCERTAIN = 1200, 300
POSITIONS = torch.tensor([3, 11, 4, 90_000])


@pytest.fixture
def labels():
    """Four label maps of 30 x 44: several classes, one class, borders and holes of 255, all classes."""
    rng = np.random.default_rng(0)
    maps = np.kron(rng.integers(0, 4, (4, 5, 4)), np.ones((6, 11), dtype=np.int64))
    maps[1] = 2
    maps[2, :, 33:] = maps[2, 10:15] = 255
    maps[3] = np.arange(30)[:, None] // 5
    return torch.from_numpy(maps)


def mask2former_loss(*args, **options) -> torch.Tensor:
    """The loss without its parts."""
    return loss_and_parts(*args, **options)[0]


def make_predictions(batch_size=4, num_queries=NUM_QUERIES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    return Mask2FormerPredictions(
        randn(NUM_LAYERS, batch_size, num_queries, NUM_LABELS + 1),
        randn(NUM_LAYERS, batch_size, num_queries, 16),
        randn(batch_size, 16, 5, 7),
    )


def of_images(predictions, images):
    class_logits, embeddings, features = predictions
    return Mask2FormerPredictions(class_logits[:, images], embeddings[:, images], features[images])


def loss_of(predictions, labels, positions=POSITIONS, **kwargs):
    return mask2former_loss(predictions, labels, positions, seed=SEED, num_points=NUM_POINTS, **kwargs)


def gradients(predictions, loss):
    return torch.autograd.grad(loss, predictions, retain_graph=True)


def binary_masks(label_map):
    classes = torch.unique(label_map[label_map != 255])
    return classes, (label_map == classes[:, None, None]).float()


def reference_loss(monkeypatch, predictions, labels, positions):
    """transformers' loss of each image by itself, layer by layer, with our points in place of its random ones."""
    config = Mask2FormerConfig(num_labels=NUM_LABELS, train_num_points=NUM_POINTS)
    criterion = reference.Mask2FormerLoss(config, {})
    drawn = (draw_points(SEED, positions, NUM_POINTS + NUM_CANDIDATES + NUM_POINTS - NUM_UNCERTAIN) + 1) / 2
    matching, candidates, others = drawn.split([NUM_POINTS, NUM_CANDIDATES, NUM_POINTS - NUM_UNCERTAIN], dim=1)
    losses = []
    for image, label_map in enumerate(labels):
        classes, masks = binary_masks(label_map)
        queue = {len(points[image]): points[image] for points in (matching, candidates, others)}
        monkeypatch.setattr(torch, "rand", lambda n, count, _, device, q=queue: q[count].repeat(n, 1, 1))
        total = 0
        for layer in range(NUM_LAYERS):
            mask_logits = predictions.mask_logits(layer)[image, None]
            parts = criterion(mask_logits, predictions.class_logits[layer, image, None], [masks], [classes])
            total = total + 2 * parts["loss_cross_entropy"] + 5 * parts["loss_mask"] + 5 * parts["loss_dice"]
        losses.append(total)
    monkeypatch.undo()
    return torch.stack(losses)


def test_loss_and_gradients_equal_transformers(monkeypatch, labels):
    predictions = make_predictions()
    ours = loss_of(predictions, labels)
    theirs = reference_loss(monkeypatch, predictions, labels, POSITIONS)
    torch.testing.assert_close(ours / NUM_LAYERS, theirs / NUM_LAYERS, atol=1e-5, rtol=0)
    for image in range(4):
        our_gradients, their_gradients = gradients(predictions, ours[image]), gradients(predictions, theirs[image])
        for our, their in zip(our_gradients, their_gradients, strict=True):
            assert (our - their).norm() <= 1e-4 * their.norm()


def test_costs_equal_transformers(labels):
    predictions = make_predictions()
    points = draw_points(SEED, POSITIONS, NUM_POINTS)
    classes = module.present_classes(labels)[:, :NUM_LABELS]
    targets = sample_labels(labels, classes, points)
    cross_entropy, dice = module.mask_costs(predictions, points, targets)
    class_costs = module.class_costs(predictions.class_logits, classes)
    for image, label_map in enumerate(labels):
        present, masks = binary_masks(label_map)
        grid = (points[image, None] + 1) / 2
        target = reference.sample_point(masks[None], grid, align_corners=False)[0]
        for layer in range(NUM_LAYERS):
            maps = predictions.mask_logits(layer)[image, None].detach()
            logits = reference.sample_point(maps, grid, align_corners=False)[0]
            ours = [costs[layer, image, :, : len(present)] for costs in (cross_entropy, dice, class_costs)]
            theirs = [
                reference.pair_wise_sigmoid_cross_entropy_loss(logits, target),
                reference.pair_wise_dice_loss(logits, target),
                -predictions.class_logits[layer, image].detach().softmax(-1)[:, present],
            ]
            for our, their in zip(ours, theirs, strict=True):
                torch.testing.assert_close(our, their, atol=1e-5, rtol=0)


def test_sampled_labels_equal_sampled_masks(labels):
    points = draw_points(SEED, POSITIONS, 2000)
    points[:, :4] = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    classes = module.present_classes(labels)[:, :NUM_LABELS]
    sampled = sample_labels(labels.to(torch.uint8), classes, points)
    for image, label_map in enumerate(labels):
        present, masks = binary_masks(label_map)
        expected = reference.sample_point(masks[None], (points[image, None] + 1) / 2, align_corners=False)[0]
        torch.testing.assert_close(sampled[image, : len(present)], expected, atol=1e-5, rtol=0)
        assert not sampled[image, len(present) :].any()


def split_mix(state):
    """SplitMix64 in Python's own integers."""
    bits = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & bits
    mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & bits
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & bits
    return mixed ^ (mixed >> 31)


def test_points_are_those_of_split_mix():
    assert split_mix(0) == 0xE220A8397B1DCDAF, "the generator's published first output"
    points = draw_points(7, torch.tensor([0, 640_000]), 50)
    for row, position in enumerate((0, 640_000)):
        stream = split_mix((7 << 32) + position)
        for i in range(50):
            bits = split_mix((stream + i * 0x9E3779B97F4A7C15) % 2**64)
            assert points[row, i].tolist() == [(bits >> 40) / 2**23 - 1, ((bits >> 16) % 2**24) / 2**23 - 1]


def test_points_are_uniform_and_keyed():
    points = draw_points(0, torch.arange(64), 4096)
    assert points.min() >= -1 and points.max() < 1
    counts = torch.histogramdd(points.flatten(0, 1), bins=[16, 16], range=[-1.0, 1.0, -1.0, 1.0]).hist
    expected = 64 * 4096 / 256
    chi_square = ((counts - expected).square() / expected).sum().item()
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)
    assert torch.equal(draw_points(0, torch.tensor([9]), 4096)[0], points[9])
    assert not torch.equal(draw_points(1, torch.tensor([9]), 4096)[0], points[9])
    rows = points.flatten(1).double()
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 6 / math.sqrt(rows.shape[1])


def test_batch_equals_single_images(labels):
    predictions = make_predictions()
    together = loss_of(predictions, labels)
    alone = torch.cat([loss_of(of_images(predictions, [i]), labels[[i]], POSITIONS[[i]]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    for batched, accumulated in zip(
        gradients(predictions, together.mean()), gradients(predictions, alone.sum() / 4), strict=True
    ):
        torch.testing.assert_close(batched, accumulated, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"), [("CPU_CHUNK_ELEMENTS", 1), ("CPU_CHUNK_ELEMENTS", 20_000), ("USUAL_CLASSES", 2)]
)
def test_bounds_on_memory_change_nothing(monkeypatch, labels, name, value):
    predictions = make_predictions()
    expected = loss_of(predictions, labels)
    expected_gradients = gradients(predictions, expected.sum())
    monkeypatch.setattr(module, name, value)
    ours = loss_of(predictions, labels)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients(predictions, ours.sum()), expected_gradients, atol=1e-5, rtol=0)


def test_positions_default_to_places_in_the_batch(labels):
    predictions = make_predictions()
    default = loss_of(predictions, labels, None)
    assert torch.equal(default, loss_of(predictions, labels, torch.arange(4)))
    assert not torch.equal(default, loss_of(predictions, labels))


def test_as_many_classes_as_queries_are_all_matched(labels):
    predictions = make_predictions(1, num_queries=NUM_LABELS)
    classes = module.present_classes(labels[3:])
    costs = torch.rand(NUM_LAYERS, 1, NUM_LABELS, NUM_LABELS)
    queries = module.match(costs, classes, NUM_LABELS).queries
    assert (queries.sort(1).values == torch.arange(NUM_LABELS)).all()
    assert loss_of(predictions, labels[3:], None).isfinite().all()


def test_more_classes_than_queries_is_one_sentence(labels):
    with pytest.raises(ModelError, match="6 classes but the Mask2Former head has 5 queries"):
        loss_of(make_predictions(4, num_queries=5), labels)


def test_unknown_class_is_one_sentence(labels):
    labels[0, 0, 0] = NUM_LABELS
    with pytest.raises(ModelError, match="holds class 6 but the model knows 0 to 5"):
        loss_of(make_predictions(), labels)


@pytest.mark.parametrize(
    ("part", "value"), [(0, math.nan), (0, math.inf), (1, math.nan), (1, -math.inf), (2, math.nan), (2, math.inf)]
)
def test_predictions_that_are_not_finite_stop_the_run(labels, part, value):
    predictions = make_predictions()
    with torch.no_grad():
        predictions[part].view(-1)[3] = value
    with pytest.raises(ModelError, match="not finite"):
        loss_of(predictions, labels)


def test_unlabelled_image_has_loss_zero(labels):
    predictions = make_predictions()
    expected = loss_of(predictions, labels)
    labels[1] = 255
    ours = loss_of(predictions, labels)
    assert ours[1] == 0
    torch.testing.assert_close(ours[[0, 2, 3]], expected[[0, 2, 3]])
    assert not any(gradient.any() for gradient in gradients(predictions, ours[1]))


def test_unlabelled_batch_still_reaches_every_parameter():
    """Parameters without a gradient would stop distributed training."""
    head = Mask2FormerHead(8, NUM_LABELS, (4, 4), num_queries=7, num_blocks=1, hidden_size=16, num_heads=2, ffn_size=16)
    loss = loss_of(head(torch.randn(2, 16, 8)), torch.full((2, 32, 32), 255), None)
    assert torch.equal(loss, torch.zeros(2))
    loss.mean().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_low_precision_predictions_are_computed_in_fp32(labels):
    predictions = Mask2FormerPredictions(*(tensor.detach().bfloat16() for tensor in make_predictions()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = loss_of(predictions, labels)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, loss_of(Mask2FormerPredictions(*(tensor.float() for tensor in predictions)), labels))


def test_point_losses_have_right_gradients():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 9, dtype=torch.float64, generator=generator).mul_(3).requires_grad_()
    targets = torch.rand(3, 4, 9, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(module.PointLosses.apply, (logits, targets))


def test_softplus_sum_where_exponentials_leave_the_range():
    logits = torch.tensor([[0.0, -0.0, 1e-6, 88.0, -88.0, 1e4, -1e4, 17.0, -17.0, 0.5]])
    torch.testing.assert_close(softplus_sum(logits), F.softplus(logits.double()).sum(-1).float())


def test_few_operations_and_one_host_copy_for_a_step(monkeypatch):
    """Counted at the sizes of a step on ADE20K but for the resolutions, which change no count."""
    generator = torch.Generator().manual_seed(0)
    predictions = Mask2FormerPredictions(
        torch.randn(10, 16, 100, 151, generator=generator).requires_grad_(),
        torch.randn(10, 16, 100, 8, generator=generator).requires_grad_(),
        torch.randn(16, 8, 4, 4, generator=generator).requires_grad_(),
    )
    labels = torch.randint(9, (16, 32, 32), generator=generator)

    def step():
        mask2former_loss(predictions, labels, seed=0, num_points=100).mean().backward()

    # As on a GPU, where operations are what costs.
    monkeypatch.setattr(module, "CPU_CHUNK_ELEMENTS", module.CHUNK_ELEMENTS * 100 // 12544)
    operations, host_copies = count_operations(step)
    assert operations < 410
    assert host_copies == 1


def test_head_learns_two_scenes():
    """Decoder, loss and semantic logits together: after a few steps nearly every pixel has its own class."""
    torch.manual_seed(0)
    head = Mask2FormerHead(64, 4, (8, 8), num_queries=10, num_blocks=2, hidden_size=64, num_heads=4, ffn_size=64)
    tokens = torch.randn(2, 64, 64)
    labels = torch.stack([torch.arange(32).expand(32, 32) // 8, torch.arange(32)[:, None].expand(32, 32) // 16])
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for step in range(80):
        positions = torch.tensor([2 * step, 2 * step + 1])
        loss = mask2former_loss(head(tokens), labels, positions, seed=0, num_points=256).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predictions = head(tokens)
    predicted = semantic_logits(predictions.class_logits[-1], predictions.mask_logits(), (32, 32)).argmax(1)
    assert (predicted == labels).float().mean() > 0.99


def test_sampling_by_gathering_is_grid_sample():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 2, 5, 7, generator=generator)
    points = (2.2 * torch.rand(3, 50, 2, generator=generator) - 1.1).clamp(-1, 1)  # some on the borders
    grad = torch.randn(3, 2, 50, generator=generator)
    found = []
    for function in (sample, _sample_by_gathering):
        leaf = maps.clone().requires_grad_()
        sampled = function(leaf, points)
        sampled.backward(grad)
        found.append((sampled.detach(), leaf.grad))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.gpu
def test_gpu_equals_cpu_and_waits_once(labels):
    predictions = Mask2FormerPredictions(*(tensor.detach() for tensor in make_predictions()))
    expected = loss_of(predictions, labels)
    on_gpu = Mask2FormerPredictions(*(tensor.cuda().requires_grad_() for tensor in predictions))
    gpu_labels, gpu_positions = labels.cuda(), POSITIONS.cuda()
    assert torch.equal(draw_points(SEED, gpu_positions, 100).cpu(), draw_points(SEED, POSITIONS, 100))
    ours = loss_of(on_gpu, gpu_labels, gpu_positions)
    torch.testing.assert_close(ours.cpu(), expected, atol=1e-3, rtol=0)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as waits:
            loss_of(on_gpu, gpu_labels, gpu_positions).mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(wait.message) for wait in waits) == 1


def test_the_parts_add_up_to_the_loss_and_follow_their_weights():
    generator = torch.Generator().manual_seed(0)
    predictions = Mask2FormerPredictions(
        torch.randn(3, 2, 7, 6, generator=generator),
        torch.randn(3, 2, 7, 16, generator=generator),
        torch.randn(2, 16, 5, 7, generator=generator),
    )
    labels = torch.randint(0, 5, (2, 20, 28), generator=generator)
    labels[1, 4:] = 255
    loss, parts = loss_and_parts(predictions, labels, seed=0, num_points=128)
    assert set(parts) == {"class", "mask", "dice"} and not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(sum(parts.values()), loss)
    weights = {"class": "class_weight", "mask": "mask_weight", "dice": "dice_weight"}
    for name, weight in weights.items():
        # With the other weights all but 0 the loss is that part, up to the matching, which its own costs decide.
        others = {other: 1e-9 for part, other in weights.items() if part != name}
        alone, own = loss_and_parts(predictions, labels, seed=0, num_points=128, **others)
        torch.testing.assert_close(own[name], alone, rtol=1e-4, atol=1e-6)
        assert (own[name] > 0).all(), weight
