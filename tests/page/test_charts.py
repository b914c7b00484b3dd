import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from study_report import made_up_report

from benchmark.page.charts import bump_chart, cost_chart, curve_chart, interval_chart
from benchmark.page.heatmaps import class_heatmap, difference_matrix, tau_heatmap
from benchmark.page.svg import DASH, MINUS, Scale, overlap, place_labels, spread


def marks(svg: str) -> dict[str, tuple[float, float]]:
    """Where each mark is, by what it says."""
    found = [path for path in ElementTree.fromstring(svg).iter("path") if path.get("class", "").startswith("m ")]
    place = {path.findtext("title"): re.fullmatch(r"translate\((\S+) (\S+)\)", path.get("transform")) for path in found}
    return {said: (float(match[1]), float(match[2])) for said, match in place.items()}


def numbered(rows) -> dict[str, int]:
    return {row["encoder"]: k for k, row in enumerate(rows)}


def test_bump_chart_has_better_ranks_above_and_equal_ones_level():
    ranks = {"a": [1, 3, None], "b": [2, 1, 1], "c": [2, None, 3], "d": [None, 2, None], "e": [4, None, 2]}
    svg = bump_chart(["s", "t", "u"], ranks, {name: k for k, name in enumerate(ranks)})
    found = marks(svg)
    assert len(found) == sum(rank is not None for row in ranks.values() for rank in row)
    height = {}
    for said, (_, y) in found.items():
        assert height.setdefault(int(said.rpartition(" ")[2]), y) == y
    assert [height[rank] for rank in sorted(height)] == sorted(height.values())
    assert found["b, s: rank 2"][0] != found["c, s: rank 2"][0]
    lines = {
        path.findtext("title"): path.get("d")
        for path in ElementTree.fromstring(svg).iter("path")
        if path.get("class").startswith("l ")
    }
    assert lines["b"].count("L") == 2 and lines["a"].count("L") == 1
    assert lines["c"].count("M") == 2 and "L" not in lines["c"]  # it has no rank in the middle


def test_cost_chart_is_to_scale_and_its_labels_keep_apart():
    rows = made_up_report(settings=1, encoders=9)["settings"][0]["rows"]
    for row, cost in zip(rows, [1, 10, 100, 3, 3, 3, 3.1, 3.1, None], strict=True):
        row["gpu_hours"] = cost
    svg = cost_chart(rows, numbered(rows))
    found = {said.partition(":")[0]: place for said, place in marks(svg).items()}
    assert set(found) == {row["encoder"] for row in rows[:-1]}
    (x1, x10, x100) = (found[row["encoder"]][0] for row in rows[:3])
    assert x10 - x1 == pytest.approx(x100 - x10, abs=0.2)  # the axis is logarithmic
    heights = [found[row["encoder"]][1] for row in rows[:-1]]
    assert heights == sorted(heights)  # the rows come from the best on
    slope = np.diff(heights[:2])[0] / (rows[0]["mean_iou"] - rows[1]["mean_iou"])
    for (a, above), (b, below) in combinations(zip(rows, heights, strict=False), 2):
        assert below - above == pytest.approx(slope * (a["mean_iou"] - b["mean_iou"]), abs=1.5)
    names = [text for text in ElementTree.fromstring(svg).iter("text") if (text.get("class") or "").startswith("name")]
    assert len(names) == len(found)
    boxes = []
    for text in names:
        x, y, width = float(text.get("x")), float(text.get("y")), 7 * len(text.text)
        left = {"start": x, "end": x - width, "middle": x - width / 2}[text.get("text-anchor")]
        boxes.append((left, y - 12, left + width, y + 2.9))
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))


def test_labels_of_many_points_at_one_place_keep_apart():
    taken = [(294, 194, 306, 206)]
    boxes = place_labels([(300, 200)] * 20, [90] * 20, taken, (0, 0, 800, 400))
    assert None not in boxes
    assert not any(overlap(a, b) for a, b in combinations([*boxes, *taken], 2))
    assert place_labels([(5, 5)], [90], [], (0, 0, 20, 20)) == [None]


def test_spread_moves_no_more_than_it_must():
    random = np.random.default_rng(0)
    for _ in range(50):
        wanted = random.uniform(0, 100, 6)
        placed = np.array(spread(wanted.tolist(), 10, 0, 200))
        assert (np.argsort(placed) == np.argsort(wanted)).all()
        assert np.diff(np.sort(placed)).min() >= 10 - 1e-9 and placed.min() >= 0
    assert spread([10, 50, 90], 10, 0, 100) == [10, 50, 90]
    assert spread([50, 50], 10, 0, 100) == [45, 55]
    assert spread([99, 100], 10, 0, 100) == [90, 100]


@pytest.mark.parametrize(
    "low, high, log", [(0, 1, False), (50.1, 50.2, False), (3, 3, False), (0.01, 400, True), (2, 30, True)]
)
def test_ticks_are_round_few_and_on_the_scale(low, high, log):
    scale = Scale.around([low, high], 0, 500, log)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 16 and all(scale.low <= tick <= scale.high for tick in ticks)
    assert all(float(f"{tick:.4g}") == pytest.approx(tick) for tick in ticks)
    assert 0 <= scale.at(low) <= scale.at(high) <= 500


