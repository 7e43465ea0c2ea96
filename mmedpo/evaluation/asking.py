"""JSON questions to judges: chat models that judge answers, each question asked once, cached and within a budget."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from mmedpo.data import consent
from mmedpo.errors import InputError
from mmedpo.models.chat import ChatModel, parse_json
from mmedpo.models.chat.cache import tally
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.models.chat.opening import open_chat, separated
from mmedpo.models.chat.prompts import Prompts
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import portable

PROMPTS = Prompts(Path(__file__).parent / "prompts")
CALLS = "calls.sqlite"  # default cache, beside the output, as of `mmedpo curate`
MAX_REPLY_TOKENS = 2048
JUDGES = (
    "Chat models that judge answers: http://host:port/v1#model, hub:org/model[@provider], local:org/model or "
    "cache:model. They get questions, gold answers and answers, without images."
)
SHOWN = 200  # characters of an unreadable reply in its reason
# Beginnings of marks that a server may take for the end of a message: <|im_end|>, <end_of_turn>, [INST].
MARKS = re.compile(r"<(?=[^\s\d=])|\[(?=/?[A-Z_]{2,}\])")
Made = TypeVar("Made")
Item = Mapping[str, Any]  # variables of the template


@dataclass(frozen=True)
class Judged(Generic[Made]):
    """What a judge found about one item; None, with the reason, where its reply could not be read."""

    found: Made | None
    why: str | None = None


class Judges:
    """Chat models that judge answers, made by `open_judges`."""

    def __init__(self, chats: Mapping[str, ChatModel], used: Ledger, discreet: bool = False) -> None:
        self._chats, self._used, self._discreet = chats, used, discreet

    @property
    def names(self) -> list[str]:
        """Names for records, in the order given."""
        return list(self._chats)

    def ask(
        self, prompt: str, schema: dict[str, Any], items: Sequence[Item], read: Callable[[Item, dict[str, Any]], Made]
    ) -> dict[str, list[Judged[Made]]]:
        """Return what each judge found about each of n items, by the judge's name.

        Args:
            prompt: template in `evaluation/prompts/` ("severity@1"), filled with each item.
            schema: JSON schema of a reply.
            read: function of (item, JSON object of the reply); raises ValueError, with the reason, for one that
                cannot be used. The cache then asks anew in a later run.

        Raises:
            InputError: a judge cannot work, or none of its replies could be read.
            Stopped: the budget is spent; answers so far are in the cache.
        """

        def reading(item: Item, text: str) -> Judged[Made]:
            answer = parse_json(text)
            try:
                if answer is None:
                    raise ValueError("no JSON object")
                return Judged(read(item, answer))
            except ValueError as error:
                return Judged(None, f"{error} in {text[:SHOWN]!r}")

        def readable(item: Item) -> Callable[[str], bool]:
            return lambda text: reading(item, text).why is None

        requests = [PROMPTS.render(prompt, schema, readable=readable(item), **item) for item in items]
        found = {}
        for name, chat in self._chats.items():
            found[name] = [
                Judged(None, f"no answer ({reply.failure})") if reply.text is None else reading(item, reply.text)
                for item, reply in zip(items, chat.complete(requests), strict=True)
            ]
            if items and all(one.why for one in found[name]):
                first = "" if self._discreet else f"; the first: {found[name][0].why}"
                raise InputError(
                    f"The judge {name} gave no readable reply to any of {len(items)} questions of {prompt}{first}. "
                    "Name another judge, or raise --max-reply-tokens."
                )
        return found

    def record(self) -> dict[str, Any]:
        """Return names, calls and tokens for results.json."""
        return {
            "judges": self.names,
            "calls": {portable(name): spent for name, spent in tally(self._used.values()).items()},
        }


def quoted(**texts: str) -> str:
    """Return texts as a JSON object on one line, which none of them can leave: no quote, line break or mark is bare."""
    found = json.dumps(texts, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return MARKS.sub(lambda mark: f"\\u{ord(mark[0]):04x}", found)


@contextmanager
def open_judges(
    specs: Sequence[str], cache: Path, limits: Limits | None = None, discreet: bool = False, seed: int = 0,
    max_tokens: int = MAX_REPLY_TOKENS, batch_size: int = 8,
) -> Iterator[Judges]:  # fmt: skip
    """Open judges with one cache and one budget.

    Args:
        specs: chat models as `open_chat` takes them, such as `http://host:port/v1#model`.
        cache: file of answered calls, which runs share. What it holds is not asked, or paid for, again.
        discreet: keep replies of endpoints out of messages (restricted data).
        max_tokens: longest reply in tokens.
        batch_size: requests at once to a model in this process.

    Raises:
        InputError: no judge, two of one name, one that cannot be opened, or a cache that cannot be written.
    """
    if not specs:
        raise InputError("A judged score needs a chat model that judges: name one with --judges.")
    with TemporaryDirectory() as folder:
        ledgers = Ledger(cache), Ledger(Path(folder) / "used.ledger")
        with closing(ledgers[0]), closing(ledgers[1]):
            budget = Budget(limits or Limits())
            chats = [
                open_chat(spec, budget, *ledgers, batch_size, discreet, seed=seed, max_tokens=max_tokens)
                for spec in specs
            ]
            names = [portable(chat.name) for chat in chats]
            if len(set(names)) < len(names):
                raise InputError(f"The judges are {', '.join(names)}; their names must differ: scores carry them.")
            ledgers[0].open()  # before anything is paid for
            yield Judges(dict(zip(names, chats, strict=True)), ledgers[1], discreet)


@dataclass(frozen=True)
class Judging:
    """Options of judges, which `open` opens.

    Attributes:
        judges: chat models as `open_judges` takes them; none for an evaluation without judges.
        third_parties: consent to send restricted data to judges on other machines.
    """

    judges: Sequence[str] = ()
    cache: Path | None = None
    limits: Limits | None = None
    max_reply_tokens: int = MAX_REPLY_TOKENS
    third_parties: bool = False

    def __post_init__(self) -> None:
        names = [name for given in self.judges for name in separated(given)]
        object.__setattr__(self, "judges", names)

    def consent(self, restricted: str | None, answers: int, marked_by: str | None = None) -> dict[str, Any]:
        """Return the record of restricted answers to be sent to judges; raise InputError without consent."""
        return consent.to_endpoints(restricted, self.judges, self.third_parties, answers, False, marked_by)

    @contextmanager
    def open(self, output: Path, discreet: bool = False) -> Iterator[Judges | None]:
        """Open the judges, with the cache beside `output` by default; None without judges."""
        if not self.judges:
            yield None
            return
        cache = self.cache or output.resolve().parent / CALLS
        with open_judges(self.judges, cache, self.limits, discreet, max_tokens=self.max_reply_tokens) as judges:
            yield judges
