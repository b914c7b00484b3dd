"""A study's report as one HTML page that needs nothing else: charts, tables, pictures, no network."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmark.page.charts import bump_chart, cost_chart, curve_chart, has_both, interval_chart, interval_text
from benchmark.page.heatmaps import class_heatmap, difference_matrix, tau_heatmap
from benchmark.page.svg import DASH, MINUS, clean, known, mark, picture
from benchmark.study.metrics import TITLES
from benchmark.study.tables import METRIC_COLUMNS


def render_page(report: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]]) -> str:
    """The page of a study.

    Args:
        report: what report.json holds. A number that is None is shown as a dash, and has no mark in a chart.
        pictures: of validation images: setting, name, image, label and predictions by encoder, as data URLs. Any
            other address is left out, so that the page asks no one for anything.

    Returns:
        HTML. Its own policy forbids every request and every script but the page's.
    """
    settings = report["settings"]
    # Numbered in the order of the first setting that has them, so that its best encoders differ most.
    encoders = list(dict.fromkeys(row["encoder"] for setting in settings for row in setting["rows"]))
    marks = {encoder: index for index, encoder in enumerate(encoders)}
    places = [{row["encoder"]: row for row in setting["rows"]} for setting in settings]
    ranks = {encoder: [rows[encoder]["rank"] if encoder in rows else None for rows in places] for encoder in encoders}
    names = [setting["setting"] for setting in settings]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "percent": lambda value: _text(value, "{:.2f}", 100),
        "decimals": _decimals,
        "digits": lambda value: _text(value, "{:#.3g}").rstrip(".") if abs(value or 0) < 999.5 else f"{value:,.0f}",
        "millions": lambda value: _text(value, "{:,.1f}", 1e-6),
        "gibibytes": lambda value: _text(value, "{:.2f}", 2**-30),
        "interval": lambda ends: interval_text(ends) or DASH,
        "plain_interval": lambda ends: "[{:.2f}, {:.2f}]".format(*ends).replace("-", MINUS) if has_both(ends) else DASH,
        "first": lambda ends: ends[0] if has_both(ends) else None,
        "sha256": lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
        "embedded": lambda address: address if str(address).startswith("data:image/") else None,
    }
    page = environment.get_template("page.html").render(
        report=report,
        settings=[setting | {"charts": _charts(setting, marks)} for setting in settings],
        encoders=encoders,
        places=places,
        symbols={encoder: Markup(_symbol(index)) for encoder, index in marks.items()},
        bump=Markup(bump_chart(names, ranks, marks)),
        tau=Markup(tau_heatmap(names, report["pairs"])),
        pictures=pictures,
        metric_heads=lambda names: [f"{TITLES[name]}: {what}" for name in names for what in METRIC_COLUMNS],
    )
    return clean(page)


def _charts(setting: Mapping[str, Any], marks: Mapping[str, int]) -> dict[str, Markup]:
    rows = setting["rows"]
    encoders = [row["encoder"] for row in rows]
    charts = {
        "intervals": interval_chart(rows, marks),
        "differences": difference_matrix(encoders, setting["differences"]),
        "cost": cost_chart(rows, marks),
        "curves": curve_chart(rows, marks),
        "classes": class_heatmap(encoders, setting["classes"], [row["iou"] for row in rows]),
    }
    return {name: Markup(chart) for name, chart in charts.items()}


def _symbol(index: int) -> str:
    """The mark of an encoder for a line of text; its name is beside it."""
    return picture(16, 16, "", mark(index, 8, 8, ""))


def _text(value: float | None, form: str, factor: float = 1) -> str:
    return form.format(factor * value).replace("-", MINUS) if known(value) else DASH


def _decimals(value: float | None, digits: int = 2) -> str:
    return _text(value, f"{{:,.{digits}f}}")
