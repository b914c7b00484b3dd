"""python -m benchmark prepare --recipe FILE [FILE ...] [--section.key value ...]
python -m benchmark prepare --images DIR --labels DIR [--val_images DIR --val_labels DIR | --val_share 0.2]
    [--output my.yaml]
python -m benchmark prepare --hub user/name [--hub_config NAME] [--val_share 0.2] [--output my.yaml]

With a recipe: build the datasets that it names, without training, and print what is in them. With folders of your own,
or a HuggingFace dataset: look at it, write a recipe that trains on it, and draw a sheet of images under their labels.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.errors import UserError
from benchmark.recipe.parser import CommandParser, load_recipe
from benchmark.recipe.schema import Recipe, flatten
from data_scripts.tables import format_table

CUSTOM = "data.custom."
PLACES = ["train_images", "train_labels", "val_images", "val_labels", "path", "config", "revision"]
COLUMNS = ["train_split", "val_split", "image_column", "label_column"]
# The keys that flags of the command or its guesses decide.
DRAFTED = ["data.train", "data.val", "data.root", *(CUSTOM + key for key in PLACES + COLUMNS)]
WRITTEN = "Written by `python -m benchmark prepare`."  # in the recipe and the sheet
SHEET_PAIRS = 12  # images on the sheet


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark prepare", description=__doc__)
    parser.add_recipe(required=False, keys=("data.",))
    parser.add_argument(
        "--images", metavar="DIR", help="a folder, zip or tar of training images, or a folder inside one"
    )
    parser.add_argument("--labels", metavar="DIR", help="the label maps of these images")
    parser.add_argument("--val_images", metavar="DIR", help="a folder of validation images")
    parser.add_argument("--val_labels", metavar="DIR", help="the label maps of these images")
    parser.add_argument("--hub", metavar="NAME", help="user/name of a dataset on the Hub, or its folder")
    parser.add_argument("--hub_config", metavar="NAME", help="its configuration, where it has several")
    parser.add_argument("--val_share", type=float, help="share of the training pairs that validates instead (0.2)")
    parser.add_argument("--output", default="my.yaml", metavar="FILE", help="the recipe to write (%(default)s)")
    args, overrides = parser.parse_known_args(arguments)
    if args.images or args.labels or args.hub:
        draft(args, _asked_keys(overrides))
    elif args.recipe:
        prepare(load_recipe(args.recipe, overrides))
    else:
        raise UserError(
            "Name what to prepare: a recipe with --recipe, or your own data with --images and --labels or --hub."
        )


def prepare(recipe: Recipe) -> None:
    """Build the datasets of a recipe and print what is in them."""
    from benchmark.training.datasets import check_sizes, prepare_dataset
    from data_scripts.report import format_report

    for name in dict.fromkeys([recipe.data.train, *recipe.data.val]):
        dataset = prepare_dataset(recipe, name)
        print(f"{name}: {dataset.folder}\n{format_report(dataset)}")
        if name in recipe.data.val and "validation" in dataset.splits:
            check_sizes(dataset, recipe.data.crop)


def _asked_keys(overrides: Sequence[str]) -> dict[str, Any]:
    """The recipe keys on the command line, with their values; UserError for those that a draft does not take."""
    values = dict(flatten(load_recipe([], overrides).to_dict()))
    asked = {key: values[key] for key in values if any(flag.partition("=")[0] == f"--{key}" for flag in overrides)}
    for key in asked:
        if not key.startswith("data.") or key in DRAFTED:
            raise UserError(f"A recipe that is drafted does not take --{key}: leave it out, or give it to train.py.")
    return asked


def draft(args, asked: Mapping[str, Any]) -> None:
    """Look at the data, print what they hold, and write the recipe, with the keys that are asked for, and the sheet."""
    from data_scripts.archive_formats import Reader
    from data_scripts.custom import parse_custom
    from data_scripts.inspection.draft_recipe import draft_recipe, fitting_crop

    output, dataset = Path(args.output), "hub" if args.hub else "folder"
    if output.suffix not in (".yaml", ".yml"):
        raise UserError(f"--output {output} is a recipe: let its name end in .yaml.")
    for file in (output, _sheet(output)):
        if file.exists() and not _is_sheet(file):
            raise UserError(f"{file} is there already: name another file with --output, or remove it.")
    keys = {key.removeprefix("data."): value for key, value in asked.items() if not key.startswith(CUSTOM)}
    custom_keys = {key.removeprefix(CUSTOM): value for key, value in asked.items() if key.startswith(CUSTOM)}
    with Reader() as reader:
        found, places = _look_at_hub(args) if args.hub else _look_at_folders(args, reader, asked)
        custom, notes = draft_recipe(found, custom_keys)
        custom |= places
        if args.val_share is not None or "validation" not in found.pairs:
            custom["val_share"] = 0.2 if args.val_share is None else args.val_share
        custom |= custom_keys
        _print_found(found, parse_custom(custom))
        data = {"train": dataset, "val": [dataset], "root": "/", "crop_size": fitting_crop(found.sizes, 16)}
        data |= {"num_workers": "auto", **keys, "custom": {"name": output.stem, **custom}}
        _write(output, found, data, notes)


def _look_at_folders(args, reader, asked: Mapping[str, Any]) -> tuple:
    """What was found, and the keys that say where it is."""
    from data_scripts.inspection.folders import inspect_folders
    from data_scripts.inspection.pairing import SUFFIXES

    if not (args.images and args.labels) or bool(args.val_images) != bool(args.val_labels):
        raise UserError("Images and labels go together: name both folders of each split.")
    places = {"train": (os.path.abspath(args.images), os.path.abspath(args.labels))}
    if args.val_images:
        places["validation"] = (os.path.abspath(args.val_images), os.path.abspath(args.val_labels))
    keys: dict[str, str] = {}
    for split, short in (("train", "train"), ("validation", "val")):
        if split in places:
            keys |= {f"{short}_images": places[split][0], f"{short}_labels": places[split][1]}
    suffixes = {key: asked[CUSTOM + key] for key in SUFFIXES if CUSTOM + key in asked}
    return inspect_folders(places, reader, suffixes, asked.get("data.allow_partial", False)), keys


def _look_at_hub(args) -> tuple:
    """What was found, and the keys that say where it is."""
    from data_scripts.inspection.hub import inspect_hub

    if args.images or args.labels or args.val_images or args.val_labels:
        raise UserError("--hub names a whole dataset: leave out the folders, or leave out --hub.")
    path = os.path.abspath(args.hub) if os.path.exists(args.hub) else args.hub
    return inspect_hub(path, args.hub_config, share=args.val_share)


def _sheet(output: Path) -> Path:
    """Where the pictures lie that show a recipe's data."""
    return output.with_suffix(".jpg")


