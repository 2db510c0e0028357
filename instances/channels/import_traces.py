"""Make the compact trace files of instances/data/channel from their sources.

``python -m wdmoe_opt.instances.channels.import_traces SOURCE_DIR [DATA_DIR]`` reads
``SOURCE_DIR/feup-wifi/final-exp-log.csv`` and ``SOURCE_DIR/cicv5g/*.txt`` (see the PROVENANCE.md of each
data set for where they come from) and writes ``DATA_DIR/feup-wifi/wifi.npz`` and
``DATA_DIR/cicv5g/fiveg.npz``. The same source gives the same bytes.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np

from .traces import DATA_DIR, FIVEG_FILE, MISSING, WIFI_FILE


def import_wifi(source: Path, target: Path) -> None:
    """Keep the received bytes of every second in which at least one link was being measured.

    Writes ``links`` (links,) str, ``systime`` (seconds,) int64 s, ``bytes_received`` (seconds, links)
    int32, -1 where a link has no row or its row is not of a measurement (isIperfOn = 0).
    """
    with source.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["isIperfOn"]) == 1.0]
    links = sorted({row["senderId"] for row in rows})
    seconds = sorted({int(row["systime"]) for row in rows})
    received = np.full((len(seconds), len(links)), MISSING, dtype=np.int32)
    column = {link: index for index, link in enumerate(links)}
    line = {second: index for index, second in enumerate(seconds)}
    for row in rows:
        received[line[int(row["systime"])], column[row["senderId"]]] = int(row["nBytesReceived"])
    target.parent.mkdir(parents=True, exist_ok=True)
    systime = np.array(seconds, dtype=np.int64)
    np.savez_compressed(target, links=np.array(links), systime=systime, bytes_received=received)


def import_fiveg(source: Path, target: Path) -> None:
    """Keep publication time and round trip of every message.

    Writes per trace ``NAME.sent`` int64 ms since the first message, and ``NAME.delay`` int32 ms.
    """
    arrays: dict[str, Any] = {}
    for path in sorted(source.glob("*.txt")):
        header, *lines = path.read_text().splitlines()
        names = header.split()
        sent, delay = names.index("pub_time(ms)"), names.index("delay(ms)")
        rows = [line.split() for line in lines]
        times = np.array([int(row[sent]) for row in rows], dtype=np.int64)
        arrays[f"{path.stem}.sent"] = times - times[0]
        arrays[f"{path.stem}.delay"] = np.array([int(row[delay]) for row in rows], dtype=np.int32)
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, **arrays)


def main(arguments: list[str] | None = None) -> None:
    """Run the conversion from the command line."""
    parser = argparse.ArgumentParser(description="Make the compact channel trace files from their sources.")
    parser.add_argument("source_dir", type=Path)
    parser.add_argument("data_dir", type=Path, nargs="?", default=DATA_DIR)
    chosen = parser.parse_args(arguments)
    import_wifi(chosen.source_dir / "feup-wifi" / "final-exp-log.csv", chosen.data_dir / WIFI_FILE)
    import_fiveg(chosen.source_dir / "cicv5g", chosen.data_dir / FIVEG_FILE)


if __name__ == "__main__":
    main()
