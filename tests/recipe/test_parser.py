import json
from functools import cache

import pytest

from benchmark.errors import UserError
from benchmark.recipe.identity import identity, protocol
from benchmark.recipe.parser import CommandParser, load_recipe
from benchmark.recipe.schema import KEYS, Data, Recipe, flatten


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "recipe.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_later_files_and_then_flags_override_key_by_key(write):
    first = write("seed: 1\ntrain: {steps: 10, global_batch_size: 4}\ndata: {val: [a, b]}\n", "first.yaml")
    second = write("train: {steps: 20}\ndata: {val: [c]}\n", "second.yaml")
    recipe = load_recipe([first, second], ["--seed", "3", "--model.image_mean=[0.1, 0.2, 0.3]"])
    assert (recipe.seed, recipe.train.steps, recipe.train.global_batch_size) == (3, 20, 4)
    assert recipe.data.val == ["c"] and recipe.model.image_mean == [0.1, 0.2, 0.3]
    assert recipe.output.setting == "first" and recipe.output.dir.startswith("runs/first/")


def test_overrides_may_be_anywhere_on_the_line(write):
    parser = CommandParser()
    parser.add_recipe()
    line = ["--train.steps", "7", "--recipe", write("seed: 2"), "--optim.lr", "0.5"]
    _, recipe = parser.parse_recipe(line)
    assert (recipe.train.steps, recipe.seed, recipe.optim.lr) == (7, 2, 0.5)