def _is_sheet(file: Path) -> bool:
    """Whether a file is a sheet that was written before."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.info.get("comment") == WRITTEN.encode()
    except OSError:
        return False


def _write(output: Path, found, data: dict, notes: Sequence[str]) -> None:
    """Write the sheet and the recipe, if training takes it, and print the next command."""
    if found.problems:
        raise UserError(
            "\n".join([f"{len(found.problems)} problem(s); fix each and run it again:", *found.problems[:20]])
        )
    _check(found, data)
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet = _sheet(output)
    _draw_sheet(sheet, found, data["custom"])
    output.write_text(_recipe_text(output, data, notes), encoding="utf-8")
    print(f"\nThe recipe is {output}; look at {sheet}: colours must lie on what they name. Then train with\n")
    command = f"accelerate launch --quiet train.py --recipe {shlex.quote(str(output))}"
    print(f"{command} recipes/cpu.yaml\n{command} recipes/encoders/dinov2_base.yaml   # on a GPU")


def _check(found, data: Mapping[str, Any]) -> None:
    """Raise DatasetError or UserError where training would not take the keys, the pairs, the split or the labels."""
    from data_scripts.images import image_sum
    from data_scripts.listing import Source
    from data_scripts.own import check_apart
    from data_scripts.preparation import find_builder
    from data_scripts.problems import Problems

    source = Source(data["root"], data.get("allow_partial", False), data["custom"])
    listing = find_builder(data["train"]).list_dataset(source)
    Problems(listing.problems).raise_if_any(colors=False)
    train_ids = listing.rule.train_ids
    if unnamed := sorted(found.values.keys() - train_ids.keys()):
        raise UserError(
            f"The label value(s) {' and '.join(_shown(found, value) for value in unnamed)} have no class: add each to "
            "data.custom.label_mapping, as a class or as 255 (ignore)."
        )
    there = {train_ids[value] for sample in listing.samples["train"] for value in found.values_of[sample]}
    absent = [name for number, name in enumerate(listing.classes) if number not in there]
    if missing := [name for name in absent if name not in listing.options["allow_absent"]]:
        raise UserError(
            f"No pixel of the training split is {' or '.join(missing)}: take another share (--val_share) or draw "
            "(--data.custom.split_seed), or name what may be missing in --data.custom.allow_absent."
        )
    places = {
        split: {image_sum(pair.image): str(pair.image_name) for pair in map(found.read, samples)}
        for split, samples in listing.samples.items()
    }
    check_apart(places["train"], places.get("validation", {}), data["custom"].get("val_share") is not None)


def _shown(found, value: int) -> str:
    """A stored value, as a key of data.custom.label_mapping."""
    return f"{value >> 16},{value >> 8 & 255},{value & 255}" if found.kind == "colors" else str(value)


def _print_found(found, custom) -> None:
    """The pairs, sizes and kind of labels, and what each stored value becomes."""
    from data_scripts.inspection.folders import STORED

    for split, pairs in found.pairs.items():
        first = found.read(pairs[0])
        names = (getattr(name, "name", name) for name in (first.image_name, first.annotation_name))
        print(f"{split}: {len(pairs):,} pairs, such as {' and '.join(map(str, names))}")
        if left_out := found.unpaired.get(split):
            print(f"{split}: {left_out:,} file(s) without a partner left out, because of data.allow_partial")
    if found.turned:
        print(
            f"turned by EXIF: {len(found.turned):,} image(s), such as {found.read(found.turned[0]).image_name}. Pixels "
            "and labels are taken as they are stored: look at these, which the sheet shows first"
        )
    (height, width), count = found.sizes.most_common(1)[0]
    print(f"sizes: {len(found.sizes)}, most often {width}x{height} ({count:,} images)")
    print(f"labels: {STORED.get(found.kind, 'masks of 0 and 255')}")
    train_ids, total = custom.rule().train_ids, sum(found.values.values())
    rows = []
    for value, pixels in sorted(found.values.items()):
        train_id = train_ids.get(value)
        name = "not named" if train_id is None else "ignored" if train_id == 255 else custom.classes[train_id]
        rows.append((_shown(found, value), name, f"{pixels / total:.3%}"))
    print(format_table(rows, ("value", "class", "share of pixels"), left=2))


def _recipe_text(file: Path, data: dict, notes: Sequence[str]) -> str:
    import yaml

    comments = "\n".join(f"# {note}" for note in notes)
    text = yaml.safe_dump({"data": data}, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    return (
        f"# accelerate launch --quiet train.py --recipe {shlex.quote(str(file))} recipes/encoders/dinov2_base.yaml\n"
        f"# {WRITTEN}\n{comments}\n{text}"
        "model: {encoder: vit_base_patch14_dinov2.lvd142m, head: linear, patch_size: 16}\n"
        "train: {steps: 4000, eval_every: 500}\n"
    )


def _draw_sheet(file: Path, found, custom: dict) -> None:
    """Images, and beside each its labels over it, in a grid."""
    import io

    import numpy as np
    from PIL import Image

    from benchmark.reporting.pictures import overlay, stack_panels
    from data_scripts.custom import parse_custom
    from data_scripts.inspection.folders import stored_labels

    parsed = parse_custom(custom)
    rule, pairs = parsed.rule(), found.pairs["train"]
    panels = []
    count = min(SHEET_PAIRS, len(pairs))
    spread = [pairs[number * len(pairs) // count] for number in range(count)]
    for chosen in list(dict.fromkeys([*found.turned[: SHEET_PAIRS // 2], *spread]))[:SHEET_PAIRS]:
        sample = found.read(chosen)
        photo = Image.open(io.BytesIO(sample.image)).convert("RGB")
        labels = rule(stored_labels(sample, rule.colors)).labels
        drawn = overlay(photo, labels, parsed.classes, parsed.palette())
        plain = photo.resize((drawn.width, round(photo.height * drawn.width / photo.width)))
        pair = Image.new("RGB", (2 * drawn.width, max(drawn.height, plain.height)), "white")
        pair.paste(plain, (0, 0))
        pair.paste(drawn, (drawn.width, 0))
        pair.thumbnail((900, 900))
        panels.append(np.asarray(pair))
    Image.fromarray(stack_panels(panels)).save(file, quality=88, comment=WRITTEN)
