"""An encoder that is named by a repository on the Hub: timm's own way of making it is the oracle, on the loopback."""

import json
import pickle

import huggingface_hub.constants as hub_constants
import pytest
import safetensors.torch
import timm
import torch
from launching import parse

from benchmark.__main__ import main
from benchmark.models.encoder import Encoder, encoder_defaults
from benchmark.models.encoder_checkpoint import download_weights, load_encoder_weights
from benchmark.models.errors import ModelError
from benchmark.reporting.model_folder import load_model
from benchmark.training.build import describe
from benchmark.training.loop import train

REPO = "org/small-vit"
NAME = f"hf-hub:{REPO}"
ARGUMENTS = {"depth": 3, "reg_tokens": 2, "global_pool": "avg", "img_size": [96, 96], "patch_size": 8}
CONFIG = {
    "architecture": "test_vit",
    "model_args": ARGUMENTS,
    "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 96]},
}


def publish(hub, config=CONFIG, weights=b"", repo=REPO, file="model.safetensors") -> None:
    config = config if isinstance(config, bytes) else json.dumps(config).encode()
    hub.repos[repo] = [("first", {"config.json": config, file: weights})]


@pytest.fixture
def weights(online) -> dict[str, torch.Tensor]:
    """Random weights of a model in the repository `REPO`, with a classifier that no encoder has."""
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=5, **ARGUMENTS)
    weights = {key: torch.randn_like(value) / 8 for key, value in model.state_dict().items()}
    publish(online, weights=safetensors.torch.save(weights))
    return weights


def goes_offline(monkeypatch) -> None:
    """From here on nothing is fetched, and nothing was kept."""
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", "/nonexistent")


def test_it_is_the_model_that_timm_makes_of_the_repository(weights):
    defaults = encoder_defaults(NAME)
    assert defaults == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (96, 96), 8)
    encoder = Encoder(NAME, defaults.img_size, defaults.patch_size).eval()
    source, leftover = load_encoder_weights(encoder)
    assert source == REPO and {key.split(".")[0] for key in leftover} == {"head", "fc_norm"}
    oracle = timm.create_model(NAME, pretrained=True, num_classes=5).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(encoder(images), oracle.forward_features(images)[:, oracle.num_prefix_tokens :])


def test_it_has_no_dropout_whatever_the_repository_says(online):
    """It would draw other numbers after a resume, and for another micro batch."""
    rates = {
        "drop_path_rate": 0.3,
        "drop_rate": 0.1,
        "proj_drop_rate": 0.1,
        "attn_drop_rate": 0.1,
        "pos_drop_rate": 0.1,
    }
    publish(online, CONFIG | {"model_args": ARGUMENTS | rates})
    encoder = Encoder(NAME, (96, 96), 8).train()
    images = torch.randn(2, 3, 96, 96)
    assert torch.equal(encoder(images), encoder(images))
    assert encoder.source["model_args"] == ARGUMENTS


def test_its_positions_are_resampled_where_a_crop_that_is_not_square_has_as_many(weights):
    encoder = Encoder(NAME, (64, 144), 8)
    load_encoder_weights(encoder)
    oracle = timm.create_model(NAME, pretrained=True, num_classes=5, img_size=(64, 144))
    assert torch.equal(encoder.backbone.pos_embed, oracle.pos_embed)
    assert encoder.backbone.pos_embed.shape == weights["pos_embed"].shape
    assert not torch.equal(encoder.backbone.pos_embed, weights["pos_embed"])


def test_the_window_of_a_sam_keeps_its_share_of_the_size_that_the_repository_names(online):
    """14 tokens of 512 / 16, so 7 at half the size; timm's own sizes are 1024 / 16."""
    arguments = {"depth": 2, "embed_dim": 64, "num_heads": 4, "global_attn_indexes": [1]}
    size = {"input_size": [3, 512, 512], "fixed_input_size": True}
    publish(online, {"architecture": "samvit_base_patch16", "model_args": arguments, "pretrained_cfg": size})
    assert [block.window_size for block in Encoder(NAME, (256, 256), 16).blocks] == [7, 0]


