"""Run the whole job on phantoms, from source to report, without network, GPU or account."""

from __future__ import annotations

from pathlib import Path

from mmedpo.data.sources import read_source
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.evaluation import compare as comparing
from mmedpo.experiments.chain import Chain
from mmedpo.hub import cards
from mmedpo.quickstart import phantom, tiny
from mmedpo.report import rows, write_report, write_tables
from mmedpo.runs import packaged, writable
from mmedpo.runs.json_files import write_json
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


def run(
    output: Path,
    chain: Chain,
    seed: int = 0,
    scale: float = 1.0,
    all_arms: bool = False,
    split: str = "test",
) -> list[list[str]]:
    """Make corpus and starting model, then curate, audit, train, evaluate and compare by mmedpo's own commands.

    Args:
        chain: runs the commands; its `resume` continues an interrupted quickstart.
        scale: shrinks corpus and training for a quick look, in (0, 1].
        all_arms: also train on each kind of pair alone.
        split: evaluated split; settings were chosen on "validation", results belong to "test".

    Returns:
        The comparison as rows of a table, headings first.

    Raises:
        InputError: `output` exists and `chain.resume` is false, or `scale` is not in (0, 1].
        AlreadyFinished: `chain.resume` is set and the report exists.
    """
    if not 0 < scale <= 1:
        raise InputError(f"scale is {scale}; it must be in (0, 1].")
    if writable.exists(output) and not chain.resume:
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
    corpus, start, dataset = output / "corpus", output / "start", output / "dataset"
    _prepare(corpus, start, seed, scale, chain.resume)
    limit = max(int(PREFERENCE_QUESTIONS * scale), 20)
    chain.words("curate", "--source", corpus, "--split", "preference", "--limit", str(limit), "--model", start,
            "--chat", "standin:rules", "--judges", "standin:strict", "standin:lenient", "standin:lexical",
            "--localizer", "boxes", "--seed", str(seed), "--output", dataset)  # fmt: skip
    chain.words("audit", dataset, "--output", output / "audit")
    arms = ARMS | (SINGLE_STAGES if all_arms else {})
    adapters = {name: output / ("adapter" if name == "mmedpo" else f"controls/{name}") for name in arms}
    for name, changes in arms.items():
        chain.words("train", "--config", recipe, "--dataset_name", dataset, "--model_name_or_path", start,
                "--seed", str(seed), "--output", adapters[name], *changes)  # fmt: skip
    for name in ["start", *arms]:
        adapter = [] if name == "start" else ["--adapter", str(adapters[name])]
        chain.words("evaluate", "--model", start, *adapter, "--source", corpus, "--split", split, "--name", name,
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
    images = {sample.id: sample.files for sample in read_source(corpus, split).samples}
    write_report(output / "report.html", comparison, str(dataset), adapters, chain.commands, NOTES, images)
    return rows(comparison)


def _prepare(corpus: Path, start: Path, seed: int, scale: float, resume: bool) -> None:
    parts = {split: max(int(count * scale), 8) for split, count in IMAGES.items()}
    if not corpus.exists():
        with output_folder(corpus, {"parts": parts, "seed": seed}, resume) as folder:
            phantom.write(folder, parts, seed)
    if not start.exists():
        tiny.make(corpus, "supervised", max(int(SUPERVISED_STEPS * scale), 5), start, seed, resume)
