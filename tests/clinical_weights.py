"""Tiny random weights in the architectures of CheXbert and RadGraph-XL, as files of a Hub cache.

They know nothing of medicine: what they show is that the real forward passes run and how labels become scores.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

COMMIT = "0" * 40
WORDS = (
    "no pleural effusion pneumothorax the heart is normal in size small left right lower lobe opacity lung lungs are "
    "clear mild edema acute process of with and seen there a large tip above carina . , ( ) % 2 3 5 cm"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = list(
    dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *LETTERS, *(f"##{one}" for one in LETTERS)]
    )
)
BERT = {"vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 512}  # fmt: skip
ENCODERS = ("google-bert/bert-base-uncased", "invented/encoder")
NER = ["", "Anatomy::definitely present", "Observation::definitely present", "Observation::definitely absent"]
RELATIONS = ["modify", "located_at", "suggestive_of"]
WIDTH, FEATURE, HIDDEN, LAYERS, LONGEST = 3, 4, 12, 2, 24
SPAN = 2 * BERT["hidden_size"] + FEATURE
NERS, RELATING = "radgraph-xl__ner_labels", "radgraph-xl__relation_labels"
LINEAR = {  # DyGIE++'s names of linear layers, with inputs and outputs
    **{
        f"{name}._linear_layers.{layer}": (HIDDEN if layer else inputs, HIDDEN)
        for name, inputs in (
            (f"_ner._ner_scorers.{NERS}.0._module", SPAN),
            (f"_relation._mention_pruners.{RELATING}._scorer.0._module", SPAN),
            (f"_relation._relation_feedforwards.{RELATING}", 3 * SPAN),
        )
        for layer in range(LAYERS)
    },
    f"_ner._ner_scorers.{NERS}.1._module": (HIDDEN, len(NER) - 1),
    f"_relation._mention_pruners.{RELATING}._scorer.1._module": (HIDDEN, 1),
    f"_relation._relation_scorers.{RELATING}": (HIDDEN, len(RELATIONS)),
}


def write(cache: Path) -> Path:
    """Write a Hub cache that holds the files which both scores fetch; return the folder of their weights."""
    for name in ENCODERS:
        folder = _snapshot(cache, name)
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        BertConfig(**BERT, architectures=["BertModel"]).save_pretrained(folder)
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    folder = _snapshot(cache, "StanfordAIMI/RRG_scorers")
    heads = {f"linear_heads.{i}": (BERT["hidden_size"], 2 if i == 13 else 4) for i in range(14)}
    state = {f"module.{name}": tensor for name, tensor in _state(1, "bert.", heads).items()}
    torch.save({"model_state_dict": state, "epoch": 3}, folder / "chexbert.pth")
    files = {"config.json": json.dumps(radgraph_config(ENCODERS[1])).encode(), "weights.th": _saved(radgraph_state())}
    for kind, labels in (("ner", NER), ("relation", RELATIONS)):
        files[f"vocabulary/radgraph-xl__{kind}_labels.txt"] = ("\n".join(labels) + "\n").encode()
    with tarfile.open(folder / "radgraph-xl.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return folder


def radgraph_config(encoder: str) -> dict[str, Any]:
    bert = {"model_name": encoder, "max_length": LONGEST}
    events = {
        "trigger_spans_per_word": 0.3, "argument_spans_per_word": 0.8, "loss_weights": {"trigger": 0.2, "arguments": 1},
    }  # fmt: skip
    modules = {"coref": {"spans_per_word": 0.3, "max_antecedents": 100, "coref_prop": 0}, "ner": {},
               "relation": {"spans_per_word": 0.5}, "events": events}  # fmt: skip
    return {
        "dataset_reader": {"type": "dygie", "max_span_width": WIDTH, "token_indexers": {"bert": bert}},
        "model": {
            "type": "dygie", "embedder": {"token_embedders": {"bert": bert}}, "initializer": {}, "modules": modules,
            "module_initializer": {}, "feature_size": FEATURE, "max_span_width": WIDTH, "target_task": "relation",
            "feedforward_params": {"num_layers": LAYERS, "hidden_dims": HIDDEN, "dropout": 0.4},
            "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
        },
    }  # fmt: skip


def radgraph_state() -> dict[str, torch.Tensor]:
    """Weights under which few spans are entities, and some of these related."""
    state = _state(2, "_embedder.token_embedder_bert._matched_embedder.transformer_model.", LINEAR)
    state["_endpoint_span_extractor._span_width_embedding.weight"] = torch.full((WIDTH, FEATURE), 0.1)
    state[f"_ner._ner_scorers.{NERS}.1._module.bias"] -= 8.5
    state[f"_relation._relation_scorers.{RELATING}.bias"] += 24
    state["_coref.unused"] = torch.zeros(1)
    return state


def _state(seed: int, prefix: str, linear: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    shapes = {prefix + name: tensor.shape for name, tensor in BertModel(BertConfig(**BERT)).state_dict().items()}
    for name, (width, count) in linear.items():
        shapes |= {f"{name}.weight": torch.Size((count, width)), f"{name}.bias": torch.Size((count,))}
    numbers = np.random.RandomState(seed)  # its draws never change between versions
    state = {}
    for name, shape in shapes.items():
        drawn = numbers.standard_normal(tuple(shape)) / (np.sqrt(shape[-1] / 4) if len(shape) > 1 else 10)
        state[name] = torch.tensor(drawn + name.endswith("LayerNorm.weight"), dtype=torch.float32)
    return state


def _saved(state: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _snapshot(cache: Path, name: str) -> Path:
    place = cache / f"models--{name.replace('/', '--')}"
    folder = place / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    return folder
