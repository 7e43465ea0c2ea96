"""How the chosen sides of text pairs were made, in sentences for the terminal and the card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmedpo.data.text import number_of


def said(found: Mapping[str, Any]) -> list[str]:
    """Return sentences about "chosen" of a manifest."""
    sentences = []
    if metric := found.get("metric"):
        sentences.append(
            f"Ranked pairs: the best against the worst of the target model's samples by {metric} against the gold "
            f"answer, with scores that differ by more than 0 and at least {found['min_gap']:g}, and lengths within a "
            f"factor of {found['length_ratio']:g} or two words."
        )
    if "max_changed" in found:
        sentences.append(
            "Corrected pairs: the target model's own wrong answer against the smallest correction of it, which changes "
            f"at most {found['max_changed']:.0%} of its words or two words."
        )
    if scores := found.get("scores"):
        sentences.append(f"Mean score: {scores['chosen']:.3f} chosen, {scores['rejected']:.3f} rejected.")
    made = ", ".join(f"{number:,} by {name}" for name, number in found["made_by"].items())
    equal = f"; {found['equal_to_gold']:,} that models wrote have the words of the gold answer" if made else ""
    sentences.append(f"Chosen sides: {made or 'none'}{equal}.")
    if words := found.get("changed_words"):
        changed = f"{words['mean']:.1f} words on average, at most {number_of(words['max'], 'words')}"
        sentences.append(f"Corrections change {changed}.")
    if fallback := found.get("fallback"):
        why = ", ".join(f"{reason} ({number:,})" for reason, number in fallback.items())
        sentences.append(f"The gold answer was chosen after all for {sum(fallback.values()):,} pairs: {why}.")
    return sentences
