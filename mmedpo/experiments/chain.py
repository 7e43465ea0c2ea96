"""Chains of mmedpo's own commands, each with its output folder, which is whole or absent: a chain may stop anywhere.

Settings come from one YAML with a section a command, whose keys are the command's options. A step's options are written
as a recipe beside its output (`round-1/adapter.yaml`), so that each step can be repeated, and read, alone.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmedpo.data import changes
from mmedpo.data.answers import is_test
from mmedpo.data.sources import no_split, read_source
from mmedpo.errors import InputError
from mmedpo.models.fingerprint import model_contents
from mmedpo.runs import recipes, writable
from mmedpo.runs.options import FLAG
from mmedpo.runs.provenance import portable
from mmedpo.runs.recorded import SETTINGS, record_contents, record_settings
from mmedpo.runs.run_folder import OF_RESUMPTION
from mmedpo.runs.terminal import say

Invoke = Callable[[Sequence[str]], None]
LEFT = "which the chain itself sets. Leave it out"
SET = {  # options of a command that a chain sets
    "curate": ("source", "model", "adapter", "output", "resume"),
    "train": ("dataset_name", "model_name_or_path", "adapter_name_or_path", "output", "resume", "reference", "seed"),
    "evaluate": ("source", "dataset", "model", "adapter", "output", "resume", "name", "measure"),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One command with its options, among them `output`, the folder that it writes."""

    command: str
    options: Mapping[str, Any]

    @property
    def output(self) -> Path:
        return Path(self.options["output"])

    @property
    def recipe(self) -> Path:
        """File of the options, beside the output."""
        return self.output.with_name(f"{self.output.name}.yaml")


@dataclass
class Chain:
    """Runs commands one after the other, and leaves out those whose output is there.

    Args:
        invoke: runs one `mmedpo` command line.
        resume: finish what an interrupted chain began.
        third_parties: consent for restricted data, passed on to curation and evaluation.
    """

    invoke: Invoke
    resume: bool = False
    third_parties: bool = False
    commands: list[str] = field(default_factory=list)

    def words(self, *words: str | Path) -> None:
        """Run a command line with an option --output."""
        self._run(Path(words[words.index("--output") + 1]), [str(word) for word in words])

    def run(self, step: Step) -> Path:
        """Run a step, whose recipe `check` wrote; return its output."""
        consent = [FLAG] if self.third_parties and step.command != "train" else []
        self._run(step.output, [step.command, "--config", str(step.recipe), *consent])
        return step.output

    def _run(self, output: Path, typed: list[str]) -> None:
        self.commands.append("mmedpo " + shlex.join(map(portable, typed)))
        left = (one for pattern in OF_RESUMPTION for one in output.glob(pattern))
        if writable.exists(output) and not any(left):  # else a kill left what the command removes
            say(f"{output} is there.")
            return
        self.invoke([*typed, "--resume"] if self.resume and typed[0] != "compare" else typed)

    def check(self, steps: Sequence[Step]) -> None:
        """Write the recipes of steps, and read each as its command will.

        Raises:
            InputError: an option is unknown, out of range, or excludes another.
        """
        known: set[str] = set()
        for step in steps:
            step.recipe.parent.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(dict(step.options), sort_keys=False, allow_unicode=True)
            writable.write_whole(step.recipe, text.encode())
            decisive = {key: value for key, value in step.options.items() if key not in {*SET[step.command], "seed"}}
            if (one := f"{step.command} {decisive}") not in known:
                known.add(one)
                _parsed(step)


def open_chain(
    output: Path, settings: dict[str, Any], source: Path, model: str, chain: Chain, splits: Iterable[str],
    steps: Sequence[Step],
) -> None:  # fmt: skip
    """Create the folder of a chain, or compare it with what it was started with; check its steps.

    A new folder is removed where a step is refused, so that a corrected recipe can be started.

    Args:
        settings: recorded in `settings.json`; those of a resumed chain must be the same.
        source, model: their contents must be the same too.
        splits: of the source, which the steps use.

    Raises:
        InputError: the folder exists without `chain.resume`; the source lacks a split; settings, questions or model
            differ; or as `Chain.check`.
    """
    if writable.exists(output) and not chain.resume:
        raise InputError(f"{output} exists already; continue with --resume, or choose another --output.")
    writable.check(output, resume=True)
    asked = read_source(source, official_split=bool(settings["evaluate"].get("official_split")))
    held = sorted({sample.split for sample in asked.samples})
    for split in splits:
        if split not in held:
            raise no_split(asked, split, held)
    contents = {"source": changes.digest_of(changes.of_samples(asked.samples)), "model": model_contents(model)}
    fresh = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        record_settings(output / SETTINGS, settings)
        record_contents(output, settings, contents)
        chain.check(steps)
    except InputError:
        if fresh:
            shutil.rmtree(output, ignore_errors=True)
        raise


def given(options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return options with those of `more` that are not None, as text."""
    return {**options, **{name: str(value) for name, value in more.items() if value is not None}}


def sections(recipe: Path, found: Mapping[str, Any], also: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the sections of a chain's recipe that are options of commands, their keys checked.

    Args:
        also: further sections, which the caller reads.

    Raises:
        InputError: a section is missing or has keys that are no options of its command, or that the chain sets; or a
            key is no section.
    """
    own = {}
    if others := [name for name in found if name not in (*SET, *also)]:
        raise InputError(f"Recipe {recipe}: {', '.join(others)}: no section; use {', '.join((*SET, *also))}.")
    for name in SET:
        section = {} if found.get(name) is None else found.get(name)
        if name not in found or not isinstance(section, dict):
            raise InputError(f"Recipe {recipe}: needs a section {name}:, with options of mmedpo {name}.")
        check_section(f"Recipe {recipe}, section {name}", name, section)
        own[name] = section
    return own


def refuse_leak(where: str, curate: Mapping[str, Any], evaluate: Mapping[str, Any]) -> None:
    """Raise InputError where questions that pairs are made from may be among those that are evaluated."""
    used, asked = curate.get("split"), evaluate.get("split")
    if not (isinstance(used, str) and isinstance(asked, str)) or used == asked or is_test(used):
        raise InputError(
            f"{where}: curates from the split {used!r} and evaluates on {asked!r}. Give two splits, and curate from "
            "none of the test."
        )
    if bool(curate.get("official_split")) != bool(evaluate.get("official_split")):
        raise InputError(
            f"{where}: curation and evaluation split the source in different ways, so that questions may be in both. "
            "Give official_split to both, or to neither."
        )


def check_section(where: str, command: str, section: Mapping[str, Any]) -> None:
    """Raise InputError for keys that are no options of a command, or that the chain sets."""
    if given := [key for key in SET[command] if key in section]:
        raise InputError(f"{where}: sets {', '.join(given)}, {LEFT}.")
    recipes.check(where, section, _kinds(command))


def _kinds(command: str) -> list[Any]:
    """Return the dataclasses whose fields are a command's options."""
    if command == "train":
        from trl import ModelConfig

        from mmedpo.training.config import MMedPOConfig, RunArguments

        return [RunArguments, MMedPOConfig, ModelConfig]
    if command == "curate":
        from mmedpo.curation import settings as curation

        return [curation.Settings, curation.Run]
    from mmedpo.evaluation import settings as evaluation

    return [evaluation.Settings, evaluation.Run]


def _parsed(step: Step) -> None:
    first, *_ = recipes.parse(["--config", str(step.recipe)], _kinds(step.command), f"mmedpo {step.command}")
    if step.command == "curate":
        first.refuse_unnamed()
