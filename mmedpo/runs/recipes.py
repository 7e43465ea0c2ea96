"""Parser of a command's options from the command line and a recipe, a YAML file of options.

Recipes are untrusted. Their keys are options of the command only; they set no environment variables, and cannot give
consent or answer questions, which a person must type.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

from mmedpo.errors import InputError
from mmedpo.runs import packaged
from mmedpo.runs.hosts import ONLY_IN_RECIPES, endpoints, host, is_remote, place
from mmedpo.runs.options import FLAG, FLAG_HELP, refuse, unfit
from mmedpo.runs.terminal import plain

LONGEST = 100_000  # bytes
DEEPEST = 8  # most nested lists and mappings
CONSENT = FLAG.lstrip("-").replace("-", "_")
TYPED = "given on the command line of each run, never read from a recipe. Leave it out"
ANSWERS = f"it answers for a person and is {TYPED}."
SECRET = "Secrets are not read from recipes; leave it out."
FORM = "Write lines of `option: value`."
REFUSED = {
    "env": "a recipe sets options, not variables of the environment. Set them in the shell, and leave it out.",
    CONSENT: f"consent is {TYPED}, and see {FLAG} in --help.",
    "image_folders": f"it lets links open further folders and is {TYPED}.",
    **dict.fromkeys(("hub_token", "push_to_hub_token"), f"{SECRET} Log in with `hf auth login`, or set HF_TOKEN."),
    "fill": ANSWERS,
    "output_dir": "the folder of a training is its `output`. Write output instead.",
    "resume_from_checkpoint": "a training resumes from its own checkpoints only. Leave it out, and use --resume.",
    "yes": ANSWERS,
}
LOGIN = re.compile(r"https?://[^/?#\s]*@", re.IGNORECASE)
PUSHING = {"push_to_hub", "hub_model_id", "hub_private_repo"}
SPACES = {"trackio_space_id": "Space", "trackio_bucket_id": "bucket", "trackio_static_space_id": "static Space"}
HERE = ("none", "tensorboard")  # trackers that send nothing
KEPT = "private where it is new; one that exists keeps its visibility"


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses aliases (a few can expand to gigabytes), deep nesting and repeated keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(problem="an *alias is not allowed; write its value", problem_mark=mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(
                problem="it is nested too deep", problem_mark=self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        made = super().construct_mapping(node, deep=deep)
        if len(made) < len(node.value):
            raise yaml.constructor.ConstructorError(
                problem="a key occurs twice; remove one", problem_mark=node.start_mark
            )
        return made


def _int(loader: _Loader, node: Any) -> int:
    value: int = yaml.SafeLoader.construct_yaml_int(loader, node)
    if abs(value) >= 2**63:
        raise yaml.constructor.ConstructorError(problem="a number has too many digits", problem_mark=node.start_mark)
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _int)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that lists each option once, marks required ones, and leaves out missing defaults."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [name for name in action.option_strings if "_" not in name]
        return super()._format_action_invocation(shown)

    def format_help(self) -> str:
        return plain(super().format_help())  # defaults may come from a recipe

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help} (required)"
        return super()._get_help_string(action) if action.default not in (None, argparse.SUPPRESS) else action.help


def parse(
    words: Sequence[str], kinds: Sequence[Any], command: str, defaults: Mapping[str, Any] | None = None
) -> list[Any]:
    """Return instances of the dataclasses `kinds`; the command line overrides the recipe, which overrides `defaults`.

    A field `third_parties` (consent) is set by the command line only.

    Args:
        words: arguments of the command line, with an optional `--config RECIPE.yaml`.
        kinds: dataclasses whose fields are the options.
        command: name in messages.
        defaults: values by option.

    Raises:
        InputError: the recipe is unreadable, or an option is unknown or invalid.
    """
    from transformers.hf_argparser import string_to_bool
    from trl import TrlParser

    words, recipe = _without_recipe(words)
    # argparse's usage would print all options with every error; consent must be typed in full.
    usage = f"{command} [--config RECIPE.yaml] [options], see --help"
    parser = TrlParser(list(kinds), prog=command, usage=usage, formatter_class=_Help, allow_abbrev=False)

    def refuse_usage(message: str) -> NoReturn:
        raise InputError(f"{command}: {message}. {command} --help lists its options.")

    parser.error = refuse_usage  # type: ignore[method-assign]  # argparse exits with a usage of its own
    consenting = any("third_parties" in kind.__dataclass_fields__ for kind in kinds)
    if consenting:
        parser.add_argument(
            FLAG, f"--{CONSENT}", dest="third_parties", nargs="?", const=True, default=False, type=string_to_bool,
            help=FLAG_HELP,
        )  # fmt: skip
    parser.set_defaults_with_config(**(defaults or {}))
    found: Mapping[str, Any] = {}
    try:
        if recipe is not None:
            found = read(recipe, kinds)
            parser.set_defaults_with_config(**found)
        # Otherwise Transformers reads options from a file PROGRAM.args too.
        *parsed, unknown = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    except InputError:
        raise
    except (ValueError, TypeError, OSError) as error:  # checks of TRL and Transformers
        raise InputError(f"Invalid settings of {command}: {error}") from error
    if unknown:
        raise InputError(
            f"{command}: unknown options {shlex.join(unknown)}. {command} --help lists its options; in a recipe they "
            "are spelt with _ instead of -."
        )
    if consenting:
        typed = parsed.pop().third_parties
        for options in parsed:
            if hasattr(options, "third_parties"):
                options.third_parties = typed
    refuse([sentence for options in parsed for sentence in unfit(options)])
    values = {one.name: getattr(options, one.name) for options in parsed for one in fields(options)}
    typed = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words}
    ONLY_IN_RECIPES.update(_places(values, found.keys() - typed))
    ONLY_IN_RECIPES.difference_update(_places(values, typed))
    if os.environ.get("RANK", "0") == "0":  # print once per launch
        for effect in _external_effects(found.keys() - typed, values):
            print(plain(f"Recipe {recipe}: {effect}."), file=sys.stderr, flush=True)
    return parsed


def _models(values: Mapping[str, Any], options: Set[str]) -> list[str]:
    """Return the models in these options, which may be endpoints."""
    asked = [values.get(name) for name in ("chat", "judges", "model") if name in options]
    named = [model for value in asked for model in ([value] if isinstance(value, str) else value or ())]
    return [one for model in named for one in endpoints(model)]


def _places(values: Mapping[str, Any], options: Set[str]) -> set[str]:
    """Return hosts and ports of the endpoints in these options."""
    import httpx2

    found = set()
    for model in _models(values, options):
        if model.startswith(("http://", "https://")):
            with suppress(httpx2.InvalidURL):  # refused by the client
                found.add(place(model))
    return found


def _external_effects(found: Set[str], values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what leaves this machine by the options `found` of a recipe: uploads, trackers, endpoints."""
    if values.get("push_to_hub") and PUSHING & found:
        yield f"pushes to {values['hub_model_id'] or Path(values['output']).name} on the Hub ({KEPT})"
    if "publish" in found and values["publish"]:
        yield f"publishes to {values['publish']} on the Hub ({KEPT})"
    trackers = [name for name in values.get("report_to") or () if name not in HERE]
    if trackers and {"report_to", *SPACES} & found:
        named = [f"{kind} {values[name]}" for name, kind in SPACES.items() if values.get(name)]
        space = f" ({', '.join(named)})" if named else ""
        yield f"reports to {', '.join(trackers)}{space}"
    if places := sorted({host(model) for model in _models(values, found) if is_remote(model)}):
        yield f"sends questions to models at {', '.join(places)}, without the key MMEDPO_API_KEY"


