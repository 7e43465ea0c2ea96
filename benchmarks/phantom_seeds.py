"""The quickstart over several seeds and all arms: differences to each seed's start, and visual reliance beside `text`.

Run     python benchmarks/phantom_seeds.py --seeds 0 1 2 --output runs/seeds --record
        benchmarks/results/phantom_seeds.json
Writes  runs/seeds/SEED/ (a whole quickstart each; finished ones are not run again) and prints two Markdown
        tables: differences to each seed's own starting model, and the accuracy that is lost with the lesion noised,
        with differences to text pairs alone; with 95 % paired-bootstrap intervals over images.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from mmedpo.runs.json_files import read_json, write_json

TABLES = {
    "results": ("overall_accuracy", "closed_accuracy", "open_recall", "rouge_l"),
    "reliance/comparison": ("accuracy_drop_lesion_noise", "accuracy_original", "accuracy_lesion_noise"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", help="test, or validation while choosing settings")
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--record", type=Path, help="JSON file of the tables")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        folder = arguments.output / str(seed)
        if not (folder / "report.html").exists():
            command = ["-m", "mmedpo.cli", "quickstart", "--all-arms", "--seed", str(seed), "--output", str(folder)]
            with (arguments.output / f"{seed}.log").open("w") as log:
                subprocess.run(
                    [sys.executable, *command, "--split", arguments.split, "--resume"],
                    check=True, stdout=log, stderr=subprocess.STDOUT,
                )  # fmt: skip
    seeds = " ".join(map(str, arguments.seeds))
    record: dict[str, Any] = {
        "command": f"python benchmarks/phantom_seeds.py --seeds {seeds} --split {arguments.split}"
    }
    for measure, metrics in TABLES.items():
        rows = record[measure] = {}
        print("| seed | arm | " + " | ".join(f"{name}: value (difference)" for name in metrics) + " |")
        print("|---" * (2 + len(metrics)) + "|")
        for seed in arguments.seeds:
            comparison = read_json(arguments.output / str(seed) / measure / "comparison.json")
            sizes = {name: comparison["sizes"][name] for name in metrics}
            kept = {key: comparison[key] for key in ("baseline", "versions")}
            rows[seed] = {**kept, "sizes": sizes, "arms": {}}
            for arm in comparison["runs"]:
                entries = {name: comparison["metrics"][name][arm] for name in metrics}
                rows[seed]["arms"][arm] = entries
                print(f"| {seed} | {arm} | " + " | ".join(map(cell, entries.values())) + " |")
        print()
    if arguments.record:
        write_json(arguments.record, record)


def cell(entry: dict[str, float]) -> str:
    value = f"{100 * entry['value']:.1f}"
    if "difference" not in entry:
        return value
    low, high = 100 * entry["difference_low"], 100 * entry["difference_high"]
    return f"{value} ({100 * entry['difference']:+.1f} [{low:+.1f}, {high:+.1f}])"


if __name__ == "__main__":
    main()
