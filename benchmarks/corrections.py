"""Corrections by a chat model: the rejected responses that MMedPO's authors released, as the target's own answers.

Run     python benchmarks/corrections.py ../shared/data --chat http://127.0.0.1:8080/v1#SmolLM2-135M-Instruct
            --cache calls.sqlite --output benchmarks/results/corrections.json
Prints  JSON, by task: pairs with a correction, how many of them have the words of the gold answer and how many words
        they change; pairs with the gold answer by reason; rejects by reason. `--show` prints the corrections too.
Needs   the released VQA-RAD file. A second run asks nothing: `--chat cache:NAME`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from mmedpo.curation.corrected import CORRECT, Corrector
from mmedpo.curation.hallucinate import SELECT
from mmedpo.curation.plan import open_chat
from mmedpo.curation.text_pairs import Choice, Hallucination, Item, chosen_sides
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import portable, versions


def items(data: Path, count: int, seed: int) -> list[Item]:
    """Return a seeded choice of the released questions, each with its rejected response as the one candidate."""
    known: dict[tuple[str, str], Item] = {}
    for row in json.loads((data / "released" / "vqa-rad_dpo_weighted.json").read_text()):
        question, gold, own = (
            row[side][turn]["value"].replace("<image>", "").strip()
            for side, turn in (("conversations", 0), ("conversations", 1), ("rejected_conversations", 1))
        )
        task = "closed_vqa" if gold.casefold() in ("yes", "no") else "open_vqa"
        known.setdefault((row["image"], question), Item(question, gold, task, [own]))
    random.seed(seed)
    return [known[key] for key in random.sample(sorted(known), count)]


def found(choices: list[Choice]) -> dict[str, Any]:
    made = [choice for choice in choices if isinstance(choice, Hallucination) and choice.chosen]
    sides = chosen_sides([vars(choice.chosen) for choice in made])
    rejects = Counter(choice.reason for choice in choices if not isinstance(choice, Hallucination))
    none = sum(choice.none_chosen for choice in choices)
    return {"questions": len(choices), "none_wrong": none, **sides, "rejects": dict(rejects.most_common())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--chat", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    asked = items(options.data, options.questions, options.seed)
    with closing(Ledger(options.cache)) as cache, closing(Ledger(options.cache.with_suffix(".used"))) as used:
        chat = open_chat(
            options.chat, budget=Budget(Limits(concurrency=1)), cache=cache, used=used, seed=0, batch_size=8,
            discreet=False, max_tokens=200,
        )  # fmt: skip
        choices = Corrector(chat).choose(asked)
    for item, choice in zip(asked, choices, strict=True) if options.show else ():
        if isinstance(choice, Hallucination) and choice.chosen and choice.chosen.prompt_version:
            print(f"{item.question}\n  gold {item.gold!r}\n  own  {choice.text!r}\n  made {choice.chosen.text!r}")
    tasks = ("closed_vqa", "open_vqa")
    by_task = {task: found([c for i, c in zip(asked, choices, strict=True) if i.task == task]) for task in tasks}
    chosen = f"--questions {options.questions} --seed {options.seed}"
    record = {
        "command": f"python benchmarks/corrections.py ../shared/data {chosen}",
        "chat": portable(chat.name), "prompts": [SELECT, CORRECT], "versions": versions(), "by_task": by_task,
    }  # fmt: skip
    json.dump(record, sys.stdout, indent=2)
    if options.output:
        options.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
