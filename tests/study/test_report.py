"""The report's numbers against hand-made runs, what may not be compared, and its files."""

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
from launching import ROOT, run_python
from synthetic_runs import write_run

from benchmark.__main__ import main
from benchmark.errors import UserError
from benchmark.page.charts import cost_chart
from benchmark.page.page import render_page
from benchmark.page.samples import collect_samples
from benchmark.reporting.pictures import sample_names
from benchmark.study.answer import Thresholds, answer
from benchmark.study.collect import collect
from benchmark.study.metrics import OTHERS
from benchmark.study.report import build_report
from benchmark.study.scores import draw_scores
from benchmark.study.study import load_study
from benchmark.study.tables import COLUMNS, PAIR_COLUMNS, cells, latex, markdown, pair_cells, run_rows

QUICK = ROOT / "recipes" / "quickstart.yaml"


def write_study(folder, settings: dict[str, list[str]], skills: dict[str, float], seeds=(0, 1), **options) -> None:
    """Synthetic runs of each setting (its flags) and encoder (its skill), under runs/<setting>/<encoder>-seed<n>."""
    for number, (setting, flags) in enumerate(settings.items()):
        for encoder, skill in skills.items():
            for seed in seeds:
                write_run(
                    folder / setting / f"{encoder}-seed{seed}",
                    [QUICK],
                    ["--model.encoder", encoder, "--seed", str(seed), "--output.setting", setting, *flags],
                    skill=skill + 0.02 * number,
                    **{"hours": 1.0 + number} | options,
                )


@pytest.fixture
def folder(tmp_path):
    settings = {"cheap": ["--model.freeze_encoder", "true"], "dear": []}
    write_study(tmp_path / "s", settings, {"a": 0.9, "b": 0.7, "c": 0.5})
    return tmp_path / "s"


def test_rows_hold_what_the_runs_say(folder):
    report = build_report(collect([folder]), draws=500)
    cheap, dear = report["settings"]
    assert [row["encoder"] for row in cheap["rows"]] == ["a", "b", "c"]
    assert [row["rank_set"] for row in cheap["rows"]] == [[1, 1], [2, 2], [3, 3]]
    assert all(difference["sure"] for difference in cheap["differences"])
    for setting in (cheap, dear):
        for row in setting["rows"]:
            results = [json.loads((folder / run["folder"] / "results.json").read_text()) for run in row["runs"]]
            scores = [r["mean_iou"] for r in results]
            assert row["mean_iou"] == pytest.approx(np.mean(scores), abs=1e-12)
            assert row["std"] == pytest.approx(np.std(scores, ddof=1), abs=1e-12)
            assert row["interval"][0] < row["mean_iou"] < row["interval"][1]
            assert row["iou"]["sky"] == pytest.approx(np.mean([r["iou"]["sky"] for r in results]), abs=1e-12)
            assert row["curve"] == [[600, pytest.approx(row["mean_iou"], abs=1e-12)]]
    assert dear["rows"][0]["gpu_hours"] == 2.0
    (pair,) = report["pairs"]
    assert (pair["a"], pair["b"], pair["tau"], pair["cost_ratio"], pair["choice"]) == ("cheap", "dear", 1.0, 0.5, "a")
    assert pair["regret"] == 0
    assert "cheap: a is the best" in report["answer"][0]
    assert "cheap (at 0.50 of its GPU-hours" in report["answer"][-1]


def test_the_answer_follows_the_thresholds(folder):
    strict = build_report(collect([folder]), Thresholds(tau=1.0, regret=1.0), draws=500)
    assert "no cheaper setting is shown to do" in strict["answer"][-1]
    lax = build_report(collect([folder]), Thresholds(tau=-1.01, regret=1.0), draws=500)
    assert "is the cheapest that will do" in lax["answer"][-1]


