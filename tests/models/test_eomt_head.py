"""EoMT beside transformers' models of it, with the same weights, points and draws."""

import pytest
import torch
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)

from benchmark.models.configuration import SegmentationConfig
from benchmark.models.eomt_head import EomtHead, masked_queries
from benchmark.models.errors import ModelError
from benchmark.models.mask2former_points import draw_points
from benchmark.models.modeling import SegmentationModel, semantic_logits

SIZE, PATCH, DEPTH, QUERIES, LABELS, POINTS, SEED = 64, 16, 4, 7, 3, 100, 9
ENCODERS = ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_dinov3_qkvb"]
OPTIONS = {"num_queries": QUERIES, "num_blocks": 2, "num_points": POINTS}
POSITIONS = torch.tensor([3, 11])
NAMES = [
    ("attn.proj.", "attention.o_proj."),
    ("mlp.fc1.", "mlp.up_proj."),
    ("mlp.fc2.", "mlp.down_proj."),
    ("gamma_1", "layer_scale1.lambda1"),
    ("gamma_2", "layer_scale2.lambda1"),
]
PLAIN_NAMES = [
    ("attn.proj.", "attention.out_proj."),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
]


def model_of(encoder: str, shares=None, **timm_options) -> SegmentationModel:
    """A shallow model whose weights all have a say, also those that timm starts at zero."""
    torch.manual_seed(0)
    config = SegmentationConfig(
        encoder=encoder,
        head="eomt",
        crop_size=(SIZE, SIZE),
        patch_size=PATCH,
        head_options=OPTIONS | {"mask_shares": shares},
        seed=SEED,
        id2label=dict(enumerate("abc")),
        encoder_source={"architecture": encoder, "model_args": {"depth": DEPTH}},
    )
    model = SegmentationModel(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model


def reference_of(model: SegmentationModel):
    """transformers' model with the same weights."""
    backbone, head = model.encoder.backbone, model.head
    rotary = model.config.encoder.endswith("dinov3_qkvb")
    width, prefix = model.encoder.embed_dim, model.encoder.num_prefix_tokens
    options = {
        "hidden_size": width,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": backbone.blocks[0].attn.num_heads,
        "image_size": SIZE,
        "patch_size": PATCH,
        "num_blocks": 2,
        "num_queries": QUERIES,
        "num_upscale_blocks": 2,
        "num_register_tokens": prefix - 1,
        "num_labels": LABELS,
        "train_num_points": POINTS,
        "layer_norm_eps": backbone.norm.eps,
        "attn_implementation": "eager",
    }
    if rotary:
        more = {"intermediate_size": 4 * width, "key_bias": False, "pos_embed_rescale": None}
        reference = EomtDinov3ForUniversalSegmentation(EomtDinov3Config(**options, **more)).eval()
    else:
        reference = EomtForUniversalSegmentation(EomtConfig(**options, mlp_ratio=4)).eval()
    state = reference.state_dict()
    found = {}
    for key, value in backbone.state_dict().items():
        if key.startswith("blocks."):
            key = "layers." + key.removeprefix("blocks.")
            for ours, theirs in NAMES if rotary else PLAIN_NAMES:
                key = key.replace(ours, theirs)
            start = key.partition("attn.")[0] + "attention."
            if "qkv" in key:
                kind = key.rpartition(".")[2]
                found |= {f"{start}{k}_proj.{kind}": part for k, part in zip("qkv", value.chunk(3), strict=True)}
                continue
            if key.endswith(("q_bias", "v_bias")):
                key = f"{start}{key[-6]}_proj.bias"
        found[key.replace("norm.", "layernorm.") if key.startswith("norm.") else key] = value
    cls, patches = found.pop("cls_token"), found.pop("pos_embed", None)
    if patches is not None:
        with_cls = patches.shape[1] == 1 + (SIZE // PATCH) ** 2
        cls = cls + patches[:, :1] if with_cls else cls
        found["embeddings.position_embeddings.weight"] = patches[0, int(with_cls) :]
    convolution = "embeddings.patch_embeddings." + ("" if rotary else "projection.")
    found |= {convolution + kind: found.pop(f"patch_embed.proj.{kind}") for kind in ("weight", "bias")}
    registers = found.pop("reg_token", torch.zeros(1, 0, width))
    found |= {"embeddings.cls_token": cls, "embeddings.register_tokens": registers, "query.weight": head.queries}
    mask_head = [(f"mask_mlp.{2 * n}", f"mask_head.fc{n + 1}") for n in range(3)]
    for ours, theirs in (("class_layer", "class_predictor"), *mask_head):
        found |= {f"{theirs}.{k}": v for k, v in head.get_submodule(ours).state_dict().items()}
    for number, block in enumerate(head.upscale):
        for place, name in ((0, "conv1"), (2, "conv2"), (3, "layernorm2d")):
            found |= {f"upscale_block.block.{number}.{name}.{k}": v for k, v in block[place].state_dict().items()}
    own = {"attn_mask_probs", "criterion.empty_weight", "embeddings.mask_token"}
    assert set(state) - own == set(found) and all(found[key].shape == state[key].shape for key in found)
    reference.load_state_dict(found, strict=False)
    reference.attn_mask_probs.copy_(torch.tensor(head.mask_shares))
    return reference


@pytest.fixture
def images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("shares", "tolerance"), [([0.0, 0.0], 1e-5), ([1.0, 1.0], 1e-4), ([0.0, 1.0], 1e-4)])
def test_predictions_are_those_of_transformers(encoder, shares, tolerance, images):
    model = model_of(encoder, shares)
    with torch.no_grad():
        ours, theirs = model(images), reference_of(model)(images)
        free = model_of(encoder)(images)
    for key in ("class_queries_logits", "masks_queries_logits"):
        scale = float(theirs[key].abs().max())
        assert (ours[key] - theirs[key]).abs().max() < tolerance * max(1.0, scale)
        # The masks make a difference, so that the test would see them missing.
        assert torch.equal(ours[key], free[key]) == (shares == [0, 0])
    assert semantic_logits(ours, (SIZE, SIZE)).shape == (2, LABELS, SIZE, SIZE)


@pytest.mark.parametrize("encoder", ENCODERS[1:])
@pytest.mark.parametrize("shares", [[1.0, 1.0], [0.4, 0.7]])
def test_loss_and_gradients_are_those_of_transformers(encoder, shares, images, monkeypatch):
    """Image by image, as transformers averages over a batch's masks; its random numbers are ours."""
    model = model_of(encoder, shares).train()
    reference = reference_of(model).train()
    labels = torch.arange(LABELS).repeat_interleave(22)[:SIZE].expand(2, SIZE, SIZE).clone()
    labels[1, 20:] = 255
    ours, _ = model.head.loss(model.predict(images, POSITIONS), labels, POSITIONS, SEED)
    candidates, uncertain = 3 * POINTS, int(0.75 * POINTS)
    for image in range(2):
        drawn = (draw_points(SEED, POSITIONS[image, None], 2 * POINTS + candidates - uncertain) + 1) / 2
        points = {len(p[0]): p for p in drawn.split([POINTS, candidates, POINTS - uncertain], dim=1)}
        dropped = iter([n for n, share in enumerate(shares) if share < 1])

        def rand(*size, device, points=points, dropped=dropped, position=POSITIONS[image, None]):
            if len(size) == 3:
                return points[size[1]].repeat(size[0], 1, 1)
            count = QUERIES * (next(dropped) + 1)
            return (draw_points(SEED, -1 - position, count)[:, -QUERIES:, 0] + 1) / 2

        classes = torch.unique(labels[image][labels[image] != 255])
        masks = (labels[image] == classes[:, None, None]).float()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", rand)
            theirs = reference(images[image, None], mask_labels=[masks], class_labels=[classes]).loss
        assert ours[image].item() == pytest.approx(theirs.item(), rel=1e-5)
        weights = [model.head.queries, model.head.class_layer.weight, model.encoder.backbone.norm.weight]
        our = torch.autograd.grad(ours[image], weights, retain_graph=True)
        weights = [reference.query.weight, reference.class_predictor.weight, reference.layernorm.weight]
        their = torch.autograd.grad(theirs, weights)
        for one, other in zip(our, their, strict=True):
            assert (one - other).norm() < 1e-3 * other.norm()


def test_an_images_loss_depends_neither_on_its_batch_nor_on_its_place():
    model = model_of("test_vit", [0.5, 0.5]).train()
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, LABELS, (4, SIZE, SIZE), generator=torch.Generator().manual_seed(2))
    positions = torch.tensor([8, 0, 5, 9])
    together = model.head.loss(model.predict(images, positions), labels, positions, SEED)[0]
    for image in range(4):
        one = slice(image, image + 1)
        alone = model.head.loss(model.predict(images[one], positions[one]), labels[one], positions[one], SEED)[0]
        torch.testing.assert_close(alone[0], together[image], rtol=1e-5, atol=1e-5)


