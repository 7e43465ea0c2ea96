"""RadGraph-XL (Delbrouck et al. 2024): entities and relations of a report, by a network of DyGIE++'s architecture, and
their F1.

Words, spans and F1 are those of the package radgraph 0.1.18: `simple` compares entities (tokens and label), `partial`
(RG_ER, "RadGraph F1" in papers) also whether they have relations, `complete` also which. A report without an entity
scores 0.
"""

from __future__ import annotations

import json
import math
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mmedpo.errors import InputError
from mmedpo.evaluation.metrics.base import mean_of
from mmedpo.evaluation.metrics.reports import weights
from mmedpo.runs.device import best_device

if TYPE_CHECKING:
    from pathlib import Path

    import torch

VERSION = 1
FILE = "radgraph-xl.tar.gz"
DATASET = "radgraph-xl"  # prefix of its label sets and heads
LEVELS = ("simple", "partial", "complete")
METRICS = (mean_of("radgraph_partial", "radgraph_f1"), mean_of("radgraph_simple"), mean_of("radgraph_complete"))
SPECIAL = 2  # tokens that a segment of wordpieces gets: its start and its end

Span = tuple[int, int]  # first and last word


@dataclass(frozen=True)
class Entity:
    """Words of a report with their label, and its relations as (label, words of the other entity)."""

    tokens: str
    label: str
    relations: list[tuple[str, str]] = field(default_factory=list)

    def facts(self, level: str) -> set[tuple[Any, ...]]:
        """Return what a level compares."""
        if level == "simple":
            return {(self.tokens, self.label)}
        if level == "partial" or not self.relations:
            return {(self.tokens, self.label, True)} if self.relations else {(self.tokens, self.label)}
        return {(self.tokens.lower(), self.label, how, other.lower()) for how, other in self.relations}


def scores(predictions: Sequence[str], references: Sequence[str]) -> list[dict[str, Any]]:
    """Return {"radgraph_simple", "radgraph_partial", "radgraph_complete"}, in [0, 1], of each of n pairs of reports."""
    texts = dict.fromkeys([*predictions, *references])
    parser = load()
    parser.network.to(best_device())
    found = {text: parser.entities(text) for text in texts}
    return [f1(found[said], found[gold]) for said, gold in zip(predictions, references, strict=True)]


@cache
def definition() -> str:
    """Return name, version and weights of the score."""
    return weights.definition("radgraph", VERSION, weights.fetch("radgraph", FILE))


def f1(prediction: Sequence[Entity], reference: Sequence[Entity]) -> dict[str, float]:
    """Return the F1 of each level between two reports' entities."""
    found = {}
    for level in LEVELS:
        said, gold = ({fact for one in some for fact in one.facts(level)} for some in (prediction, reference))
        found[f"radgraph_{level}"] = 2 * len(said & gold) / (len(said) + len(gold)) if said and gold else 0.0
    return found


def split(text: str) -> list[str]:
    """Return the words of a report, as radgraph-xl was trained on them."""
    from nltk.tokenize import wordpunct_tokenize

    for old, new in (("\\n", "  "), ("\\f", "  "), ("\\u2122", "      "), ("\n", " "), ('\\"', "``")):
        text = text.replace(old, new)
    text = " ".join(wordpunct_tokenize(re.sub(r"\s+", " ", text)))
    for old, new in ((").", ") ."), ("%.", "% ."), (".'", ". '"), ("%,", "% ,"), ("%)", "% )")):
        text = text.replace(old, new)
    return text.split()


