"""Study files: the cells they give, the plain lines that train them, and all faults at once."""

import shlex
from pathlib import Path

import pytest
from launching import ROOT, parse

from benchmark.errors import UserError
from benchmark.models.modeling import HEADS
from benchmark.recipe.identity import protocol
from benchmark.study.study import load_study
from benchmark.training.build import check_model

STUDIES = ROOT / "recipes" / "studies"
SMALL = """
encoders:
  a: [{{model.encoder: test_vit}}]
  b: [{{model.encoder: test_vit2}}]
settings:
  one: [{recipe}]
  two: {{recipe: [{recipe}, {{train.steps: 5}}], encoders: [b], seeds: [3]}}
more_seeds:
  - {{setting: one, encoders: [a], seeds: [1, 2]}}
"""


@pytest.fixture
def small(tmp_path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL.format(recipe=ROOT / "recipes" / "quickstart.yaml"))
    return file


def test_the_paper_is_eighty_runs_and_six_more_seeds_under_the_eight_protocols():
    cells = load_study(STUDIES / "paper.yaml").cells
    assert len(cells) == 86
    assert len({cell.folder for cell in cells}) == 86
    by_setting: dict[str, set] = {}
    for cell in cells:
        by_setting.setdefault(cell.setting, set()).add((protocol(cell.recipe), cell.encoder))
    assert [len(pairs) for pairs in by_setting.values()] == [10] * 8
    # The default setting and the large one differ in the encoders alone.
    assert len({protocol for pairs in by_setting.values() for protocol, _ in pairs}) == 7
    assert len({cell.encoder for cell in cells}) == 10  # large ones too, so that their ranks are compared
    large = [cell.recipe.model.encoder for cell in cells if cell.setting == "large"]
    assert all("large" in name or "_l" in name for name in large), large


@pytest.mark.parametrize(
    ("name", "settings", "encoders"),
    [
        ("heads", {head: head for head in HEADS}, 8),
        ("heads_tiny", {head: head for head in HEADS}, 3),
        ("adapters", dict.fromkeys(("whole", "layer_decay", "lora", "frozen"), "linear"), 8),
        ("domains", dict.fromkeys(("ade20k", "coco_stuff", "cityscapes", "acdc", "gta5", "loveda"), "linear"), 8),
    ],
)
def test_further_studies_compare_the_same_encoders_under_settings_of_one_protocol_each(name, settings, encoders):
    cells = load_study(STUDIES / f"{name}.yaml").cells
    assert len(cells) == len(settings) * encoders + {"heads_tiny": 3}.get(name, 6)
    found = []
    for setting, head in settings.items():
        some = [cell for cell in cells if cell.setting == setting]
        assert len({cell.encoder for cell in some}) == encoders
        first, last = some[0].recipe, some[-1].recipe  # a recipe takes a while to read
        assert first.model.head == head and protocol(first) == protocol(last)
        check_model(first)
        found.append(protocol(first))
    assert len(set(found)) == len(settings)


def test_a_cell_is_a_plain_line_that_gives_its_recipe(small):
    cells = {cell.name: cell for cell in load_study(small, ["--train.steps", "7"]).cells}
    assert list(cells) == ["one/a-seed0", "one/a-seed1", "one/a-seed2", "one/b-seed0", "two/b-seed3"]
    cell = cells["one/a-seed1"]
    words = shlex.split(cell.line(["--num_processes", "1"]))
    assert words[:5] == ["accelerate", "launch", "--quiet", "--num_processes", "1"]
    assert Path(words[5]).samefile(ROOT / "train.py")
    recipe = parse(words[6:])
    assert recipe == cell.recipe
    assert (recipe.seed, recipe.train.steps, recipe.model.encoder, recipe.output.setting) == (1, 7, "test_vit", "one")
    assert recipe.output.dir == "runs/small/one/a-seed1"


def test_recipes_of_the_command_are_between_the_setting_and_the_encoder(small, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {crop_size: 64}\nmodel: {encoder: other}\n")
    cells = load_study(STUDIES / "paper.yaml", recipes=[str(mine)]).cells
    assert cells[0].recipe.data.crop_size == 64
    assert all(cell.recipe.model.encoder != "other" for cell in cells)


def test_all_faults_of_a_study_file_are_told_at_once(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(
        "encoder: {}\nseeds: [0, 0]\nencoders: {'a/b': [x.yaml], c: x.yaml}\n"
        "settings: {s: [{seed: 3}], t: {recipe: [3], encoders: [d], more: 1}}\n"
        "more_seeds:\n"
        "- {setting: u, encoders: [c], seeds: [1]}\n"
        "- {setting: [u], encoders: [c], seeds: [1]}\n"
        "- {setting: s, encoders: null, seeds: [1]}\n"
        "- {setting: s, encoders: [[c]], seeds: [1]}\n"
        "- {setting: s, encoders: vit, seeds: [1]}\n"
    )
    with pytest.raises(UserError) as error:
        load_study(file)
    for part in (
        "'encoder'",
        "[0, 0]",
        "'a/b'",
        "encoders.c",
        "settings.s sets seed",
        "holds 3",
        "'d'",
        "'more'",
        "'u'",
        "more_seeds[1] names the setting ['u']",
        "more_seeds[2] must be a list of names of encoders, not None",
        "more_seeds[3] must be a list of names of encoders, not [['c']]",
        "more_seeds[4] must be a list of names of encoders, not 'vit'",
    ):
        assert part in str(error.value), part


@pytest.mark.parametrize("key", ["seed", "output.dir", "output.hub_model_id"])
def test_what_is_each_runs_own_is_refused_on_the_command_line(small, key):
    with pytest.raises(UserError, match=key):
        load_study(small, [f"--{key}=3"])


def test_each_different_fault_of_the_recipes_is_told_with_a_run_that_has_it(small):
    with pytest.raises(UserError) as error:
        load_study(small, ["--train.stepz", "3"])
    assert "train.steps" in str(error.value)
    assert "one/a-seed0" in str(error.value)
    assert str(error.value).count("stepz") == 1
