"""The offline stand-ins by name, as settings and as words of a command line: nobody is asked who is not named."""

from __future__ import annotations

from typing import Any

JUDGES = ["standin:strict", "standin:lenient", "standin:lexical"]
STANDINS: dict[str, Any] = {"chat": "standin:rules", "judges": JUDGES}
WORDS = ("--chat", "standin:rules", "--judges", *JUDGES)
