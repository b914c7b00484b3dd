from importlib.metadata import version
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from huggingface_hub import HfApi
from launching import ROOT

from benchmark.commands import encoders
from benchmark.commands.encoders import Hub, main
from benchmark.errors import UserError
from benchmark.models import encoder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """What is kept for the tests alone, because some of them replace what is worked out."""
    monkeypatch.setattr(encoders, "HF_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def gflops(monkeypatch):
    """Counting takes a second for each model: only its own test does it."""
    original = encoders.gflops
    monkeypatch.setattr(encoders, "gflops", lambda name: "1")
    return original


def table(capsys, *arguments: str) -> dict[str, dict[str, str]]:
    """What the command prints, row by row under the encoder's name; the last six columns hold no space."""
    main(arguments)
    header, *lines = capsys.readouterr().out.splitlines()
    recipe, pretraining = header.index("recipe"), header.index("pretraining")
    rows = {}
    for line in lines:
        words, parameters, pixels, patch, gflops, licence, gated = line.rsplit(maxsplit=6)
        rows[line[:recipe].strip()] = {
            "parameters": int(parameters.replace(",", "")),
            "pixels": pixels,
            "patch": patch,
            "terms": (gflops, licence, gated),
            "recipe": line[recipe:pretraining].strip(),
            "pretraining": words[pretraining:],
        }
    return rows


def test_without_a_pattern_every_recipe_is_listed_with_its_own_first_line(capsys, monkeypatch):
    # The models are not built here: that is seconds, and tested below.
    facts = ("1", "2x2", "3", "4", "mit", "?")
    monkeypatch.setattr("benchmark.commands.encoders.known_encoders", lambda found: ((c, facts) for c in found))
    rows = table(capsys)
    files = sorted((ROOT / "recipes/encoders").glob("*.yaml"))
    assert sorted(row["recipe"] for row in rows.values()) == [str(file.relative_to(ROOT)) for file in files]
    for name, row in rows.items():
        text = (ROOT / row["recipe"]).read_text()
        assert yaml.safe_load(text)["model"]["encoder"] == name
        assert text.startswith(f"# {row['pretraining']}\n")


def test_a_pattern_finds_what_timm_has_besides_the_recipes(capsys):
    rows = table(capsys, "small_patch16_dinov3")
    assert set(rows) == set(timm.list_pretrained("*small_patch16_dinov3*"))
    ours = rows.pop("vit_small_patch16_dinov3.lvd1689m")
    assert ours["recipe"] == "recipes/encoders/dinov3_small.yaml" and "DINOv3" in ours["pretraining"]
    assert rows["vit_small_patch16_dinov3_qkvb.lvd1689m"]["pretraining"] == "lvd1689m"
    assert not any(row["recipe"] for row in rows.values())


def test_a_pattern_may_be_part_of_a_recipes_name(capsys):
    assert "eva02_base_patch16_clip_224.merged2b" in table(capsys, "eva02_clip_base")


@pytest.mark.parametrize(
    ("name", "pixels", "patch"),
    [
        ("vit_base_patch16_siglip_384.webli", "384x384", "16"),
        ("samvit_base_patch16.sa1b", "1024x1024", "16"),
        ("eva02_tiny_patch14_224.mim_in22k", "224x224", "14"),
        ("deit_tiny_patch16_224.fb_in1k", "224x224", "16"),
    ],
)
def test_numbers_are_timms_less_pooling_neck_and_classifier(capsys, name, pixels, patch):
    with torch.device("meta"):
        parameters = timm.create_model(name).named_parameters()
    unused = ("attn_pool.", "neck.", "fc_norm.", "head.")
    expected = sum(p.numel() for key, p in parameters if not key.startswith(unused))
    row = table(capsys, name)[name]
    assert (row["parameters"], row["pixels"], row["patch"]) == (expected, pixels, patch)


def test_gflops_and_terms(capsys, monkeypatch, gflops):
    """12 blocks of a ViT-S at 512x512: 1,025 tokens of width 384; the Hub is asked until it does not answer."""
    monkeypatch.setattr(encoders, "gflops", gflops)
    row = table(capsys, "vit_small_patch14_dinov2.lvd142m")["vit_small_patch14_dinov2.lvd142m"]
    tokens, width = 1025, 384
    embedding, block = 1024 * 3 * 16 * 16 * width, 12 * tokens * width**2 + 2 * tokens**2 * width
    assert row["terms"] == (f"{2 * (embedding + 12 * block) / 1e9:.0f}", "apache-2.0", "?")

    asked = []

    def model_info(self, repository, **_):
        asked.append(repository)
        if len(asked) == 3:
            raise ConnectionError
        return SimpleNamespace(gated="manual" if len(asked) == 1 else False)

    monkeypatch.setattr(HfApi, "model_info", model_info)
    hub = Hub()
    assert [hub.gated(name) for name in ("a/x", "a/y", None, "a/z", "a/z")] == ["yes", "no", "?", "?", "?"]
    assert asked == ["a/x", "a/y", "a/z"]


def test_what_was_worked_out_is_kept_for_the_versions_that_are_installed(capsys, monkeypatch):
    name = "test_vit.r160_in1k"
    first = table(capsys, name)

    def fail(*_):
        raise AssertionError("it was worked out again")

    monkeypatch.setattr(encoder, "encoder_defaults", fail)
    monkeypatch.setattr(timm, "list_models", fail)
    assert table(capsys, name) == first
    for package in ("timm", "torch"):
        with monkeypatch.context() as context:
            context.setattr(encoders, "version", lambda asked, new=package: "9.9" if asked == new else version(asked))
            with pytest.raises(AssertionError):
                main([name])


def test_a_cache_that_cannot_be_written_is_done_without(capsys, monkeypatch, cache):
    monkeypatch.setattr(encoders, "HF_HOME", str(cache / "file"))
    (cache / "file").touch()
    assert set(table(capsys, "test_vit.r160_in1k")) == {"test_vit.r160_in1k"}


def test_what_can_be_no_encoder_is_left_out(capsys):
    assert set(table(capsys, "test_*vit*")) >= {"test_vit.r160_in1k"}
    with pytest.raises(UserError, match="'resnet18'"):
        main(["resnet18"])
    with pytest.raises(UserError, match="'no such thing'"):
        main(["no such thing"])


def test_a_model_without_weights_says_so(capsys):
    name = next(n for n in timm.list_models("vit_small*") if not timm.list_pretrained(f"{n}*"))
    assert table(capsys, name)[name]["pretraining"] == "timm has no weights"
