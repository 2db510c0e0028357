"""``python -m wdmoe_opt.benchmarks.report RESULTS [--out DIR] [--json]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wdmoe_opt.benchmarks.report.command import report
from wdmoe_opt.errors import WdmoeError


def main() -> None:
    """Command line of the report."""
    parser = argparse.ArgumentParser(
        prog="python -m wdmoe_opt.benchmarks.report", description="Report on benchmark results."
    )
    parser.add_argument("results", type=Path, help="a Parquet file, or a folder of them")
    parser.add_argument("--out", type=Path, help="folder of the report; default: 'report' beside the results")
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    arguments = parser.parse_args()
    try:
        report(arguments.results, arguments.out, arguments.json)
    except WdmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
