"""The report as text: Markdown, LaTeX (booktabs), and CSV with one row a run."""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from benchmark.study.metrics import OTHERS, TITLES

COLUMNS = (
    "encoder",
    "seeds",
    "mIoU",
    "std",
    "95 % interval",
    "rank",
    "rank set",
    "best",
    "M parameters",
    "M trained",
    "GPU-hours",
    "images/s",
    "GiB",
    "GFLOPs",
)
PAIR_COLUMNS = (
    "cheap",
    "expensive",
    "encoders",
    "tau",
    "95 % interval",
    "p",
    "choice",
    "regret",
    "at most",
    "cost ratio",
)
METRIC_COLUMNS = ("%", "95 % interval", "rank set")
RUN_KEYS = (
    *("setting", "encoder", "model", "seed", "state", "dataset", "protocol", "steps", "mean_iou", "parameters"),
    *("trainable_parameters", "gpu_hours", "images_per_second", "peak_memory_bytes", "gflops", "device", "precision"),
    *OTHERS,
    "folder",
)


def number(value: float | None, digits: int = 2, factor: float = 1.0, none: str = "-") -> str:
    """A number with so many digits behind the point; `none` where the data cannot say."""
    return none if value is None else f"{factor * value:,.{digits}f}"


def interval(values: Sequence[float] | None, digits: int = 2, factor: float = 1.0) -> str:
    """low..high; a dash where the data cannot say."""
    return "-" if values is None else f"{number(values[0], digits, factor)}..{number(values[1], digits, factor)}"


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of a setting under COLUMNS; scores in per cent."""
    return (
        row["encoder"],
        str(len(row["seeds"])),
        number(row["mean_iou"], 2, 100),
        number(row["std"], 2, 100),
        interval(row["interval"], 2, 100),
        str(row["rank"]),
        interval(row["rank_set"], 0),
        number(row["best_probability"]),
        number(row["parameters"], 1, 1e-6),
        number(row["trainable_parameters"], 1, 1e-6),
        _significant(row["gpu_hours"]),
        number(row["images_per_second"], 1),
        number(row["peak_memory_bytes"], 2, 1 / 2**30),
        number(row["gflops"], 1),
    )


def metric_columns(setting: dict[str, Any]) -> tuple[str, ...]:
    """The heads of a setting's table of other metrics; none where its runs have none."""
    names = setting["rows"][0].get("metrics", {})
    return ("encoder", *(f"{TITLES[name]}: {what}" for name in names for what in METRIC_COLUMNS)) if names else ()


def metric_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of a setting under `metric_columns`; scores in per cent."""
    found = [
        (number(m["score"], 2, 100), interval(m["interval"], 2, 100), interval(m["rank_set"], 0))
        for m in row["metrics"].values()
    ]
    return row["encoder"], *(cell for three in found for cell in three)


def pair_cells(pair: dict[str, Any]) -> tuple[str, ...]:
    """A pair of settings under PAIR_COLUMNS; regret in points of mIoU."""
    return (
        pair["a"],
        pair["b"],
        str(pair["encoders"]),
        number(pair["tau"]),
        interval(pair["tau_interval"]),
        number(pair["p"], 3),
        pair["choice"] or "-",
        number(pair["regret"], 2, 100),
        number(pair["regret_bound"], 2, 100),
        number(pair["cost_ratio"]),
    )


def markdown(report: dict[str, Any]) -> str:
    """report.md."""
    parts = [f"# {_plain(report['name'])}", *_points(report["answer"])]
    for setting in report["settings"]:
        parts.append(f"## {_plain(setting['setting'])}")
        if setting["rows"]:
            parts.append(describe_setting(setting))
            parts.append(_markdown_table(COLUMNS, [cells(row) for row in setting["rows"]]))
            if columns := metric_columns(setting):
                parts.append(_markdown_table(columns, [metric_cells(row) for row in setting["rows"]]))
        parts += _points([missing_sentence(run) for run in setting["missing"]])
    if report["pairs"]:
        parts.append("## Agreement between settings")
        parts.append(_markdown_table(PAIR_COLUMNS, [pair_cells(pair) for pair in report["pairs"]]))
    parts += ["## Notes", *_points(report["notes"])] if report["notes"] else []
    parts.append(
        f"Statements are at 95 %, from {report['draws']:,} draws. mIoU in per cent, differences and regret in points; "
        "a dash where the data cannot say. docs/statistics.md says what each number means."
    )
    return "\n\n".join(parts) + "\n"


def describe_setting(setting: dict[str, Any]) -> str:
    """What a setting's table rests on, in a sentence or two."""
    noise = setting["seed_noise"]
    rare = setting["rare_classes"]
    told = f"{setting['dataset']}, {setting['images']:,} validation images, {len(setting['classes'])} classes"
    told += f" ({rare} of them in fewer than 10 images)" if rare else ""
    told += f", {setting['steps']:,} steps. "
    if noise["std"] is None:
        return told + "Image sampling only: no statement about training again."
    source = f", from {noise['from']}" if noise["from"] else ""
    return (
        told
        + f"Seeds differ by {100 * noise['std']:.2f} points ({noise['degrees_of_freedom']} degrees of freedom{source})."
    )


def missing_sentence(run: dict[str, Any]) -> str:
    """What is known of a run without a result."""
    told = f"{run['encoder']}, seed {run['seed']}: {run['state']}"
    return f"{told} ({run['sentence']})" if run["sentence"] else told


def latex(report: dict[str, Any]) -> str:
    """report.tex: a table of each setting, and one of the pairs, for a document that uses booktabs."""
    parts = ["% \\usepackage{booktabs}"]
    for setting in report["settings"]:
        if setting["rows"]:
            caption = f"{setting['setting']}. {describe_setting(setting)}"
            parts.append(_latex_table(COLUMNS, [cells(row) for row in setting["rows"]], caption, left=1))
            if columns := metric_columns(setting):
                caption = f"{setting['setting']}: other metrics, in per cent."
                parts.append(_latex_table(columns, [metric_cells(row) for row in setting["rows"]], caption, left=1))
    if report["pairs"]:
        caption = "Agreement between settings; regret in points of mIoU."
        parts.append(_latex_table(PAIR_COLUMNS, [pair_cells(pair) for pair in report["pairs"]], caption, left=2))
    return "\n\n".join(parts) + "\n"


def run_rows(report: dict[str, Any]) -> str:
    """report.csv: one row a run, missing ones with their state."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, RUN_KEYS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for setting in report["settings"]:
        for row in setting["rows"]:
            for run in row["runs"]:
                writer.writerow({**setting, **row, **run, "state": "finished"})
        for run in setting["missing"]:
            writer.writerow({**setting, **run})
    return buffer.getvalue()


def _significant(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def _points(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {_plain(line)}" for line in lines)] if lines else []


def _plain(text: str) -> str:
    """A text that Markdown shows as it is."""
    return "".join("\\" + c if c in "\\`*_{}[]<>#|" else c for c in text).replace("\n", " ")


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(_plain, row)) + " |" for row in rows)])


def _latex_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str, left: int) -> str:
    body = [" & ".join(map(_tex, row)) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_tex(caption)}}}",
            rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(columns) - left)}}}",
            r"\toprule",
            " & ".join(map(_tex, columns)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: "\\" + c for c in "&%$#_{}"}
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", "".join(special.get(c, c) for c in text)).replace("..", "--")