def test_which_queries_are_masked_is_a_function_of_seed_position_block_and_query():
    positions = torch.arange(2000)
    drawn = masked_queries(0.3, 100, 1, positions, 4, positions)
    assert drawn.float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert torch.equal(drawn[[7]], masked_queries(0.3, 100, 1, positions[7:8], 4, positions))
    others = [
        masked_queries(0.3, 100, 0, positions, 4, positions),
        masked_queries(0.3, 100, 1, positions, 5, positions),
    ]
    for other in [*others, drawn.roll(1, 0), drawn.roll(1, 1)]:
        assert (drawn & other).float().mean().item() == pytest.approx(0.09, abs=0.005)
    more = masked_queries(0.6, 100, 1, positions, 4, positions)
    assert (more | ~drawn).all()  # a query that has lost its mask does not get it back
    assert not masked_queries(0.0, 100, 1, positions, 4, positions).any()
    assert masked_queries(1.0, 100, 1, positions, 4, positions).all()


def test_masks_are_taken_away_block_by_block():
    """Three blocks in five phases; the closed form within each."""
    head = EomtHead(8, 2, (2, 2), num_blocks=3)
    for progress in torch.linspace(0, 1, 41).tolist():
        head.anneal(progress)
        for number, share in enumerate(head.mask_shares):
            start, end = (number + 1) / 5, (number + 2) / 5
            expected = 1 if progress <= start else 0 if progress >= end else (1 - (progress - start) * 5) ** 0.9
            assert share == pytest.approx(expected, abs=1e-6)
    assert head.mask_shares == [0, 0, 0]


