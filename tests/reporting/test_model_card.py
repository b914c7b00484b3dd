import pytest
import yaml
from huggingface_hub import ModelCard

from benchmark.recipe.parser import load_recipe
from benchmark.reporting.model_card import model_card


def scores(mean_iou):
    return {
        "mean_iou": mean_iou,
        "pixel_accuracy": 0.75,
        "iou": {"cat": mean_iou, "dog": None},
        "absent_classes": 1,
    }


@pytest.fixture
def results():
    return {
        **scores(0.61234),
        "datasets": {"ade20k": scores(0.61234), "shapes": scores(0.5)},
        "device": "cuda (a GPU)",
        "world_size": 2,
        "train_seconds": 3725.0,
        "eval_seconds": 61.0,
        "peak_memory_bytes": 2**31,
        "images_per_second": 12.34,
        "parameters": 86_000_000,
        "protocol": "0123456789abcdef",
        "date": "2026-11-26",
        "versions": {"benchmark": "0.1.0", "commit": "0123456789abcdef"},
    }


def recipe(*flags):
    return load_recipe([], flags).to_dict()


def test_the_metadata_say_the_scores_of_each_dataset_and_the_origin(results):
    card = ModelCard(model_card("me/my-model", recipe("--train.steps", "7"), results, step=7, head="linear"))
    assert {(r.dataset_name, r.metric_type, r.metric_value) for r in card.data.eval_results} == {
        ("ade20k", "mean_iou", 0.61234),
        ("ade20k", "pixel_accuracy", 0.75),
        ("shapes", "mean_iou", 0.5),
        ("shapes", "pixel_accuracy", 0.75),
    }
    assert card.data.license == "apache-2.0" and card.data.base_model == "timm/vit_base_patch14_dinov2.lvd142m"
    assert card.data.pipeline_tag == "image-segmentation" and card.data.library_name == "transformers"
    assert yaml.safe_load(card.data.to_yaml())["model-index"][0]["name"] == "my-model"


def test_the_text_says_what_was_run_and_what_was_measured(results):
    text = model_card("me/my-model", recipe("--train.steps", "7"), results, step=7, head="linear")
    for part in ("**61.23 % mIoU** on ade20k", "1 h 2 min 5 s on 2 x cuda (a GPU)", "| dog | - |", "| cat | 50.00 |"):
        assert part in text
    for part in ("--num_processes 2 train.py", 'model="me/my-model", trust_remote_code=True', "512x512", "86,000,000"):
        assert part in text
    assert "Training continues" not in text
    for part in ("benchmark](https://huggingface.co/models?other=", "arxiv.org/abs/2404.12172", "head, fine-tuned for"):
        assert part in text
    for part in ("| trained on | shapes |", "| code | version 0.1.0, commit 0123456789ab |", "| date | 2026-11-26 |"):
        assert part in text
    assert "(panel.png)" in text
    assert "(panel.png)" not in model_card("me/x", recipe(), results, step=7, head="linear", picture=False)


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        (["--model.pretrained", "false"], "trained from scratch for"),
        (["--model.freeze_encoder", "true"], "fine-tuned (the head alone, the encoder frozen) for"),
        (["--model.pretrained", "false", "--model.init_from", "runs/a"], "fine-tuned for"),
        (["--model.pretrained", "false", "--model.checkpoint", "a.pth"], "fine-tuned for"),
    ],
)
def test_it_says_whether_the_encoder_was_trained_from_scratch(flags, how):
    assert f"with a linear head, {how} semantic" in model_card("me/x", recipe(*flags), None, step=1, head="linear")


@pytest.mark.parametrize(("pretrained", "base"), [("true", "me/vit"), ("false", None)])
def test_an_encoder_on_the_hub_is_linked(pretrained, base):
    flags = ["--model.encoder", "hf-hub:me/vit@main", "--model.pretrained", pretrained]
    card = ModelCard(model_card("me/my-model", recipe(*flags), None, step=1, head="linear"))
    assert "[hf-hub:me/vit@main](https://huggingface.co/me/vit) with a linear head" in card.text
    assert card.data.base_model == base


def test_a_card_before_the_end_says_so():
    text = model_card("me/my-model", recipe("--train.steps", "7"), None, step=3, head="linear")
    assert "Training continues" in text and "3 of 7" in text and "panel.png" not in text
    assert ModelCard(text).data.eval_results is None


@pytest.mark.parametrize(
    ("flags", "license", "sentence"),
    [
        (["--model.encoder", "vit_base_patch16_224.mae"], "cc-by-nc-4.0", "are under cc-by-nc-4.0"),
        (["--model.encoder", "vit_small_patch16_dinov3.lvd1689m"], "other", "are under dinov3-license"),
        (["--model.pretrained", "false"], None, "trained from random weights"),
        (["--model.checkpoint", "x.pt"], None, "ask their authors"),
        (["--model.init_from", "runs/a"], None, "another trained model, runs/a: its terms hold"),
        (["--model.encoder", "hf-hub:me/vit@main"], None, "in [their repository](https://huggingface.co/me/vit)"),
    ],
)
def test_the_licence_is_that_of_the_encoders_weights(flags, license, sentence):
    text = model_card("me/my-model", recipe(*flags), None, step=1, head="linear")
    assert sentence in text and ModelCard(text).data.license == license


def test_memory_is_in_gibibytes(results):
    assert "2.0 GiB at the peak" in model_card("me/my-model", recipe(), results, step=40000, head="linear")


def test_own_data_have_their_own_name_wherever_they_are_named(results):
    own = ["--data.train", "folder", "--data.val", "[folder]", "--data.custom.name", "moor"]
    results["datasets"] = {"folder": scores(0.61234)}
    card = model_card("me/my-model", recipe(*own), results, step=7, head="linear")
    assert {result.dataset_name for result in ModelCard(card).data.eval_results} == {"moor"}
    assert "mIoU** on moor's validation images" in card and "by class on moor" in card and "folder" not in card
