"""Run the whole job on phantoms, from source to report, without network, GPU or account."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from mmedpo.data.sources import read_source
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.evaluation import compare as comparing
from mmedpo.hub import cards
from mmedpo.quickstart import phantom, tiny
from mmedpo.report import rows, write_report, write_tables
from mmedpo.runs import packaged, writable
from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import portable
from mmedpo.runs.recorded import record_settings
from mmedpo.runs.run_folder import output_folder

IMAGES = {"supervised": 1500, "preference": 600, "validation": 300, "test": 400}
PREFERENCE_QUESTIONS = 1500
SUPERVISED_STEPS = 400  # stopped early: the starting model is fluent but ignores the image
ARMS = {
    "mmedpo": [],
    "dpo": ["--weighted", "false"],
    "supervised": ["--loss_type", "sft", "--loss_weights", "1.0"],
}
SINGLE_STAGES = {
    "text-stage": ["--dispreference", "hallucinated_response"],
    "visual-stage": ["--dispreference", "lesion_noise"],
}
NOTES = (
    "The model is tiny and made by this command: the table shows that the pipeline works, and nothing about patients.",
    "'dpo' is the same training without weights; 'supervised' is trained on the same chosen responses only.",
)

Invoke = Callable[[Sequence[str]], None]


def run(
    output: Path,
    invoke: Invoke,
    seed: int = 0,
    scale: float = 1.0,
    all_arms: bool = False,
    split: str = "test",
    resume: bool = False,
) -> list[list[str]]:
    """Make corpus and starting model, then curate, audit, train, evaluate and compare by mmedpo's own commands.

    Args:
        invoke: runs one `mmedpo` command line.
        scale: shrinks corpus and training for a quick look, in (0, 1].
        all_arms: also train on each kind of pair alone.
        split: evaluated split; settings were chosen on "validation", results belong to "test".
        resume: continue an interrupted quickstart.

    Returns:
        The comparison as rows of a table, headings first.

    Raises:
        InputError: `output` exists and `resume` is false, or `scale` is not in (0, 1].
        AlreadyFinished: `resume` is given and the report exists.
    """
    if not 0 < scale <= 1:
        raise InputError(f"scale is {scale}; it must be in (0, 1].")
    if writable.exists(output) and not resume:
        raise InputError(
            f"{output} exists already; continue with --resume, choose another --output or remove it first."
        )
    writable.check(output, resume=True)
    for name in ("dataset", "adapter"):
        cards.check_template(name)
    if (output / "report.html").exists():
        raise AlreadyFinished(f"{output} is finished; nothing to resume.")
    recipe = packaged.folder("recipes") / "quickstart.yaml"
    output.mkdir(parents=True, exist_ok=True)
    record_settings(output / "settings.json", {"seed": seed, "scale": scale, "all_arms": all_arms, "split": split})
    commands: list[str] = []

    def command(*arguments: str | Path) -> None:
        words = [str(argument) for argument in arguments]
        commands.append("mmedpo " + shlex.join(map(portable, words)))
        invoke([*words, "--resume"] if resume else words)

    corpus, start, dataset = output / "corpus", output / "start", output / "dataset"
    _prepare(corpus, start, seed, scale, resume)
    limit = max(int(PREFERENCE_QUESTIONS * scale), 20)
    command("curate", "--source", corpus, "--split", "preference", "--limit", str(limit), "--model", start,
            "--chat", "standin:rules", "--judges", "standin:strict", "standin:lenient", "standin:lexical",
            "--localizer", "boxes", "--seed", str(seed), "--output", dataset)  # fmt: skip
    command("audit", dataset, "--output", output / "audit")
    arms = ARMS | (SINGLE_STAGES if all_arms else {})
    adapters = {name: output / ("adapter" if name == "mmedpo" else f"controls/{name}") for name in arms}
    for name, changes in arms.items():
        command("train", "--config", recipe, "--dataset_name", dataset, "--model_name_or_path", start,
                "--seed", str(seed), "--output", adapters[name], *changes)  # fmt: skip
    for name in ["start", *arms]:
        adapter = [] if name == "start" else ["--adapter", str(adapters[name])]
        command("evaluate", "--model", start, *adapter, "--source", corpus, "--split", split, "--name", name,
                "--max-new-tokens", "24", "--max-new-tokens-report", "24", "--batch-size", "64",
                "--output", output / "results" / name)  # fmt: skip
    # The report page shows the changed answers of the last run.
    order = ["start", *(name for name in arms if name != "mmedpo"), "mmedpo"]
    comparison = comparing.compare(
        [output / "results" / name for name in order],
        seed,
        command=f"mmedpo quickstart --seed {seed}",
        dataset=str(dataset),
    )
    write_tables(comparison, output / "results")
    write_json(output / "results" / "comparison.json", comparison)
    images = {sample.id: sample.images[0].file for sample in read_source(corpus, split).samples}
    write_report(output / "report.html", comparison, str(dataset), adapters, commands, NOTES, images)
    return rows(comparison)


def _prepare(corpus: Path, start: Path, seed: int, scale: float, resume: bool) -> None:
    parts = {split: max(int(count * scale), 8) for split, count in IMAGES.items()}
    if not corpus.exists():
        with output_folder(corpus, {"parts": parts, "seed": seed}, resume) as folder:
            phantom.write(folder, parts, seed)
    if not start.exists():
        tiny.make(corpus, "supervised", max(int(SUPERVISED_STEPS * scale), 5), start, seed, resume)