def test_means_over_different_classes_are_not_ranked_silently(tmp_path):
    """One stray pixel of a class without a label takes a quarter of the mean, of that run alone."""
    for setting, strays in {"uneven": (0, 1, 0), "all": (1, 1, 2), "none": (0, 0, 0)}.items():
        for encoder, skill, stray in zip("abc", (0.85, 0.97, 0.5), strays, strict=True):
            for seed in (0, 1):
                flags = ["--model.encoder", encoder, "--seed", str(seed), "--output.setting", setting]
                folder = tmp_path / setting / f"{encoder}-seed{seed}"
                classes = ("sky", "ground", "star", "moon")
                results = write_run(folder, [QUICK], flags, skill, classes=classes, stray=stray)
                assert results["absent_classes"] == (0 if stray else 1)
    report = build_report(collect([tmp_path]), draws=300)
    (note,) = [note for note in report["notes"] if "no validation label" in note]
    assert note.startswith("uneven: ") and "(moon is predicted by b)" in note and "leave these classes out" in note
    assert note in markdown(report) and note in render_page(report, [])
    told = {line.partition(":")[0]: line for line in report["answer"]}
    for setting in report["settings"]:
        even = setting["setting"] != "uneven"
        assert all((row["best_probability"] is not None) == even for row in setting["rows"])
        for sets in (setting["rows"], [row["metrics"]["mean_boundary_iou"] for row in setting["rows"]]):
            assert [ranked["rank_set"] == [1, 3] for ranked in sets] == [not even] * 3
        assert all(row["metrics"]["pixel_accuracy"]["rank_set"] != [1, 3] for row in setting["rows"])
        assert any(pair["sure"] for pair in setting["differences"]) == even
    assert all((pair["tau"] is None) == ("uneven" in (pair["a"], pair["b"])) for pair in report["pairs"])
    assert "a scores highest" in told["uneven"] and "over different classes: see the notes" in told["uneven"]
    for setting in ("all", "none"):
        assert re.search("b is the best .*, beyond noise", told[setting])


def test_a_run_of_another_recipe_does_not_take_a_settings_name_and_missing_runs(tmp_path):
    """`a`, the first by name, was trained with another batch; `d` is not finished."""
    lines = [
        {"setting": "cheap", "encoder": name, "seed": 0, "folder": f"{name}-seed0", "arguments": []} for name in "abcd"
    ]
    for name, skill in {"a": 0.9, "b": 0.8, "c": 0.6}.items():
        flags = ["--model.encoder", name, "--output.setting", "cheap"]
        flags += ["--train.global_batch_size", "32"] * (name == "a")
        write_run(tmp_path / f"{name}-seed0", [QUICK], flags, skill)
    (tmp_path / "study.json").write_text(json.dumps({"name": "tiny", "cells": lines}))
    report = build_report(collect([tmp_path]), draws=300)
    first, second = report["settings"]
    assert (first["setting"], [row["encoder"] for row in first["rows"]]) == ("cheap", ["b", "c"])
    assert (second["setting"], [row["encoder"] for row in second["rows"]]) == ("cheap (2)", ["a"])
    assert "d" in [run["encoder"] for run in first["missing"]] and not second["missing"]
    assert "No run is finished of" in report["answer"][0] and report["answer"][0].endswith(" d.")
    (note,) = [note for note in report["notes"] if "tables are called" in note]
    assert note.endswith("train.global_batch_size (16, 32). cheap has b, c; cheap (2) has a.")


@pytest.mark.parametrize(
    ("seeds", "images", "words"),
    [
        ((0, 1), 2, "scores highest .*, but the validation images are too few"),
        ((0, 1), 20, "is the best .*, beyond noise"),
        ((0,), 20, "is the best .*, beyond the noise of the images; one seed says nothing of the noise of training"),
        ((0,), 1, "scores highest .*, but the validation images are too few"),
        ((0, 1), 1, "scores highest .*, but the validation images are too few"),
    ],
)
def test_the_answer_claims_no_more_than_the_draws_know(tmp_path, seeds, images, words):
    write_study(tmp_path, {"x": []}, {"a": 0.9, "b": 0.3}, seeds=seeds, images=images)
    report = build_report(collect([tmp_path]), draws=300)
    (told,) = report["answer"]
    assert re.search(words, told), told
    (setting,) = report["settings"]
    known = images > 2
    assert any("too few" in note for note in report["notes"]) != known
    for row in setting["rows"]:
        ranks = [row["rank_set"], *(metric["rank_set"] for metric in row["metrics"].values())]
        intervals = [row["interval"], *(metric["interval"] for metric in row["metrics"].values())]
        assert all((interval is None) != known for interval in intervals)
        assert all((ranks == [1, 2]) != known for ranks in ranks)
    assert render_page(report, []) and markdown(report)


