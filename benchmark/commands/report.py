"""python -m benchmark report FOLDER [FOLDER ...] [--output FOLDER] [--hub_space user/name]

Rank what was trained: a study's folder, several, or single runs. Writes report.html, .md, .csv, .tex and .json.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmark.recipe.parser import CommandParser


def main(arguments: Sequence[str]) -> None:
    parser = CommandParser(prog="python -m benchmark report", description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", type=Path, help="a study's folder or a run's")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where it goes; by default the first FOLDER")
    parser.add_argument("--tau", type=float, default=0.5, help="limit of tau's interval (%(default)s)")
    parser.add_argument("--regret", type=float, default=0.01, help="limit of the regret's bound, in 0..1 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    parser.add_argument("--hub_space", metavar="user/name", help="publish the page as a static Space")
    args = parser.parse_args(arguments)

    from benchmark.page.page import render_page
    from benchmark.page.samples import collect_samples
    from benchmark.reporting.run_folder import write_atomically, writing
    from benchmark.study.answer import Thresholds
    from benchmark.study.collect import collect
    from benchmark.study.report import build_report
    from benchmark.study.tables import latex, markdown, run_rows

    collection = collect(args.folders)
    report = build_report(collection, Thresholds(args.tau, args.regret), seed=args.seed)
    text = markdown(report)
    files = {
        "report.html": render_page(report, collect_samples(collection)),
        "report.md": text,
        "report.csv": run_rows(report),
        "report.tex": latex(report),
        "report.json": json.dumps(report, indent=1) + "\n",
    }
    output = args.output or args.folders[0]
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(output / name, content.encode())
    print(f"{text}\nThe page is {output / 'report.html'}.")
    if args.hub_space:
        from benchmark.reporting.hub import publish_space

        print(f"Published at {publish_space(args.hub_space, report['name'], files)}.")
