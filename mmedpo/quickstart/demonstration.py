"""Run the whole job on phantoms, from source to report, without network, GPU or account."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmedpo.data.sources import read_source
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.evaluation import compare as comparing
from mmedpo.experiments.chain import Chain
from mmedpo.hub import cards
from mmedpo.quickstart import phantom, tiny
from mmedpo.report import rows, write_report, write_tables
from mmedpo.report.wording import change, interval, percent
from mmedpo.runs import packaged, writable
from mmedpo.runs.json_files import read_json, write_json
from mmedpo.runs.recorded import record_settings
from mmedpo.runs.run_folder import output_folder

IMAGES = {"supervised": 1500, "preference": 600, "validation": 300, "test": 400}
PREFERENCE_QUESTIONS = 1500
SUPERVISED_STEPS = 400  # stopped early: the starting model is fluent but ignores the image
ARMS = {
    "mmedpo": [],
    "dpo": ["--weighted", "false"],
    "supervised": ["--loss_type", "sft", "--loss_weights", "1.0"],
    "text": ["--dispreference", "hallucinated_response"],  # and as many steps as mmedpo
}
LESIONS_ALONE = {"visual": ["--dispreference", "lesion_noise"]}
RELIANCE_QUESTIONS = 1000
RELIANCE = "accuracy_drop_lesion_noise"
NOTES = (
    "The model is tiny and made by this command: the table shows that the pipeline works, and nothing about patients.",
    "'dpo' is the same training without weights; 'supervised' is trained on the same chosen responses only; 'text' on "
    "the text pairs only, for as many steps.",
)


def run(
    output: Path,
    chain: Chain,
    seed: int = 0,
    scale: float = 1.0,
    all_arms: bool = False,
    split: str = "test",
) -> tuple[list[list[str]], str]:
    """Make corpus and starting model, then curate, audit, train, evaluate and compare by mmedpo's own commands.

    Args:
        chain: runs the commands; its `resume` continues an interrupted quickstart.
        scale: shrinks corpus and training for a quick look, in (0, 1].
        all_arms: also train on lesion pairs alone.
        split: evaluated split; settings were chosen on "validation", results belong to "test".

    Returns:
        The comparison of answers as rows of a table, headings first; and what lesion pairs change in a sentence.

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
    arms = ARMS | (LESIONS_ALONE if all_arms else {})
    adapters = {name: output / ("adapter" if name == "mmedpo" else f"controls/{name}") for name in arms}
    for name, changes in arms.items():
        steps = ["--max_steps", _steps(adapters["mmedpo"])] if name == "text" else []
        chain.words("train", "--config", recipe, "--dataset_name", dataset, "--model_name_or_path", start,
                "--seed", str(seed), "--output", adapters[name], *changes, *steps)  # fmt: skip
    for name in ["start", *arms]:
        adapter = () if name == "start" else ["--adapter", str(adapters[name])]
        asked: list[str | Path] = ["--model", start, *adapter, "--source", corpus, "--split", split, "--name", name,
                "--seed", str(seed), "--max-new-tokens", "24", "--batch-size", "64"]  # fmt: skip
        chain.words("evaluate", *asked, "--max-new-tokens-report", "24", "--output", output / "results" / name)
        chain.words("evaluate", *asked, "--measure", "visual_reliance", "--limit",
                str(max(int(RELIANCE_QUESTIONS * scale), 20)), "--output", output / "reliance" / name)  # fmt: skip
    controls = [name for name in ["start", *arms] if name not in ("text", "mmedpo")]
    chain.words("compare", *(output / "reliance" / name for name in ["text", *controls, "mmedpo"]),
            "--seed", str(seed), "--source", corpus, "--dataset", dataset,
            "--output", output / "reliance" / "comparison")  # fmt: skip
    reliance = _reliance(read_json(output / "reliance" / "comparison" / "comparison.json"))
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
    notes = (*NOTES, f"{reliance} The page of it is reliance/comparison/report.html.")
    write_report(output / "report.html", comparison, str(dataset), adapters, chain.commands, notes, images)
    return rows(comparison), reliance


def _steps(training: Path) -> str:
    return str(read_json(training / "trainer_state.json")["global_step"])


def _reliance(comparison: Mapping[str, Any]) -> str:
    """Return what lesion pairs change: the accuracy lost where the lesion is noised, beside text pairs alone."""
    text, both = (comparison["metrics"][RELIANCE][name] for name in ("text", "mmedpo"))
    lost, alone = (percent(cell["value"]).removesuffix(" %") for cell in (both, text))
    return (
        f"With the lesion noised, answers lose {lost} points of accuracy after training on text and lesion pairs "
        f"(mmedpo), {alone} after as many steps on text pairs alone (text): a difference of "
        f"{change(RELIANCE, both['difference'])} {interval(RELIANCE, both)}. The more they lose, the more they depend "
        "on the lesion."
    )


def _prepare(corpus: Path, start: Path, seed: int, scale: float, resume: bool) -> None:
    parts = {split: max(int(count * scale), 8) for split, count in IMAGES.items()}
    if not corpus.exists():
        with output_folder(corpus, {"parts": parts, "seed": seed}, resume) as folder:
            phantom.write(folder, parts, seed)
    if not start.exists():
        tiny.make(corpus, "supervised", max(int(SUPERVISED_STEPS * scale), 5), start, seed, resume)