def test_one_seed_is_said_wherever_the_answer_ranks(tmp_path):
    settings = {"cheap": ["--model.freeze_encoder", "true"], "dear": []}
    write_study(tmp_path, settings, {"a": 0.802, "b": 0.8, "c": 0.5, "d": 0.3}, seeds=(0,))
    answer = build_report(collect([tmp_path]), Thresholds(-1, 0.5), draws=300)["answer"]
    assert len(answer) == 3
    assert all("one seed says nothing of the noise of training" in told for told in answer)


def test_an_encoder_without_a_run_is_in_the_answer(tmp_path):
    write_study(tmp_path, {"x": []}, {"a": 0.9, "b": 0.3})
    cells = [{"setting": "x", "encoder": encoder, "seed": 0} for encoder in "abcd"]
    (tmp_path / "study.json").write_text(json.dumps({"name": "s", "cells": cells}))
    (told,) = build_report(collect([tmp_path]), draws=300)["answer"]
    assert told.endswith("No run is finished of c, d.")


def test_a_run_that_lost_its_counts_is_told(tmp_path):
    write_study(tmp_path, {"x": []}, {"a": 0.9, "b": 0.7, "c": 0.5}, seeds=(0,))
    cells = [{"setting": "x", "encoder": encoder, "seed": 0} for encoder in "abc"]
    (tmp_path / "study.json").write_text(json.dumps({"name": "s", "cells": cells}))
    (tmp_path / "x" / "a-seed0" / "confusion.npz").unlink()
    report = build_report(collect([tmp_path]), draws=200)
    assert any("confusion.npz is missing" in note for note in report["notes"])
    assert [run["encoder"] for run in report["settings"][0]["missing"]] == ["a"]


def test_encoders_of_one_name_stand_apart_with_all_their_seeds(tmp_path):
    for study, size in (("one", "base"), ("two", "large")):
        for seed in (0, 1, 2):
            flags = ["--output.setting", "x", "--seed", str(seed), "--model.encoder", f"vit_{size}"]
            write_run(tmp_path / study / "x" / f"dinov2-seed{seed}", [QUICK], flags, 0.8)
    for folders in ([tmp_path], [tmp_path / "one", tmp_path / "two"]):
        (setting,) = build_report(collect(folders), draws=200)["settings"]
        found = {row["encoder"]: row["seeds"] for row in setting["rows"]}
        assert found == {f"dinov2 (encoder vit_{size})": [0, 1, 2] for size in ("base", "large")}
        assert setting["seed_noise"]["degrees_of_freedom"] == 4


def test_regret_counts_encoders_that_the_cheap_setting_lacks(tmp_path):
    cheap = ["--model.freeze_encoder", "true"]
    write_study(tmp_path, {"cheap": cheap}, {"d": 0.6, "e": 0.5, "f": 0.4})
    write_study(tmp_path, {"dear": []}, {"a": 0.9, "d": 0.6, "e": 0.5, "f": 0.4}, hours=2.0)
    report = build_report(collect([tmp_path]), draws=300)
    (pair,) = report["pairs"]
    assert (pair["a"], pair["encoders"], pair["choice"]) == ("cheap", 3, "d")
    scores = {row["encoder"]: row["mean_iou"] for row in report["settings"][1]["rows"]}
    assert pair["regret"] == pytest.approx(scores["a"] - scores["d"])
    assert "no cheaper setting is shown to do" in report["answer"][-1] and "over 3 encoders" in report["answer"][-1]