def test_it_trains_and_the_saved_model_never_asks_the_hub_for_it(online, weights, tiny, tmp_path, monkeypatch, capsys):
    flags = ["--model.encoder", NAME, "--model.pretrained", "true", "--train.steps", "2", "--model.freeze_encoder"]
    flags = [*tiny, *flags, "true", "--data.crop_size", "96", "--model.patch_size", "8"]
    describe(parse(flags))  # --dry_run
    parameters = sum(value.numel() for key, value in weights.items() if not key.startswith(("head.", "fc_norm.")))
    assert f"parameters: {parameters + 6 * 65:,}, of which {6 * 65} are" in capsys.readouterr().out  # 6 classes
    train(parse(flags))
    assert f"encoder weights from {REPO}" in capsys.readouterr().out
    online.requests.clear()
    goes_offline(monkeypatch)
    model = load_model(tmp_path / "run" / "model")
    for key, value in model.encoder.backbone.state_dict().items():
        assert torch.equal(value, weights[key]), key
    assert model.config.image_mean == [0.1, 0.2, 0.3] and model.config.image_std == [0.4, 0.5, 0.6]
    main(["evaluate", "--model", str(tmp_path / "run" / "model")])
    assert not online.requests


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"architectures": ["BertModel"], "model_type": "bert"}, "names no architecture of timm; name"),
        (["architecture"], "is not timm's; name"),
        (b"{", "config.json is damaged; name another"),
        ({**CONFIG, "architecture": "vit_of_2030"}, "a vit_of_2030, which timm .* does not know; update timm"),
        ({**CONFIG, "architecture": "resnet18", "model_args": {}}, "not a plain vision transformer .* choose one"),
        ({**CONFIG, "model_args": {"in_chans": 4}}, "not a plain vision transformer of RGB images .* choose one"),
        ({**CONFIG, "model_args": {"wheels": 4}}, "cannot make .* argument 'wheels'.*; update timm"),
    ],
)
def test_a_repository_with_no_such_encoder_is_one_sentence(online, config, sentence):
    publish(online, config)
    with pytest.raises(ModelError, match=f"{NAME} .*{sentence}|{sentence}") as error:
        encoder_defaults(NAME)
    assert NAME in str(error.value) and "\n" not in str(error.value)


def test_a_repository_that_cannot_be_read_is_one_sentence(online, monkeypatch):
    publish(online)
    online.repos["org/empty"] = [("first", {})]
    for name, sentence in {
        "hf-hub:org/none": "there is no such repository; check the name",
        "hf-hub:org/empty": "it lacks config.json; name a repository",
        "hf-hub:a/b/c": "this is no name on the Hub; write",
        "hf-hub:": "this is no name on the Hub; write",
        "hf-hub:a/b@c@d": "this is no name on the Hub; write",
    }.items():
        with pytest.raises(ModelError, match=sentence):
            encoder_defaults(name)
    online.gate = True
    with pytest.raises(ModelError, match="access to it has to be requested; ask for it"):
        encoder_defaults(NAME)
    name = "vit_small_patch16_dinov3.lvd1689m"  # one of timm's own
    with pytest.raises(ModelError, match=rf"{name} \(timm/{name}\) cannot be loaded: access to it has to be requested"):
        download_weights(name)
    online.gate = False
    with pytest.raises(ModelError, match="there is no such repository"):
        download_weights(name)
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{filename}")
    with pytest.raises(ModelError, match="the Hub cannot be reached; check the network"):
        encoder_defaults(NAME)
    goes_offline(monkeypatch)
    with pytest.raises(ModelError, match="the Hub cannot be reached; check the network"):
        encoder_defaults(NAME)


class Alarm:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("other.bin", b"", "it lacks model.safetensors or pytorch_model.bin; name"),
        ("model.safetensors", b"torn", "its file is damaged; name another"),
        ("pytorch_model.bin", pickle.dumps(Alarm(), 2), "more than tensors, and was not loaded; name"),
    ],
    ids=["missing", "torn", "code"],
)
def test_weights_that_cannot_be_read_are_one_sentence_and_run_no_code(
    online, file, content, sentence, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    publish(online, weights=content, file=file)
    with pytest.raises(ModelError, match=sentence):
        load_encoder_weights(Encoder(NAME, (96, 96), 8))
    assert not (tmp_path / "ran").exists()
