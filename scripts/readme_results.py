"""Put the demo's tables and a plot into README.md, between its markers.

make demo && python scripts/readme_results.py
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "outputs" / "demo"
PLOT = "uploads-shifts.svg"


def first_table(report: str, stream: str) -> str:
    """Return the accuracy table of a stream's section of report.md."""
    section = report.split(f"\n## {stream}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    if table is None:
        raise SystemExit(f"{DEMO / 'report.md'} has no table for {stream}: run make demo")
    return table.group(0)


def main() -> None:
    """Rewrite README.md and copy the plot to docs/img/."""
    report = (DEMO / "report.md").read_text(encoding="utf-8")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for stream in ("glyphs", "uploads"):
        begin, end = f"<!-- {stream} -->\n", f"<!-- /{stream} -->"
        before, rest = text.split(begin, 1)
        text = before + begin + "\n" + first_table(report, stream) + "\n" + end + rest.split(end, 1)[1]
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    (ROOT / "docs" / "img").mkdir(parents=True, exist_ok=True)
    shutil.copy(DEMO / "plots" / PLOT, ROOT / "docs" / "img" / PLOT)


if __name__ == "__main__":
    main()
