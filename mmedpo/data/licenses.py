"""Licences: identifiers for a card's header, and their order by strictness."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mmedpo.data import credentialed
from mmedpo.data.text import folded, number_of, plain

# Identifiers of the Hub (https://huggingface.co/docs/hub/repositories-licenses), without "other".
HUB = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib
"""
IDENTIFIERS = frozenset(HUB.split())


def fields(name: str) -> dict[str, str]:
    """Return a licence as fields of a card's header: the Hub's identifier, or "other" with a name."""
    slug = re.sub(r"[^a-z0-9.+]+", "-", name.lower()).strip("-.")
    return {"license": slug} if slug in IDENTIFIERS else {"license": "other", "license_name": slug}


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+]+|_+", "-", folded(name)).strip("-.")


# Weights of terms; the strictness of a licence is their sum.
CREDENTIALED, UNKNOWN, NO_DERIVATIVES, NO_COMMERCE, SHARE_ALIKE, ATTRIBUTION = 32, 16, 8, 4, 2, 1
CREATIVE_COMMONS = re.compile(r"ccby(nc)?(nd)?(sa)?(nd)?")  # matched in a name without spaces and punctuation
PARTS = {"nc": NO_COMMERCE, "nd": NO_DERIVATIVES, "sa": SHARE_ALIKE}
FREE = re.compile(r"cc0|cczero|publicdomain|pddl|unlicense(?!d)|wtfpl")
NO_LICENSE = {
    "unknown",
    "unlicensed",
    "proprietary",
    "confidential",
    "restricted",
    "reserved",
}
PHRASES = {
    NO_DERIVATIVES: re.compile(r"noderiv"),
    NO_COMMERCE: re.compile(r"no(n|t|tfor)?commerc|research(only|use)|onlyforresearch"),
    SHARE_ALIKE: re.compile(r"sharealike"),
    ATTRIBUTION: re.compile(r"attribution|unrestricted|permissive"),
}
FAMILIES = {  # prefixes of words
    SHARE_ALIKE: ("gpl", "lgpl", "agpl", "mpl", "epl", "eupl", "osl", "odbl", "gfdl", "ofl"),
    ATTRIBUTION: ("mit", "apache", "bsd", "isc", "zlib", "afl", "ecl", "ncsa", "bsl", "artistic", "odc", "cdla"),
}


def strictness(name: str) -> int:
    """Return how much a licence restricts, from 0 (public domain) upwards. Unknown terms rank high.

    A text that names several ("CC0 1.0 (labels), CC BY-NC 4.0 (images)") has the restrictions of all.
    """
    words = re.findall(r"[a-z0-9]+", plain(name).casefold())
    whole = "".join(words)
    letters = FREE.sub(" ", whole)
    known = {weight for weight, phrase in PHRASES.items() if phrase.search(letters)}
    for terms in CREATIVE_COMMONS.finditer(letters):
        known |= {ATTRIBUTION, *(PARTS[part] for part in (*terms.groups(), *words) if part in PARTS)}
    known |= {weight for weight, begins in FAMILIES.items() if any(word.startswith(begins) for word in words)}
    if NO_LICENSE & set(words) or not (known or letters != whole):
        known.add(UNKNOWN)
    return sum(known) + (CREDENTIALED if credentialed.telling([name]) else 0)


def strictest_first(names: Iterable[str]) -> dict[str, int]:
    """Count these licences: the strictest first, then the most frequent.

    Spellings of one licence ("CC BY 4.0", "cc-by-4.0") count together, under the Hub's identifier or the most frequent.
    """
    spellings: dict[str, Counter[str]] = {}
    for name in names:
        spellings.setdefault(_slug(name) or name, Counter())[name] += 1
    counts = {
        slug if len(found) > 1 and slug in IDENTIFIERS else min(found, key=lambda one: (-found[one], one)): sum(
            found.values()
        )
        for slug, found in spellings.items()
    }
    return {name: counts[name] for name in sorted(counts, key=lambda one: (-strictness(one), -counts[one], one))}


def names(source: Mapping[str, Any]) -> str:
    """Return all licences of a manifest's source, separated by commas."""
    return ", ".join(source.get("licenses") or [str(source.get("license") or "no licence")])


def notices(source: Mapping[str, Any]) -> list[str]:
    """Return a notice about a recorded source that is under several licences, or nothing."""
    if len(source.get("licenses") or {}) < 2:
        return []
    return [f"{source['name']} is under several licences: {said(source)}. The strictest applies to the dataset."]


def terms(manifest: Mapping[str, Any] | None) -> str:
    """Return source and licences of a dataset, by its manifest."""
    source = (manifest or {}).get("source") or {}
    return f"{source['name']} ({said(source)})" if source.get("name") else "not recorded (licence unknown)"


def said(source: Mapping[str, Any]) -> str:
    """Return all licences of a manifest's source; where there are several, with their counts of questions."""
    found = source.get("licenses") or {}
    if len(found) < 2:
        return str(source.get("license") or "unknown")
    return ", ".join(
        f"{name} ({count:,} of {number_of(sum(found.values()), 'questions')})" for name, count in found.items()
    )
