import re
import time
from copy import deepcopy
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from study_report import PIXEL, made_up_pictures, made_up_report

from benchmark.page.page import render_page
from benchmark.page.svg import DASH

HOSTILE = "<script>alert('x')</script>&amp;\"' --> ]]> \N{GRINNING FACE}\u202e\x00\x1b{{ 7 * 7 }} " + "long" * 60
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """The elements of a page, its tables as rows of (text, data-v) and whether every element is closed in order."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.open, self.tables, self.cell = [], [], [], False
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open += [tag] if tag not in VOID else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(["", dict(attributes).get("data-v")])
            self.cell = True

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1][0] += data


def charts_of(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", page, re.DOTALL)]


def nulled(value, keep=("name", "setting", "encoder", "better", "worse", "a", "b", "image", "label")):
    """The report with every number and optional value None; lists and names stay."""
    if isinstance(value, dict):
        return {key: value[key] if key in keep else nulled(value[key]) for key in value}
    if isinstance(value, list):
        return [nulled(item) for item in value]
    return value if isinstance(value, str) else None


def test_tables_hold_the_reports_numbers():
    report = made_up_report()
    tables = Page(render_page(report, [])).tables
    for setting, table in zip(report["settings"], tables[::3], strict=False):
        assert [cells[0][0] for cells in table[1:]] == [row["encoder"] for row in setting["rows"]]
        for row, cells in zip(setting["rows"], table[1:], strict=True):
            shown = dict(zip((head for head, _ in table[0]), cells, strict=True))
            assert shown["mean IoU, %"] == [f"{100 * row['mean_iou']:.2f}", str(row["mean_iou"])]
            low, high = (100 * end for end in row["interval"])
            assert shown["95 % interval"] == [f"[{low:.2f}, {high:.2f}]", str(row["interval"][0])]
            assert shown["rank"] == [str(row["rank"]), str(row["rank"])]
            assert shown["rank set"][0] == f"{{}}{DASH}{{}}".format(*row["rank_set"])
            assert float(shown["GPU-hours"][1]) == row["gpu_hours"]
            assert float(shown["GPU-hours"][0]) == pytest.approx(row["gpu_hours"], rel=0.005)
            assert shown["parameters, M"][0] == f"{row['parameters'] / 1e6:.1f}"
            assert shown["peak memory, GiB"][0] == "11.50"
            others = next(cells for cells in tables[tables.index(table) + 1] if cells[0][0] == row["encoder"])
            found = row["metrics"]["mean_boundary_iou"]
            assert others[1] == [f"{100 * found['score']:.2f}", str(found["score"])]
            assert others[3][0] == f"{{}}{DASH}{{}}".format(*found["rank_set"])
            assert shown["Pareto front"][0] == ("yes" if row["pareto"] else "no")
    (pair,) = report["pairs"]
    agreement = next(table for table in tables if table[0][0][0] == "cheap setting")
    assert [text for text, _ in agreement[1]][:4] == ["frozen", "default", "5", f"{pair['tau']:.2f}"]
    assert [text for text, _ in agreement[1]][6:9] == ["dinov2", "0.20", "2.13"]


def test_largest_page_is_small_quick_and_asks_for_nothing():
    report = made_up_report(settings=8, encoders=10, classes=150)
    start = time.process_time()
    page = render_page(report, made_up_pictures(report, 1))
    assert time.process_time() - start < 20
    assert len(page.encode()) < 2_000_000
    for tag, attributes in Page(page).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "style src")
        assert not attributes.get("src", "data:").lstrip().startswith(("http", "//"))
        assert attributes.get("href", "#").startswith("#")
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes)
    assert "http://" not in page and "https://" not in page and "url(" not in page and "@import" not in page


def test_pictures_from_elsewhere_are_left_out():
    picture = {"setting": "s", "name": "image 1", "image": "https://example.org/a.png", "label": "//example.org/b.png"}
    page = render_page(made_up_report(), [picture | {"predictions": {"dinov2": PIXEL, "mae": "javascript:alert(1)"}}])
    assert [attributes["src"] for tag, attributes in Page(page).elements if tag == "img"] == [PIXEL]
    assert "example.org" not in page and "javascript:" not in page


@pytest.mark.parametrize("part", ["settings", "rows", "pairs", "seeds", "encoders", "numbers", "intervals", "all"])
def test_page_of_little_is_a_page(part):
    report = made_up_report(seeds=1 if part == "seeds" else 3, encoders=1 if part == "encoders" else 4)
    if part in ("settings", "pairs"):
        report[part] = []
    elif part == "numbers":
        report = nulled(report)
    elif part == "all":
        report |= {"settings": [], "pairs": [], "answer": [], "notes": [], "versions": {}}
    for setting in report["settings"]:
        if part == "rows":
            setting |= {"rows": [], "differences": [], "missing": [], "classes": []}
        for row in setting["rows"]:
            if part == "intervals":
                row |= dict.fromkeys(("interval", "rank_set", "std"))
            if part == "numbers":
                row["metrics"] = {name: dict.fromkeys(("score", "interval", "rank_set")) for name in row["metrics"]}
                row |= {"iou": dict.fromkeys(row["iou"]), "interval": None, "rank_set": None, "seeds": []}
    page = render_page(report, [])
    parsed = Page(page)
    assert "None" not in re.sub("None(:| were)", "", page) and "nan" not in page
    for chart in charts_of(page):
        assert chart.get("role") == "img"
    if part == "numbers":
        (first, *_) = parsed.tables
        assert [text for text, _ in first[1][1:10]] == [DASH, DASH, DASH, DASH, "0", DASH, DASH, DASH, DASH]


def test_hostile_names_are_only_text():
    report = made_up_report(settings=1, encoders=2, classes=2)
    plain = Page(render_page(report, []))
    (setting,) = report["settings"]
    hostile = deepcopy(report) | {
        "name": HOSTILE,
        "answer": [HOSTILE],
        "notes": [HOSTILE],
        "versions": {HOSTILE: HOSTILE},
    }
    (made,) = hostile["settings"]
    made |= dict.fromkeys(("setting", "dataset", "protocol"), HOSTILE) | {"classes": [HOSTILE, "class 1"]}
    for row in made["rows"]:
        row["encoder"] += HOSTILE
        row |= {"model": HOSTILE, "device": HOSTILE, "precision": HOSTILE}
    for pair in made["differences"]:
        pair |= {"better": pair["better"] + HOSTILE, "worse": pair["worse"] + HOSTILE}
    made["missing"] = [{"encoder": HOSTILE, "seed": 1, "state": HOSTILE, "sentence": HOSTILE + "\ud800"}]
    page = render_page(hostile, [])
    page.encode()
    parsed = Page(page)
    assert "\x00" not in page and "\x1b" not in page and "49 long" not in page
    for tag in ("script", "table", "td", "section"):
        assert [e for e, _ in parsed.elements].count(tag) == [e for e, _ in plain.elements].count(tag)
    encoder = setting["rows"][0]["encoder"]
    said = encoder + HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    assert parsed.tables[0][1][0][0] == said
    titles = [element.text for chart in charts_of(page) for element in chart.iter("title")]
    assert any((text or "").startswith(said) for text in titles)