def test_what_costs_as_much_or_nothing_is_not_cheaper(tmp_path):
    for hours in (0.0, 1.0):
        folder = tmp_path / str(hours)
        for setting, flags in (("x", []), ("y", ["--model.freeze_encoder", "true"])):
            write_study(folder, {setting: flags}, {"a": 0.9, "b": 0.6, "c": 0.4}, hours=hours)
        report = build_report(collect([folder]), draws=200)
        assert report["pairs"][0]["cost_ratio"] == (1 if hours else None)
        assert not any("To choose for" in told for told in report["answer"])


def test_rare_classes_are_those_with_few_labels_whatever_a_run_predicts(tmp_path):
    for name, stray in (("a", 5), ("b", 0)):
        for order in ("one", "two"):
            encoder = name if order == "one" else {"a": "b", "b": "a"}[name]
            flags = ["--output.setting", "x", "--model.encoder", encoder]
            write_run(tmp_path / order / "x" / f"{encoder}-seed0", [QUICK], flags, 0.8, images=9, stray=stray)
    found = [build_report(collect([tmp_path / order]), draws=200)["settings"][0] for order in ("one", "two")]
    assert [setting["rare_classes"] for setting in found] == [2, 2]


def test_notes_tell_of_changed_code_and_of_further_validation_data(tmp_path):
    write_study(tmp_path, {"x": []}, {"b": 0.7}, seeds=(0,))
    versions = {"benchmark": "0.1.0", "commit": "0" * 40, "modified": True}
    flags = ["--output.setting", "x", "--model.encoder", "a"]
    results = write_run(tmp_path / "x" / "a-seed0", [QUICK], flags, 0.8, versions=versions)
    notes = build_report(collect([tmp_path]), draws=200)["notes"]
    assert any(note.endswith("uncommitted changes to this package: x/a-seed0.") for note in notes)
    (name,) = results["datasets"]
    more = {name: results["datasets"][name], "night": results["datasets"][name]}
    write_run(tmp_path / "y" / "a-seed0", [QUICK], ["--output.setting", "y"], 0.8, datasets=more)
    notes = build_report(collect([tmp_path / "y"]), draws=200)["notes"]
    assert any(f"ranked on {name} alone" in note and "night" in note for note in notes)


def test_costs_and_rows_are_those_of_the_runs(tmp_path):
    write_study(tmp_path, {"cheap": ["--model.freeze_encoder", "true"]}, {"a": 0.9, "b": 0.6, "c": 0.4}, hours=1.0)
    write_study(tmp_path, {"dear": []}, {"a": 0.9, "b": 0.6, "c": 0.4}, hours=2.0)
    flags = ["--output.setting", "dear", "--model.encoder", "d", "--seed"]
    for seed, memory in ((0, 2**30), (1, 2**31)):
        measured = {"peak_memory_bytes": memory, "world_size": 4, "trainable_parameters": 10**6}
        write_run(tmp_path / "dear" / f"d-seed{seed}", [QUICK], [*flags, str(seed)], 0.3, hours=25.0, **measured)
    report = build_report(collect([tmp_path]), draws=200)
    assert report["pairs"][0]["cost_ratio"] == 0.5  # of the three encoders that both have
    row = next(row for row in report["settings"][1]["rows"] if row["encoder"] == "d")
    assert (row["gpu_hours"], row["peak_memory_bytes"]) == (100.0, 2**31)
    shown = dict(zip(COLUMNS, cells(row), strict=True))
    assert (shown["M parameters"], shown["M trained"], shown["GiB"]) == ("100.0", "1.0", "2.00")
    for hours, text in ((0.012345, "0.0123"), (999.4, "999"), (999.9, "1,000"), (1234.5, "1,234")):
        assert cells(row | {"gpu_hours": hours})[COLUMNS.index("GPU-hours")] == text
    pair = report["pairs"][0] | {"regret": 0.012, "regret_bound": 0.034}
    shown = dict(zip(PAIR_COLUMNS, pair_cells(pair), strict=True))
    assert (shown["regret"], shown["at most"]) == ("1.20", "3.40")