def test_a_resolved_recipe_reads_back_as_itself(write):
    recipe = load_recipe([write("data: {crop_size: [32, 64], root: '3'}\nmodel: {checkpoint: 'a: b', num_points: 5}")])
    assert load_recipe([write(recipe.to_yaml(), "resolved.yaml")]) == recipe


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("train: {stepz: 5}", [], "train.stepz.*did you mean train.steps"),
        ("steps: 5", [], "did you mean train.steps"),
        ("", ["--train.warmup", "3"], "'train.warmup'.*: the keys of 'train' are steps, global_batch_size"),
        ("", ["--trian.step", "3"], "did you mean train.steps"),
        ("", ["--train.step", "3"], "did you mean train.steps"),
        ("train:\n  steps: 3\n  steps: 4", [], "line 3.*'steps' is there twice"),
        ("? [1, 2]\n: 3", [], "unhashable key"),
        ("train: 3", [], "'train' .*is a section"),
        ("train: {steps: 0}", [], "train.steps in .* must be a whole number above 0, not 0"),
        ("train: {steps: 1.5}", [], "train.steps in .* must be a whole number"),
        ("train: {steps: true}", [], "train.steps in .* must be a whole number"),
        ("train: {compile: 1}", [], "train.compile in .* must be true or false, not 1"),
        ("train: {precision: fp8}", [], "one of fp32, bf16, fp16, not fp8"),
        ("optim: {lr: '1e-4'}", [], "optim.lr .* must be a number above 0"),
        ("optim: {lr: null}", [], "optim.lr in .* must be a number above 0, not null"),
        ("optim: {lr: .inf}", [], "optim.lr .*must be"),
        ("optim: {lr: .nan}", [], "optim.lr .*must be"),
        ("data: {num_workers: many}", [], "data.num_workers in .* must be a whole number, 0 or more.*auto, not many"),
        ("data: {num_workers: -1}", [], "data.num_workers in .* must be a whole number, 0 or more.*auto, not -1"),
        ("data: {val: shapes}", [], "data.val .* must be a list"),
        ("data: {val: []}", [], "data.val must name at least one"),
        ("data: {crop_size: [1, 2, 3]}", [], "one number or \\[height, width\\]"),
        ("data: {crop_size: 100}", [], "model.patch_size 16.*\\[96, 96\\]"),
        ("model: {image_mean: [1, 2]}", [], "model.image_mean must hold three"),
        ("model: {encoder: [a]}", [], "model.encoder .* must be a text"),
        ("seed: -1", [], "seed in .* must be a whole number, 0 or more"),
        ("a: [", [], "not good YAML"),
        ("- a", [], "must hold keys and values"),
        ("", ["--seed"], "--seed .* has no value"),
        ("", ["loose"], "'loose' .* belongs to no flag"),
        ("", ["--train.steps", "x", "--train.steps", "1"], "train.steps on the command line must be .*, not x"),
        ("train: {steps: 0}", ["--train.steps", "1"], r"train.steps in .*recipe\.yaml must be .*, not 0"),
        ("optim: {betas: [0.9]}", [], "optim.betas must hold two numbers below 1"),
        ("augment: {hue: 0.6}", [], "augment.hue must be at most 0.5"),
        ("augment: {min_scale: 3}", [], "augment.max_scale 2.0 must not be below min_scale 3"),
        ("augment: {flip_probability: 2}", [], "augment.flip_probability in .* must be a number from 0 to 1, not 2"),
        ("model: {mask2former: {num_heads: 7}}", [], "hidden_size 256 must be a multiple of 4 and of num_heads 7"),
        ("base: [a]", [], "base in .* must name one recipe file"),
        ("base: recipe.yaml", [], r"recipe\.yaml is its own base"),
        ("base: nothing.yaml", [], r"There is no recipe .*nothing\.yaml"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(write, text, flags, expected):
    with pytest.raises(UserError, match=expected) as error:
        load_recipe([write(text)], flags)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_nearest(write, tmp_path):
    write("", "quickstart.yaml")
    with pytest.raises(UserError, match=r"did you mean .*quickstart\.yaml"):
        load_recipe([str(tmp_path / "quickstrat.yaml")])


def test_a_recipe_says_only_what_differs_from_its_base(write, tmp_path):
    """Which is found beside it, wherever the command is run; files and flags override it as ever."""
    (tmp_path / "deep").mkdir()
    write("seed: 1\ntrain: {steps: 10, log_every: 2}", "first.yaml")
    write("base: first.yaml\ntrain: {steps: 20}\nmodel: {patch_size: 8}", "second.yaml")
    third = write("base: ../second.yaml\nmodel: {patch_size: 32}", "deep/third.yaml")
    recipe = load_recipe([third], ["--train.log_every", "3"])
    assert (recipe.seed, recipe.train.steps, recipe.train.log_every, recipe.model.patch_size) == (1, 20, 3, 32)
    assert recipe.output.setting == "third" and "base" not in recipe.to_dict()


def test_an_old_name_is_read_as_the_new_one(write):
    recipe = load_recipe([write("model: {num_points: 5}")], ["--model.head", "mask2former"])
    assert recipe.model.mask2former.num_points == 5 and recipe.model.head_options()["num_points"] == 5
    assert load_recipe([], ["--model.num_points=6"]).model.mask2former.num_points == 6


def test_defaults_of_the_head_are_those_of_the_recipe():
    """A model that is built without a recipe, or was saved before a key was added, is the same model."""
    import inspect

    from benchmark.models.mask2former_head import Mask2FormerHead
    from benchmark.models.mask2former_loss import mask2former_loss

    defaults = {
        name: parameter.default
        for function in (Mask2FormerHead.__init__, mask2former_loss)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty and name != "positions"
    }
    assert defaults == load_recipe([], ["--model.head=mask2former"]).model.head_options()


def test_numbers_may_be_written_in_scientific_notation(write):
    assert load_recipe([write("optim: {lr: 1e-4}")]).optim.lr == 1e-4


def base(key: str) -> list[str]:
    """The flags of a recipe in which `key` counts."""
    for head in ("mask2former", "eomt"):
        if key.startswith(f"model.{head}."):
            return [f"--model.head={head}"]
    return ["--data.train=folder"] if key.startswith("data.custom.") else []


@cache
def plain(key: str) -> Recipe:
    """The base recipe."""
    return load_recipe([], base(key))


@cache
def changed(key: str) -> Recipe:
    """The base recipe but for another value of `key`."""
    kind = type(dict(flatten(plain(key).to_dict()))[key])
    for value in (
        *{bool: ("true", "false"), float: ("0.3", "0.75")}.get(kind, ()),  # what is refused takes longest
        *("7", "0.3", "0.75", "true", "false", "32", "mask2former", "fp32", "cosine", "[x]", "[0.1, 0.2]"),
        *("[0.1, 0.2, 0.3]", "[[1, 2, 3]]", "{1: 2}"),
    ):
        try:
            recipe = load_recipe([], [*base(key), f"--{key}={value}"])
        except UserError:
            continue
        if recipe.to_dict() != plain(key).to_dict():
            return recipe
    raise AssertionError(f"no other value for {key}")


def test_the_protocol_ignores_encoder_seed_and_machine_but_no_other_key():
    unchanged = {key for key in KEYS if protocol(changed(key)) == protocol(plain(key))}
    assert unchanged == {
        "seed",
        *(f"data.{key}" for key in ("root", "cache_dir", "num_workers", "custom.name", "custom.allow_absent")),
        *(f"model.{key}" for key in ("encoder", "pretrained", "checkpoint", "image_mean", "image_std")),
        *(f"train.{key}" for key in ("micro_batch_size", "compile", "cuda_graph", "deterministic")),
        *(
            f"train.{key}"
            for key in ("eval_batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "keep_best")
        ),
        *(key for key in KEYS if key.startswith("output.")),
    }


def test_sections_that_the_recipe_does_not_use_count_for_nothing():
    """Those of another head, and data.custom where no dataset is made of it."""
    unchanged = load_recipe([])
    for flag in ("--model.mask2former.num_points=7", "--model.eomt.num_blocks=7", "--data.custom.path=x"):
        other = load_recipe([], [flag])
        assert protocol(other) == protocol(unchanged) and identity(other) == identity(unchanged)


def test_a_hash_holds_only_what_differs_from_the_defaults(monkeypatch):
    """So a key that is added later changes no hash."""
    before = protocol(load_recipe([], ["--optim.lr=0.5"]))
    monkeypatch.delitem(KEYS, "optim.eps")
    flat = dict(flatten(load_recipe([], ["--optim.lr=0.5"]).to_dict()))
    assert "optim.eps" in flat
    monkeypatch.setattr(
        "benchmark.recipe.identity.flatten", lambda tree: [item for item in flatten(tree) if item[0] != "optim.eps"]
    )
    assert protocol(load_recipe([], ["--optim.lr=0.5"])) == before


def test_one_crop_has_one_protocol_however_it_is_written():
    square, pair, other = (protocol(Recipe(data=Data(crop_size=crop))) for crop in (512, [512, 512], [512, 256]))
    assert square == pair != other


def test_a_seed_that_generators_cannot_take_is_refused():
    with pytest.raises(UserError, match=r"seed must be below 2\*\*31"):
        Recipe(seed=2**31)


def test_a_run_may_be_resumed_on_another_machine_but_not_by_another_recipe():
    kept = {key for key in KEYS if identity(changed(key)) == identity(plain(key))}
    assert {"data.root", "data.num_workers", "train.micro_batch_size", "train.compile", "output.dir"} <= kept
    assert not kept & {
        "seed",
        "train.steps",
        "data.train",
        "model.encoder",
        "model.checkpoint",
        "optim.lr",
        "train.precision",
    }


def test_names_beyond_the_first_65536_characters_are_read(tmp_path):
    """As in emoji, which JSON escapes as two characters that YAML refuses."""
    names = ["🚗 car", "道路", "Straße"]
    (tmp_path / "x.yaml").write_text(f"data: {{custom: {{classes: {json.dumps(names, ensure_ascii=False)}}}}}")
    assert list(load_recipe([str(tmp_path / "x.yaml")]).data.custom.classes) == names


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--optim.warmup_steps=[5, 5]", "--train.steps=10"], "takes 10 steps, but train.steps is 10: lower the one"),
        (["--optim.warmup_steps=[5]"], r"one number or \[head, encoder\], not \[5\]"),
        (["--optim.layer_decay=1.1"], "must be at most 1, not 1.1"),
        (["--optim.clip_norm=0"], "clip_norm on the command line must be a number above 0 or null, not 0"),
        (["--optim.schedule=step"], "must be one of poly, cosine, constant, not step"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        load_recipe([], flags)
