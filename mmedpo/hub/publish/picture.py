"""Picture at the top of a published dataset's card, drawn from its recorded audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmedpo.data.plots import DARK, GREY, LIGHT, PALETTE, plot_settings, saved
from mmedpo.data.text import number_of
from mmedpo.schema import DISPREFERENCES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = dict(zip(DISPREFERENCES, PALETTE, strict=False))
SHOWN_REASONS = 6
LONGEST_LABEL = 30  # characters


def draw(audit: Mapping[str, Any]) -> bytes:
    """Draw kinds of pairs, weights, answer lengths and reject reasons as PNG (960 x 480 pixels).

    Equal audits give equal bytes within one version of matplotlib.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with plot_settings({"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "text.parse_math": False}):
        figure = Figure(figsize=(9.6, 4.8), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
        parts = figure.subfigures(2, 2, squeeze=False).flat  # so that each has margins of its own
        kinds, weights, lengths, rejects = (part.subplots() for part in parts)
        counts = audit["counts"]["dispreference"]
        _bars(kinds, {_label(kind): count for kind, count in counts.items()}, [_colour(kind) for kind in counts])
        kinds.set_title(f"{number_of(audit['rows'], 'pairs')} by kind")
        _weights(weights, audit["weights"])
        _lengths(lengths, audit["style"])
        _rejects(rejects, audit["rejects"] or {})
        return saved(figure, dpi=100)


def _bars(axes: Axes, numbers: Mapping[str, float], colours: list[str], form: str = "{:,.0f}") -> None:
    bars = axes.barh(list(numbers), list(numbers.values()), color=colours, height=0.6)
    axes.bar_label(bars, [form.format(number) for number in numbers.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_ylim(max(len(numbers), 4) - 0.5, -0.5)  # few bars stay slim
    axes.set_xticks([])
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)


def _weights(axes: Axes, weights: Mapping[str, Any] | None) -> None:
    axes.set_title("clinical weight" + (f": mean {weights['mean']:.2f}, sd {weights['sd']:.2f}" if weights else ""))
    if weights is None:
        _nothing(axes, "no row has a weight")
        return
    parts = weights["by_dispreference"]
    edges = weights["histogram"]["edges"]
    axes.hist(
        [edges[:-1]] * len(parts),
        bins=edges,
        weights=[part["histogram"]["counts"] for part in parts.values()],
        stacked=True,
        color=[_colour(kind) for kind in parts],
    )
    axes.set_ylabel("pairs")
    axes.spines[["top", "right"]].set_visible(False)


def _lengths(axes: Axes, style: Mapping[str, Any] | None) -> None:
    axes.set_title("mean words of an answer")
    if style is None:
        _nothing(axes, "no pair differs in its texts")
        return
    sides = {"chosen": style["chosen_words_mean"], "rejected": style["rejected_words_mean"]}
    _bars(axes, sides, [DARK, LIGHT], "{:.1f}")
    shares = [100 * style[key] for key in ("rejected_longer_share", "within_two_words_share")]
    axes.text(0, 0.25, "rejected longer: {:.0f} %\nwithin two words: {:.0f} %".format(*shares), va="top",
              transform=axes.transAxes)  # fmt: skip


def _rejects(axes: Axes, rejects: Mapping[str, int]) -> None:
    axes.set_title(f"{sum(rejects.values()):,} candidates left out")
    if not rejects:
        _nothing(axes, "nothing was rejected")
        return
    ranked = sorted(rejects.items(), key=lambda item: (-item[1], item[0]))
    shown = {_short(reason): count for reason, count in ranked[:SHOWN_REASONS]}
    if rest := sum(count for _, count in ranked[SHOWN_REASONS:]):
        shown["other reasons"] = rest
    _bars(axes, shown, [GREY] * len(shown))


def _nothing(axes: Axes, sentence: str) -> None:
    axes.text(0.5, 0.5, sentence, ha="center", va="center", color=GREY, transform=axes.transAxes)
    axes.set_axis_off()


def _colour(kind: str) -> str:
    return COLOURS.get(kind, DARK)


def _label(kind: str) -> str:
    return kind.replace("_", " ")


def _short(reason: str) -> str:
    return reason if len(reason) <= LONGEST_LABEL else f"{reason[: LONGEST_LABEL - 1]}…"