def test_a_saved_model_has_the_masks_of_when_it_was_saved(tmp_path, images):
    options = {"num_queries": QUERIES, "num_blocks": 2}
    model = SegmentationModel(SegmentationConfig("test_vit", "eomt", (SIZE, SIZE), PATCH, head_options=options)).eval()
    model.anneal(0.4)
    model.save_pretrained(tmp_path)
    loaded = SegmentationModel.from_pretrained(tmp_path).eval()
    assert loaded.head.mask_shares == model.head.mask_shares and 0 < loaded.head.mask_shares[0] < 1
    with torch.no_grad():
        assert torch.equal(loaded(images).class_queries_logits, model(images).class_queries_logits)


@pytest.mark.parametrize("encoder", ["test_vit", "eva02_tiny_patch14_224", "vit_pe_spatial_tiny_patch16_512"])
def test_every_parameter_has_a_gradient(encoder, images):
    """Also where the encoder has no final norm."""
    model = model_of(encoder, [1.0, 0.5]).train()
    model(images, labels=torch.zeros(2, SIZE, SIZE, dtype=torch.long), positions=POSITIONS).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_an_encoder_that_cannot_carry_it_is_refused():
    for encoder in ("samvit_base_patch16", "beit_base_patch16_224", "vit_relpos_small_patch16_224"):
        sentence = f"{encoder} cannot carry the eomt head.*name another encoder"
        with torch.device("meta"), pytest.raises(ModelError, match=sentence):
            SegmentationModel(SegmentationConfig(encoder, "eomt", (SIZE, SIZE), PATCH))
    with pytest.raises(ModelError, match=r"has \d+ blocks: set model.eomt.num_blocks below that, not to 99"):
        SegmentationModel(SegmentationConfig("test_vit", "eomt", (SIZE, SIZE), PATCH, head_options={"num_blocks": 99}))
