"""Entry of the command ``wdmoe-opt`` and of ``python -m wdmoe_opt``: thin, so that Ctrl-C is heard early."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; an interrupt while it is still being imported ends in one line as well."""
    try:
        from wdmoe_opt.cli import main as run

        run()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            print("wdmoe-opt: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