@pytest.mark.parametrize(("images", "rare"), [(9, 3), (10, 0)])
def test_a_class_in_ten_images_is_not_rare(tmp_path, images, rare):
    write_study(tmp_path, {"x": []}, {"a": 0.9}, images=images)
    assert build_report(collect([tmp_path]), draws=200)["settings"][0]["rare_classes"] == rare


def test_runs_that_were_trained_on_other_images_stand_apart_and_are_no_copies(tmp_path):
    results = write_run(tmp_path / "a", [QUICK], [], 0.8)
    other = results["dataset_fingerprint"] | {"digest": "content-other"}
    write_run(tmp_path / "b", [QUICK], [], 0.9, dataset_fingerprint=other)
    report = build_report(collect([tmp_path]), draws=200)
    assert [len(setting["rows"]) for setting in report["settings"]] == [1, 1]
    assert any("differ in training images" in note for note in report["notes"])
    assert not any("the same run twice" in note for note in report["notes"])


def test_a_learning_curve_is_that_of_the_first_dataset(tmp_path):
    results = write_run(tmp_path / "a", [QUICK], [], 0.8)
    (name,) = results["datasets"]
    both = results["datasets"] | {"night": results["datasets"][name]}
    write_run(tmp_path / "b", [QUICK], [], 0.8, datasets=both)
    lines = [{"step": step, f"val/{name}/mean_iou": step / 1000, "val/night/mean_iou": 0.0} for step in (300, 600)]
    (tmp_path / "b" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ((row,),) = [setting["rows"] for setting in build_report(collect([tmp_path / "b"]), draws=200)["settings"]]
    assert row["curve"] == [[300, 0.3], [600, 0.6]]


@pytest.mark.parametrize("metric", OTHERS)
def test_every_metric_is_compared_with_the_counts(tmp_path, metric):
    write_run(tmp_path / "a", [QUICK], [], 0.8, **{metric: 0.123})
    with pytest.raises(UserError, match=r"confusion.npz gives .* and results.json says 0.123; they do not belong"):
        collect([tmp_path])


def test_each_metric_has_the_seed_noise_of_its_own_scores(folder):
    groups = collect([folder]).groups
    for metric in ("mean_iou", "pixel_accuracy"):
        _, noises, _ = draw_scores(groups, 200, 0, metric)
        for group in groups:
            found = [np.var([run.results[metric] for run in group.of(name)], ddof=1) for name in group.encoders]
            assert noises[group.setting].variance == pytest.approx(np.mean(found))


def test_noise_is_borrowed_on_the_same_dataset_before_a_better_known_one(tmp_path):
    write_study(tmp_path, {"one": []}, {"a": 0.9, "b": 0.6}, seeds=(0,))
    write_study(tmp_path, {"two": ["--model.freeze_encoder", "true"]}, {"a": 0.9, "b": 0.6}, seeds=(0, 1))
    write_study(tmp_path, {"far": []}, {"a": 0.9, "b": 0.6}, seeds=(0, 1, 2, 3), digest="content-other")
    settings = {setting["setting"]: setting for setting in build_report(collect([tmp_path]), draws=200)["settings"]}
    assert settings["one"]["seed_noise"]["from"] == "two" and not settings["one"]["seed_noise"]["of_other_data"]


def test_the_cheapest_setting_whose_bounds_hold_stands_in_with_its_own_doubt():
    def setting(name, degrees):
        noise = {"degrees_of_freedom": degrees, "of_other_data": False}
        return {"setting": name, "rows": [], "missing": [], "seed_noise": noise}

    def pair(name, ratio, low, bound):
        told = {"a": name, "b": "dear", "cost_ratio": ratio, "tau": 0.9, "tau_interval": [low, 1.0], "encoders": 5}
        return told | {"choice": "x", "regret": 0.0, "regret_bound": bound}

    settings = [setting("dear", 4), setting("bad", 4), setting("cheap", 0), setting("good", 4)]
    pairs = [pair("good", 0.5, 0.8, 0.001), pair("bad", 0.1, 0.8, 0.02), pair("cheap", 0.2, 0.8, 0.001)]
    (told,) = answer(settings, pairs, Thresholds())
    assert told.startswith("To choose for dear, cheap (at 0.20 of its GPU-hours") and "is the cheapest that" in told
    assert told.endswith("; one seed says nothing of the noise of training.")


def test_the_same_runs_give_the_same_report_in_any_order(folder):
    folders = [path.parent for path in sorted(folder.rglob("results.json"))]
    once, again = (
        build_report(collect(order), draws=200)["settings"]
        for order in (folders, sorted(folders, key=lambda p: p.name))
    )
    for one in once:
        other = next(setting for setting in again if setting["setting"] == one["setting"])
        assert [row["interval"] for row in one["rows"]] == [row["interval"] for row in other["rows"]]


def test_what_is_not_comparable_stands_apart_and_says_why(tmp_path):
    write_study(tmp_path, {"x": []}, {"a": 0.9, "b": 0.7})
    flags = ["--output.setting", "x", "--model.encoder"]
    write_run(tmp_path / "y" / "c-seed0", [QUICK], [*flags, "c", "--optim.lr", "0.5"], 0.95)
    write_run(tmp_path / "y" / "d-seed0", [QUICK], [*flags, "d"], 0.95, digest="content-other")
    report = build_report(collect([tmp_path]), draws=200)
    tables = [[row["encoder"] for row in setting["rows"]] for setting in report["settings"]]
    assert tables == [["a", "b"], ["c"], ["d"]]
    assert sorted(setting["setting"] for setting in report["settings"]) == ["x", "x (2)", "x (3)"]
    note = next(note for note in report["notes"] if "3 tables" in note)
    assert "optim.lr (" in note
    assert "validation images" in note


def test_missing_interrupted_and_broken_runs_are_told_and_never_count(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(f"encoders: {{a: [{{model.encoder: a}}], b: [{{model.encoder: b}}]}}\nsettings: {{x: [{QUICK}]}}\n")
    study = load_study(file, folder=tmp_path / "runs")
    study.write()
    write_run(study.cells[0].folder, [QUICK], ["--model.encoder", "a", "--output.setting", "x"], 0.8)
    report = build_report(collect([study.folder]), draws=200)
    (setting,) = report["settings"]
    assert [row["encoder"] for row in setting["rows"]] == ["a"]
    assert setting["missing"] == [{"encoder": "b", "seed": 0, "state": "waiting", "sentence": None}]
    assert report["pairs"] == []
    assert setting["seed_noise"]["std"] is None
    write_run(study.cells[1].folder, [QUICK], ["--model.encoder", "b", "--output.setting", "x"], 0.7)
    other = (study.cells[0].folder / "confusion.npz").read_bytes()
    (study.cells[1].folder / "confusion.npz").write_bytes(other)
    report = build_report(collect([study.folder]), draws=200)
    assert any("do not belong together" in note for note in report["notes"])
    (missing,) = report["settings"][0]["missing"]
    assert (missing["encoder"], missing["state"]) == ("b", "failed")


def test_one_seed_borrows_the_noise_of_another_setting_and_says_so(tmp_path):
    write_study(tmp_path, {"known": []}, {"a": 0.9, "b": 0.7}, seeds=(0, 1, 2))
    write_study(tmp_path, {"single": ["--model.freeze_encoder", "true"]}, {"a": 0.9, "b": 0.7}, seeds=(0,))
    report = build_report(collect([tmp_path]), draws=200)
    known, single = sorted(report["settings"], key=lambda setting: setting["setting"])
    assert single["seed_noise"] == known["seed_noise"] | {"from": "known"}
    assert all(told.endswith("beyond noise.") for told in report["answer"][:2])
    assert known["seed_noise"]["degrees_of_freedom"] == 4
    assert any("borrowed from known." in note for note in report["notes"])
    write_study(tmp_path, {"other": []}, {"a": 0.9, "b": 0.7}, seeds=(0,), digest="content-other")
    report = build_report(collect([tmp_path]), draws=200)
    notes = report["notes"]
    (told,) = [told for told in report["answer"] if told.startswith("other: ")]
    assert told.endswith("beyond the noise of the images; the noise of training is that of another dataset.")
    assert any("other: " in note and "borrowed from known, which has another dataset" in note for note in notes)
    assert [row["std"] for row in single["rows"]] == [None, None]


def test_times_of_several_devices_are_not_compared(tmp_path):
    flags = ["--output.setting", "x", "--model.encoder"]
    write_run(tmp_path / "x" / "a-seed0", [QUICK], [*flags, "a"], 0.8)
    write_run(tmp_path / "x" / "b-seed0", [QUICK], [*flags, "b"], 0.7, hours=9.0, device="cpu")
    write_study(tmp_path, {"y": ["--model.freeze_encoder", "true"]}, {"a": 0.8, "b": 0.7})
    report = build_report(collect([tmp_path]), draws=200)
    assert report["pairs"][0]["cost_ratio"] is None
    assert any("several kinds" in note for note in report["notes"])
    x = next(setting for setting in report["settings"] if setting["setting"] == "x")
    assert [row["pareto"] for row in x["rows"]] == [True, True]  # b costs more and is worse, but on another device
    fronts = [cost_chart(setting["rows"], {"a": 0, "b": 1}).count('class="front"') for setting in report["settings"]]
    assert fronts == [2, 1]


def test_a_copied_run_is_no_further_seed(folder, tmp_path):
    write_run(tmp_path / "copy" / "a-seed0", [QUICK], ["--model.encoder", "a", "--output.setting", "dear"], 0.3)
    report = build_report(collect([folder, tmp_path / "copy"]), draws=200)
    (note,) = [note for note in report["notes"] if "the same run twice" in note]
    assert str(tmp_path / "copy" / "a-seed0") in note and str(folder / "dear" / "a-seed0") in note
    dear = next(setting for setting in report["settings"] if setting["setting"] == "dear")
    assert len(dear["rows"][0]["runs"]) == 2


def test_a_damaged_study_file_is_one_sentence(folder):
    for content in ('{"name": "s", "cells": [', '{"name": "s", "cells": [{}]}', "[]"):
        (folder / "study.json").write_text(content)
        with pytest.raises(UserError, match=r"study.json is damaged .* run the study's `sweep` again"):
            collect([folder])


def test_own_data_have_their_own_name(tmp_path):
    scores = write_run(tmp_path / "a", [QUICK], [], 0.8)["datasets"]["shapes"]
    write_run(tmp_path / "b", [QUICK], ["--seed", "1"], 0.8, dataset="moor", datasets={"folder": scores})
    with np.load(tmp_path / "b" / "confusion.npz") as file:
        arrays = {name.replace("shapes", "folder"): array for name, array in file.items()}
    np.savez_compressed(tmp_path / "b" / "confusion.npz", **arrays)
    (setting,) = build_report(collect([tmp_path / "b"]), draws=200)["settings"]
    assert setting["dataset"] == "moor"


def test_latex_keeps_the_signs_of_an_interval(folder):
    report = build_report(collect([folder]), draws=200)
    report["pairs"][0]["tau_interval"] = [-1.0, -0.5]
    report["settings"][0]["rows"][0]["encoder"] = "vit-7b"
    table = latex(report)
    assert " & $-$1.00--$-$0.50 & " in table and "vit-7b & " in table and " & 1--1 & " in table


def test_a_folder_without_a_finished_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="No finished run"):
        collect([tmp_path])
    with pytest.raises(UserError, match="There is no folder"):
        collect([tmp_path / "nowhere"])


def test_text_tables_hold_every_row_and_hostile_names(folder):
    report = build_report(collect([folder]), draws=200)
    report["settings"][0]["rows"][0]["encoder"] = "a_b|c%&\\"
    table = markdown(report)
    assert "a\\_b\\|c%&\\\\" in table
    assert r"a\_b|c\%\&\textbackslash{}" in latex(report)
    assert latex(report).count(r"\bottomrule") == 5  # two of each setting, and the pairs
    rows = list(csv.DictReader(io.StringIO(run_rows(report))))
    assert len(rows) == 12
    for row in rows:
        results = json.loads((folder / row["folder"] / "results.json").read_text())
        assert float(row["mean_iou"]) == pytest.approx(results["mean_iou"], abs=1e-12)
        assert (int(row["seed"]), row["protocol"]) == (results["seed"], results["protocol"])


def test_the_command_writes_five_files_and_trains_nothing(folder, tmp_path, capsys):
    main(["report", str(folder), "--output", str(tmp_path / "out")])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"report.{ending}" for ending in ("html", "md", "csv", "tex", "json")}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [setting["setting"] for setting in report["settings"]] == ["cheap", "dear"]
    assert capsys.readouterr().out.startswith((tmp_path / "out" / "report.md").read_text())