class Parser:
    """A network of RadGraph-XL's architecture.

    Args:
        tokenizer, encoder: BERT, which the state's weights fill.
        config: of the archive (`model`, `dataset_reader`).
        labels: names of "ner" labels, the first for none, and of "relation" labels.
        state: tensors by DyGIE++'s names.
        file: their file, for messages.
    """

    def __init__(
        self, tokenizer: Any, encoder: Any, config: Mapping[str, Any], labels: Mapping[str, list[str]],
        state: Mapping[str, torch.Tensor], file: Path,
    ) -> None:  # fmt: skip
        from torch import nn

        model = config["model"]
        if model["modules"].get("coref", {}).get("coref_prop"):
            raise InputError(f"{file.name} propagates coreferences, which this score's network does not have.")
        self.tokenizer, self.labels = tokenizer, labels
        self.widest, self.kept = model["max_span_width"], model["modules"]["relation"]["spans_per_word"]
        self.segment = (config["dataset_reader"]["token_indexers"]["bert"].get("max_length") or 512) - SPECIAL
        span = 2 * encoder.config.hidden_size + model["feature_size"]
        hidden, layers = model["feedforward_params"]["hidden_dims"], model["feedforward_params"]["num_layers"]

        def scorer(width: int, outputs: int) -> nn.Sequential:
            sizes = [width] + [hidden] * layers
            parts = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
            return nn.Sequential(*parts, nn.Linear(hidden, outputs))

        self.network = nn.ModuleDict({
            "encoder": encoder, "width": nn.Embedding(self.widest, model["feature_size"]),
            "ner": scorer(span, len(labels["ner"]) - 1), "mention": scorer(span, 1),
            "relation": scorer(3 * span, len(labels["relation"])),
        })  # fmt: skip
        weights.load(self.network, _renamed(state, layers), file)
        self.network.eval()

    def entities(self, text: str) -> list[Entity]:
        """Return the entities of a report with their relations, in its order."""
        import torch

        words = split(text)
        if not words:
            return []
        with torch.inference_mode():
            spans, embedded = self._spans(words)
            found = self._ner(spans, embedded)
            relations = self._relations(spans, embedded, math.ceil(len(words) * self.kept))

        def tokens(span: Span) -> str:
            return " ".join(words[span[0] : span[1] + 1])

        return [
            Entity(tokens(span), label, [(how, tokens(b)) for a, b, how in relations if a == span and b in found])
            for span, label in found.items()
        ]

    def _spans(self, words: Sequence[str]) -> tuple[list[Span], torch.Tensor]:
        """Return all spans of up to `widest` words, and their embeddings [spans, 2 hidden + feature]."""
        import torch

        embedded = self._words(words)
        spans = [
            (first, last) for first in range(len(words)) for last in range(first, min(first + self.widest, len(words)))
        ]
        first, last = torch.tensor(spans, device=embedded.device).T
        return spans, torch.cat([embedded[first], embedded[last], self.network["width"](last - first)], -1)

    def _words(self, words: Sequence[str]) -> torch.Tensor:
        """Return word embeddings [words, hidden], each the mean of its wordpieces'; 0 for a word without any."""
        import torch

        pieces = [self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        ids = [piece for own in pieces for piece in own]
        start, end = [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]
        segments = [ids[at : at + self.segment] for at in range(0, len(ids), self.segment)]
        given = self.tokenizer.pad({"input_ids": [start + one + end for one in segments]}, return_tensors="pt")
        encoder = self.network["encoder"]
        out = encoder(**given.to(encoder.device)).last_hidden_state
        flat = torch.cat([row[1 : 1 + len(one)] for row, one in zip(out, segments, strict=True)])
        parts = flat.split([len(own) for own in pieces])
        return torch.stack([one.mean(0) if len(one) else flat.new_zeros(flat.shape[-1]) for one in parts])

    def _ner(self, spans: Sequence[Span], embedded: torch.Tensor) -> dict[Span, str]:
        best = _with_none(self.network["ner"](embedded)).argmax(-1).tolist()
        return {span: self.labels["ner"][one] for span, one in zip(spans, best, strict=True) if one}

    def _relations(self, spans: Sequence[Span], embedded: torch.Tensor, most: int) -> list[tuple[Span, Span, str]]:
        """Return the relations between the `most` likely mentions."""
        import torch

        mention = self.network["mention"](embedded)[:, 0]
        kept = mention.topk(min(most, len(spans))).indices.sort().values
        own, score = embedded[kept], mention[kept]
        count = len(kept)
        a, b = own[:, None].expand(-1, count, -1), own[None].expand(count, -1, -1)
        scores = self.network["relation"](torch.cat([a, b, a * b], -1)) + (score[:, None] + score[None])[..., None]
        best = _with_none(scores).argmax(-1)
        return [
            (spans[kept[i]], spans[kept[j]], self.labels["relation"][int(best[i, j]) - 1])
            for i, j in best.nonzero().tolist()
        ]


def _with_none(scores: torch.Tensor) -> torch.Tensor:
    """Return scores [..., labels] with the score 0 of no label before them."""
    import torch

    return torch.cat([scores.new_zeros(*scores.shape[:-1], 1), scores], -1)


def _renamed(state: Mapping[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """Return the tensors that the score needs, by the names of `Parser`'s network; others (coreferences, events) are
    left out."""
    heads = {
        f"_ner._ner_scorers.{DATASET}__ner_labels.0._module._linear_layers": "ner",
        f"_ner._ner_scorers.{DATASET}__ner_labels.1._module": "ner.last",
        f"_relation._mention_pruners.{DATASET}__relation_labels._scorer.0._module._linear_layers": "mention",
        f"_relation._mention_pruners.{DATASET}__relation_labels._scorer.1._module": "mention.last",
        f"_relation._relation_feedforwards.{DATASET}__relation_labels._linear_layers": "relation",
        f"_relation._relation_scorers.{DATASET}__relation_labels": "relation.last",
        "_embedder.token_embedder_bert._matched_embedder.transformer_model": "encoder",
        "_endpoint_span_extractor._span_width_embedding": "width",
    }
    found = {}
    for name, tensor in state.items():
        place = next((old for old in heads if name.startswith(f"{old}.")), None)
        if place is None:
            continue
        part, rest = heads[place], name.removeprefix(f"{place}.")
        if part.endswith(".last"):
            part, rest = part.removesuffix(".last"), f"{2 * layers}.{rest}"
        elif part in ("ner", "mention", "relation"):  # linear layers, each with a ReLU behind it
            number, _, rest = rest.partition(".")
            rest = f"{2 * int(number)}.{rest}"
        found[f"{part}.{rest}"] = tensor
    return found


@cache
def load() -> Parser:
    """Return RadGraph-XL with its published weights, once a process. Raises InputError where they are missing."""
    file = weights.fetch("radgraph", FILE)
    try:
        with tarfile.open(file) as archive:
            members = {one.name.removeprefix("./"): one for one in archive.getmembers() if one.isfile()}

            def text(name: str) -> str:
                return archive.extractfile(members[name]).read().decode()  # type: ignore[union-attr]

            config = json.loads(text("config.json"))
            labels = {
                kind: text(f"vocabulary/{DATASET}__{kind}_labels.txt").removesuffix("\n").split("\n")
                for kind in ("ner", "relation")
            }
            state = weights.tensors(file, archive.extractfile(members["weights.th"]))
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise InputError(f"{file.name} is not an archive of RadGraph-XL ({error}); fetch it again.") from error
    model = config["model"]["embedder"]["token_embedders"]["bert"]["model_name"]
    return Parser(*weights.encoder("radgraph", model), config, labels, state, file)