def test_interval_chart_sorts_and_spans_the_interval():
    rows = made_up_report(settings=1, encoders=4)["settings"][0]["rows"][::-1]
    rows[0]["interval"] = None
    svg = interval_chart(rows, numbered(rows))
    found = {said.partition(":")[0]: place for said, place in marks(svg).items()}
    by_height = sorted(found, key=lambda name: found[name][1])
    assert by_height == [row["encoder"] for row in sorted(rows, key=lambda row: -row["mean_iou"])]
    assert [found[name][0] for name in by_height] == sorted((x for x, _ in found.values()), reverse=True)
    bars = [path for path in ElementTree.fromstring(svg).iter("path") if path.get("class").startswith("bar")]
    assert len(bars) == 3
    for bar in bars:
        (x0, y0), (x1, y1) = (map(float, point.split()) for point in bar.get("d")[1:].split("L"))
        x, y = found[bar.findtext("title").partition(":")[0]]
        assert y0 == y1 == y and x == pytest.approx((x0 + x1) / 2, abs=0.2)  # these intervals are symmetric


def test_a_tick_stands_at_each_run_and_a_front_is_of_one_device_and_precision():
    row = made_up_report(settings=1, encoders=1)["settings"][0]["rows"][0]
    runs = [{**row["runs"][0], "mean_iou": row["mean_iou"] + shift} for shift in (-0.01, 0.01)]
    svg = interval_chart([row | {"runs": runs}], {row["encoder"]: 0})
    ticks = [float(x) for x in re.findall(r'class="run" d="M([\d.]+)', svg)]
    ((mean, _),) = marks(svg).values()
    assert len(ticks) == 2 and ticks[0] < mean < ticks[1] and mean == pytest.approx(sum(ticks) / 2, abs=0.2)
    kinds = [("a GPU", "bf16"), ("a GPU", "fp32"), ("a CPU", "fp32")]
    rows = [
        row
        | {"encoder": f"{device} {precision} {hours}", "device": device, "precision": precision, "pareto": True}
        | {"gpu_hours": hours, "mean_iou": 0.3 + 0.1 * hours}
        for device, precision in kinds
        for hours in (1, 2)
    ]
    fronts = re.findall(r'class="front" d="([^"]+)', cost_chart(rows, numbered(rows)))
    assert [front.count("L") for front in fronts] == [2, 2, 2]  # two encoders each, and the corner between them


def test_curves_break_where_a_score_is_missing_and_keep_their_last_mark():
    rows = made_up_report(settings=1, encoders=3)["settings"][0]["rows"]
    rows[0]["curve"][4][1] = None
    rows[1]["curve"] = []
    svg = curve_chart(rows, numbered(rows))
    lines = {
        path.findtext("title"): path.get("d")
        for path in ElementTree.fromstring(svg).iter("path")
        if path.get("class").startswith("l ")
    }
    assert set(lines) == {rows[0]["encoder"], rows[2]["encoder"]}
    assert lines[rows[0]["encoder"]].count("M") == 2 and lines[rows[2]["encoder"]].count("L") == 19
    step, score = rows[2]["curve"][-1]
    assert f"{rows[2]['encoder']}, step {step}: {100 * score:.2f} %" in marks(svg)


def cells(svg: str) -> list[list[tuple[str, str]]]:
    """The class and title of each cell, by row."""
    rows = [g for g in ElementTree.fromstring(svg).iter("g") if g.get("transform")]
    return [[(path.get("class"), path.findtext("title")) for path in row.iter("path")] for row in rows]


def test_class_heatmap_has_the_worst_class_first_and_unknown_ones_last():
    iou = [{"x": 0.9, "y": 0.2, "z": None, "w": None}, {"x": 0.8, "y": None, "z": None, "w": 0.5}]
    svg = class_heatmap(["a", "b"], ["x", "y", "z", "w"], iou)
    rows = [g for g in ElementTree.fromstring(svg).iter("g") if g.get("transform")]
    assert [row.find("text").text for row in rows] == ["y", "w", "x", "z"]
    assert [row.findall("text")[1].text.split() for row in rows] == [
        ["20", "20", DASH],
        ["50", DASH, "50"],
        ["85", "90", "80"],
        [DASH] * 3,
    ]
    assert cells(svg)[0][:2] == [("h2", "mean 20.00"), ("h2", "a 20.00")]


def test_difference_matrix_is_antisymmetric_and_colours_what_is_sure():
    pairs = [{"better": "a", "worse": "b", "difference": 0.03, "interval": [0.01, 0.05], "sure": True}]
    pairs += [{"better": "c", "worse": "a", "difference": 0.001, "interval": None, "sure": False}]
    found = [[style for style, _ in row] for row in cells(difference_matrix(["a", "b", "c"], pairs))]
    assert found == [["self", "h7", "h0"], ["n7", "self", "none"], ["h0", "none", "self"]]
    assert f"a {MINUS} b: +3.00 [1.00, 5.00] points, sure" in difference_matrix(["a", "b"], pairs)


def test_tau_heatmap_is_symmetric():
    pair = {"a": "s", "b": "t", "tau": -0.62, "tau_interval": [-0.9, 0.1], "encoders": 5}
    found = cells(tau_heatmap(["s", "t", "u"], [pair, pair | {"b": "u", "tau": None}]))
    assert [[style for style, _ in row] for row in found] == [
        ["self", "n6", "none"],
        ["n6", "self", "none"],
        ["none", "none", "self"],
    ]
    assert found[0][1][1] == "s, t: tau -0.62 [-0.90, 0.10], 5 encoders"