@pytest.mark.slow
def test_the_papers_eighty_six_runs_give_the_whole_report(tmp_path):
    """Synthetic results in the paper's layout and at its sizes."""
    study = load_study(ROOT / "recipes" / "studies" / "paper.yaml", folder=tmp_path / "paper")
    study.write()
    sizes = {"ade20k": (2000, 150), "pascal_voc": (1449, 21), "cityscapes": (500, 19)}
    for number, cell in enumerate(study.cells):
        images, classes = sizes[cell.recipe.data.val[0]]
        write_run(
            cell.folder,
            cell.files,
            cell.flags,
            skill=0.5 + 0.02 * (number % 10) + 0.002 * cell.seed,
            images=images,
            classes=[f"class {index}" for index in range(classes)],
            digest=f"content-{cell.recipe.data.val[0]}",
            hours=1 + number % 7,
        )
    done = run_python("-m", "benchmark", "report", str(study.folder))
    assert done.returncode == 0, done.stderr
    report = json.loads((study.folder / "report.json").read_text())
    assert [len(setting["rows"]) for setting in report["settings"]] == [10] * 8
    assert len(report["pairs"]) == 28
    assert [len(setting["differences"]) for setting in report["settings"]] == [45] * 8
    assert [setting["seed_noise"]["from"] for setting in report["settings"]] == [None, *["default"] * 7]
    assert (study.folder / "report.html").stat().st_size < 2_000_000


