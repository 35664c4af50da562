"""Holds the demo to what the README promises: `python scripts/check_demo.py SUMMARY.json`."""

import json
import sys
from pathlib import Path

# Exact match, and its lead over each control.
AT_LEAST, LEAD = 0.55, 0.25
ROOMS = 400


def main(path: Path) -> None:
    summary = json.loads(path.read_text(encoding="utf-8"))
    lines = (path.parent / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rooms = {json.loads(line)["scene_id"] for line in lines}
    failures = []
    if len(rooms) < ROOMS:
        failures.append(f"only {len(rooms)} rooms, expected {ROOMS}")
    if summary["em"] < AT_LEAST:
        failures.append(f"EM {summary['em']:.3f}, expected {AT_LEAST}")
    for name, value in summary["controls"].items():
        if value is not None and summary["em"] - value < LEAD:
            failures.append(f"only {summary['em'] - value:.3f} above {name} ({value:.3f})")
    if not (path.parent / "report.html").is_file():
        failures.append("no report.html")
    if failures:
        sys.exit("the demo falls short: " + "; ".join(failures))
    print(f"the demo holds: {summary['em']:.3f} on {len(rooms)} rooms")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