def read(recipe: Path, kinds: Iterable[Any]) -> dict[str, Any]:
    """Return the options of a recipe, each a field of one of the dataclasses. Raises as `load` and `check`."""
    found = load(recipe)
    check(f"Recipe {recipe}", found, kinds)
    return found


def load(recipe: Path) -> dict[str, Any]:
    """Return the mapping of a recipe's file.

    Raises:
        InputError: the file is missing, too long or no YAML mapping.
    """
    try:
        with recipe.open("rb") as file:
            data = file.read(LONGEST + 1)
    except FileNotFoundError:
        remedy = f"Give the path of a YAML file; mmedpo's own are in {packaged.folder('recipes')}."
        raise InputError(f"Recipe {recipe}: does not exist. {remedy}") from None
    except OSError as error:
        raise InputError(f"Recipe {recipe}: cannot be read ({error.strerror}). Give the path of a YAML file.") from None
    if len(data) > LONGEST:
        raise InputError(f"Recipe {recipe}: has more than {LONGEST:,} bytes. {FORM}")
    try:
        found = yaml.load(data.decode("utf-8-sig"), _Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # huge numbers, lists as keys
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}: {getattr(error, 'problem', None)})" if mark else ""
        raise InputError(f"Recipe {recipe}: is not YAML{where}. {FORM}") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InputError(f"Recipe {recipe}: has no options. {FORM}")
    return found


def check(where: str, found: Mapping[str, Any], kinds: Iterable[Any]) -> None:
    """Raise InputError, with all of them named, for options that are no fields of the dataclasses, or hold logins."""
    known = [field.name for kind in kinds for field in fields(kind) if field.init]
    wrong = [sentence for key in found if (sentence := _refused(key, known))]
    wrong += [f"{key}: contains a login. {SECRET}" for key, value in found.items() if LOGIN.search(str(value))]
    if wrong:
        raise InputError(f"{where}: " + " ".join(wrong))


def _refused(key: str, known: Sequence[str]) -> str | None:
    """Return why a recipe must not have the key, or None."""
    spelt = key.strip().lower().replace("-", "_")
    if spelt in REFUSED:
        return f"{key}: {REFUSED[spelt]}"
    if key in known:
        return None
    near = get_close_matches(spelt, known, 1)
    return f"{key}: not an option of this command. " + (f"Write {near[0]}." if near else "Leave it out; see --help.")


def _without_recipe(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the arguments without --config, and the recipe's path or None."""
    others: list[str] = []
    found: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--config":
            found.append(next(left, ""))
        elif word.startswith("--config="):
            found.append(word.removeprefix("--config="))
        else:
            others.append(word)
    if not all(found):
        raise InputError("--config needs a recipe after it, the path of a YAML file.")
    if len(found) > 1:
        raise InputError(f"--config is given {len(found)} times ({', '.join(found)}). Give one recipe.")
    return others, Path(found[0]) if found else None
