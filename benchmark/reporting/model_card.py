"""The model card: what a run was and what came of it, from its recipe and its results."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from timm.models import get_pretrained_cfg

from benchmark.models.encoder import hub_repository
from benchmark.reporting.results import PACKAGE

# The Hub's own identifiers among the licences that timm names; https://huggingface.co/docs/hub/repositories-licenses.
LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "apple-ascl", "apple-amlr", "gemma")

CARD = """---
{metadata}
---

# {title}

[{encoder}]({url}) with a {head} head, {trained} for semantic segmentation on {train}.

{scores}

Trained and scored with [{project}](https://huggingface.co/models?other={project}), which ranks vision foundation models
by the protocol of [How to Benchmark Vision Foundation Models for Semantic Segmentation?](https://arxiv.org/abs/2404.12172)

## How to use it

The model brings its own code; it needs `transformers`, `timm` and `pillow`.

```python
from transformers import pipeline

segment = pipeline("image-segmentation", model="{name}", trust_remote_code=True)
for region in segment("image.jpg"):
    print(region["label"], region["mask"])  # a PIL mask at the image's own size
```

An image of any size is resized to cover {crop} pixels and cut into windows of that size, as in evaluation; the label
map comes at the image's own size, turned as its EXIF says.
{picture}
## How it was trained

```bash
accelerate launch --quiet --num_processes {processes} train.py --recipe recipe.yaml
```

with the `recipe.yaml` in this repository. {machine}

| | |
|---|---|
{facts}

{classes}
## Licence and limits

{license}
It gives every pixel one of the classes it was trained on, and has no class for anything else. Its score was measured on
the validation images named above, and says little about others.
"""


def model_card(
    name: str,
    recipe: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    *,
    step: int,
    head: str,
    picture: bool = True,
) -> str:
    """The text of README.md, its metadata with a `model-index` of the scores.

    Args:
        name: user/name on the Hub.
        recipe: as recipe.yaml holds it.
        results: as results.json holds them, of these weights; None where these were not evaluated.
        step: optimizer steps made; below the recipe's, the card says that training continues.
        head: the head's title.
        picture: whether panel.png lies beside it, once there are results.
    """
    model, data, train = recipe["model"], recipe["data"], recipe["train"]
    results = dict(results or {})
    results["datasets"] = {_dataset_name(data, key): value for key, value in results.get("datasets", {}).items()}
    height, width = data["crop_size"] if isinstance(data["crop_size"], list) else (data["crop_size"],) * 2
    facts = {
        "trained on": _dataset_name(data, data["train"]),
        "scored on": ", ".join(_dataset_name(data, dataset) for dataset in data["val"]),
        "steps": f"{step:,} of {train['steps']:,}",
        "images in a step": train["global_batch_size"],
        "crop, patch": f"{height}x{width}, {model['patch_size']}x{model['patch_size']}",
        "learning rate": f"{recipe['optim']['lr']:g}, the encoder's times {recipe['optim']['encoder_lr_multiplier']:g}",
        "adapters": model.get("lora_rank") and f"LoRA of rank {model['lora_rank']} in the encoder's attention, merged",
        "precision": train["precision"],
        "seed": recipe["seed"],
        "protocol": results.get("protocol"),
        "parameters": results.get("parameters") and f"{results['parameters']:,}",
        "code": _code(results),
        "date": results.get("date"),
    }
    return CARD.format(
        metadata=_metadata(name, recipe, results).to_yaml(),
        title=name.split("/")[-1],
        name=name,
        encoder=model["encoder"],
        url=f"https://huggingface.co/{_hub_repository(recipe) or 'timm'}",
        head=head,
        trained=_how_trained(model),
        train=_dataset_name(data, data["train"]),
        project=PACKAGE,
        scores=_scores(results, finished=step == train["steps"]),
        crop=f"{height}x{width}",
        picture="\n![Image, label and prediction of validation images](panel.png)\n"
        if results["datasets"] and picture
        else "",
        processes=results.get("world_size", 1),
        machine=_machine(results),
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items() if value is not None),
        classes=_classes(results),
        license=_license_sentence(recipe),
    )


def _metadata(name: str, recipe: Mapping[str, Any], results: Mapping[str, Any]) -> ModelCardData:
    license, base = _encoder_origin(recipe)
    known = {"license": license} if license in LICENSES else {"license": "other", "license_name": license}
    return ModelCardData(
        **(known if license else {}),
        base_model=base,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "vision-foundation-model", "timm", PACKAGE],
        model_name=name.split("/")[-1],
        eval_results=[
            EvalResult(
                task_type="image-segmentation",
                task_name="Semantic segmentation",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split="validation",
                metric_type=metric,
                metric_name=metric_name,
                metric_value=scores[metric],
            )
            for dataset, scores in results["datasets"].items()
            for metric, metric_name in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy"))
            if scores[metric] is not None
        ]
        or None,
    )


def _hub_repository(recipe: Mapping[str, Any]) -> str | None:
    """user/name of an encoder that is named by its repository on the Hub."""
    repository = hub_repository(recipe["model"]["encoder"])
    return repository and repository.partition("@")[0]


def _encoder_origin(recipe: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The licence of the pretrained weights, where timm knows it, and their repository on the Hub."""
    model = recipe["model"]
    if not model["pretrained"] or model["checkpoint"] or model["init_from"]:
        return None, None
    if repository := _hub_repository(recipe):
        return None, repository
    cfg = get_pretrained_cfg(model["encoder"])
    if cfg is None:
        return None, None
    hub_id = cfg.hf_hub_id if cfg.hf_hub_id and "/" in cfg.hf_hub_id else None
    return (cfg.license if cfg.license != "unknown" else None), hub_id


def _license_sentence(recipe: Mapping[str, Any]) -> str:
    if start := recipe["model"]["init_from"]:
        return f"Training started from another trained model, {start}: its terms hold for what was made of it."
    license, base = _encoder_origin(recipe)
    if license:
        return f"The encoder's pretrained weights ({base or 'timm'}) are under {license}; so is what is made of them."
    if base and _hub_repository(recipe):
        return (
            f"The terms of the encoder's pretrained weights are in [their repository](https://huggingface.co/{base})."
        )
    if recipe["model"]["pretrained"] or recipe["model"]["checkpoint"]:
        return "timm names no licence for the encoder's pretrained weights: ask their authors."
    return "The encoder was trained from random weights; the images' licence is that of their dataset."


def _dataset_name(data: Mapping[str, Any], name: str) -> str:
    own = data["custom"]["name"] if name in ("folder", "hub") else None
    return own or name


def _how_trained(model: Mapping[str, Any]) -> str:
    if not (model["pretrained"] or model["checkpoint"] or model["init_from"]):
        return "trained from scratch"
    return "fine-tuned (the head alone, the encoder frozen)" if model["freeze_encoder"] else "fine-tuned"


def _code(results: Mapping[str, Any]) -> str | None:
    """The version, and the commit where it is known, of the code that trained."""
    versions = results.get("versions", {})
    if not versions.get("benchmark"):
        return None
    commit = f", commit {versions['commit'][:12]}" if versions.get("commit") else ""
    return f"version {versions['benchmark']}{commit}{', modified' if versions.get('modified') else ''}"


def _scores(results: Mapping[str, Any], *, finished: bool) -> str:
    lines = [] if finished else ["**Training continues; these are not the final weights.**"]
    for dataset, scores in results["datasets"].items():
        mean_iou, accuracy = (_percent(scores[key]) for key in ("mean_iou", "pixel_accuracy"))
        lines.append(f"**{mean_iou} % mIoU** on {dataset}'s validation images ({accuracy} % of the pixels are right).")
        if scores["absent_classes"]:
            lines.append(
                f"{scores['absent_classes']} classes with neither label nor prediction are left out of the mean."
            )
    return "\n\n".join(lines)


def _machine(results: Mapping[str, Any]) -> str:
    if "device" not in results:
        return ""
    seconds, memory = results["train_seconds"], results["peak_memory_bytes"]
    return (
        f"It took {_duration(seconds)} on {results['world_size']} x {results['device']} "
        f"({results['images_per_second']:.1f} images/s, {memory / 2**30:.1f} GiB at the peak), "
        f"and {_duration(results['eval_seconds'])} of evaluation."
    )


def _classes(results: Mapping[str, Any]) -> str:
    lines = []
    for dataset, scores in results["datasets"].items():
        lines += [f"### IoU by class on {dataset}, in per cent", "", "| class | IoU |", "|---|---|"]
        lines += [f"| {name} | {_percent(iou)} |" for name, iou in scores["iou"].items()] + [""]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (seconds, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"
