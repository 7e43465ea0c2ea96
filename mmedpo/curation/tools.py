"""Open the models that a curation's settings name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mmedpo.curation import relevance
from mmedpo.curation.chat import open_chat
from mmedpo.curation.hallucinate import FLIPPED, TARGET_MODEL
from mmedpo.curation.localize import Localizer, open_localizer
from mmedpo.curation.rows import TEXT_PAIR
from mmedpo.curation.settings import Settings
from mmedpo.models import vision_language
from mmedpo.models.chat import ChatModel
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.runs.formats import STANDIN
from mmedpo.runs.ledger import Ledger


@dataclass(frozen=True)
class Tools:
    """Models of a curation; None if the settings name none."""

    chat: ChatModel | None
    panel: relevance.Panel | None
    localizer: Localizer

    @property
    def judges(self) -> list[str]:
        """Names of the judges, in the order of speaking."""
        return list(self.panel.judges) if self.panel else []

    def standins(self, kinds: Collection[str], wrong_by: Collection[str], target: str | None = None) -> list[str]:
        """Return the names of stand-ins that made or scored rows of these kinds, in the order of the steps.

        Args:
            wrong_by: makers of the rows' rejected responses (`hallucinate.Hallucination.made_by`).
            target: folder or Hub id of the target model.
        """
        texts = [vision_language.standin(target) or ""] if target and TARGET_MODEL in wrong_by else []
        if self.chat and set(wrong_by) - {FLIPPED}:
            texts.append(self.chat.name)
        judged = self.judges if TEXT_PAIR in kinds else []
        visual = [self.localizer.name] if set(kinds) - {TEXT_PAIR} else []
        return [name for name in (*texts, *judged, *visual) if name.startswith(STANDIN)]


def open_tools(settings: Settings, limits: Limits, calls: Ledger, used: Ledger, discreet: bool) -> Tools:
    """Return the models that the settings name.

    Args:
        calls, used, discreet: as for `open_chat`.

    Raises:
        InputError: a model cannot be opened.
    """
    budget = Budget(limits)

    def chat(spec: str) -> ChatModel:
        return open_chat(
            spec, budget, calls, used, seed=settings.seed, batch_size=settings.batch_size, discreet=discreet,
            max_tokens=settings.max_reply_tokens,
        )  # fmt: skip

    localizer = open_localizer(settings.localizer, settings.query, settings.mask_rule, settings.threshold)
    if settings.chat is None or not settings.writes_answers:
        return Tools(None, None, localizer)
    judges, writer = [chat(judge) for judge in settings.scorers], chat(settings.chat)
    if not all(one.name.startswith(STANDIN) for one in (writer, *judges)):
        calls.open()  # once all names are known, so that a mistyped one leaves no file
    mode: Any = settings.panel
    panel = relevance.Panel(judges, settings.rounds, settings.tolerance, mode) if judges else None
    return Tools(writer, panel, localizer)