def test_other_metrics_have_an_interval_and_a_rank_set_of_their_own(folder):
    report = build_report(collect([folder]), draws=500)
    for setting in report["settings"]:
        for row in setting["rows"]:
            results = [json.loads((folder / run["folder"] / "results.json").read_text()) for run in row["runs"]]
            assert set(row["metrics"]) == set(OTHERS)
            for name, found in row["metrics"].items():
                assert found["score"] == pytest.approx(np.mean([r[name] for r in results]), abs=1e-12)
                assert found["interval"][0] < found["score"] < found["interval"][1]
                assert found["rank_set"] == row["rank_set"] and found["rank"] == row["rank"]
    text = markdown(report)
    assert "boundary IoU: rank set" in text and f"{100 * row['metrics']['mean_accuracy']['score']:.2f}" in text
    assert "boundary IoU: rank set" in latex(report)
    assert "mean_boundary_iou" in run_rows(report).partition("\n")[0]


def test_runs_without_boundary_counts_are_reported_without_boundary_iou(folder):
    for path in folder.rglob("confusion.npz"):
        arrays = {name: array for name, array in dict(np.load(path)).items() if "/" not in name}
        np.savez_compressed(path, **arrays)
    row = build_report(collect([folder]), draws=100)["settings"][0]["rows"][0]
    assert "mean_accuracy" in row["metrics"] and "mean_boundary_iou" not in row["metrics"]


def test_each_encoder_shows_its_own_prediction(folder):
    names = sample_names("shapes-3")
    for run in (folder / "cheap").iterdir():
        (run / "samples").mkdir()
        for name in ("shapes-3-image.jpg", names.label, names.prediction):
            (run / "samples" / name).write_bytes(run.name.encode())
    (sample,) = collect_samples(collect([folder]))
    found = {name: base64.b64decode(uri.partition(",")[2]).decode() for name, uri in sample["predictions"].items()}
    assert found == {name: f"{name}-seed0" for name in "abc"}
