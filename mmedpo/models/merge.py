"""Adapters merged into their base model: one model folder, for servers and trainings that take no adapter."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmedpo.data import credentialed
from mmedpo.errors import InputError
from mmedpo.models import adapters, restricted
from mmedpo.models.fingerprint import fingerprint
from mmedpo.models.vision_language import configured, load_model, load_processor
from mmedpo.runs import writable
from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import portable, versions
from mmedpo.runs.run_folder import short_folder

RECORD = "merge.json"
TRAINED_ON = ("dataset", "dataset_revision", "datasets")  # of the adapter, in which test images are looked for
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Merge:
    """Facts of a merge, as in the output's `merge.json`.

    Attributes:
        checked_by: `adapters.BY_FINGERPRINT` or `BY_NAME`, by which the base was compared with the adapter's own.
        dtype: of the merged weights.
        layers: adapted layers.
        lost: norm of what rounding to `dtype` took from the adapter's changes, over the norm of the changes; 0 in
            float32, unless the base is float32 and its values are much larger than the changes.
        quantised_in_training: bits of the base model's weights while the adapter was trained; None for all.
    """

    base: str
    base_revision: str | None
    adapter: str
    adapter_sha256: str
    checked_by: str
    dtype: str
    layers: int
    lost: float
    quantised_in_training: int | None

    @property
    def notes(self) -> list[str]:
        """Return what the user should know of the merged weights."""
        said = []
        if self.lost > 0.05:
            said.append(
                f"Rounding to {self.dtype} lost {self.lost:.0%} of the adapter's changes, which are small beside the "
                "weights. --dtype float32 keeps them."
            )
        if self.quantised_in_training:
            said.append(
                f"The adapter was trained on weights in {self.quantised_in_training} bits and is merged into the "
                "unquantised ones: answers differ from those of the adapter on the quantised model."
            )
        return said


def merge(
    adapter: str, output: Path, model: str | None = None, dtype: str = "auto", adapter_revision: str | None = None,
    model_revision: str | None = None, command: str = "",
) -> Merge:  # fmt: skip
    """Write the base model with an adapter merged into its weights, and its processor, to `output`.

    The sums are float32, rounded once to the weights' type.

    Args:
        adapter: folder or Hub id.
        model: base model; by default the one that the adapter names.
        dtype: of the merged weights; "auto" is the base model's.

    Raises:
        InputError: adapter or base cannot be read or do not belong together; the base is quantised; the adapter is of
            a kind without weights to merge, or changes tied embeddings on one end only.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype is {dtype!r}; use one of {', '.join(DTYPES)}.")
    writable.check(output)
    base = model or adapters.adapter_config(adapter, adapter_revision).base_model_name_or_path
    record = adapters.record(adapter, adapter_revision) or {}
    if not base:
        raise InputError(f"The adapter {adapter!r} names no base model. Give it with --model.")
    if model is None and record.get("model_is_local") and not Path(base).exists():
        raise InputError(f"The adapter {adapter!r} was trained on the local model {base!r}. Give it with --model.")
    if settings := configured(base, "quantization_config", model_revision):
        raise InputError(
            f"{base!r} is quantised ({settings.get('quant_method', 'bitsandbytes')}): a merge would round the adapter "
            "away. Give the unquantised model that it was made of with --model."
        )
    checked_by = adapters.check_base(adapter, base, adapter_revision, model_revision)
    processor = load_processor(base, model_revision)
    source = restricted.trained_on(base, adapter, model_revision, adapter_revision)
    loaded = load_model(base, model_revision, dtype)
    adapted = adapters.with_adapter(loaded, base, adapter, revision=adapter_revision)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = adapted.peft_config["default"].peft_type.value
        raise InputError(f"The adapter {adapter!r} is of the kind {kind}, which has no weights to merge.")
    _refuse_tied(adapted, adapter)
    layers, lost = _merge_layers(adapted)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*already merged.*")
        merged = adapted.merge_and_unload()
    if source:
        setattr(merged.config, credentialed.KEY, source)
    _keep_valid(merged)
    done = Merge(
        portable(base), getattr(merged.config, "_commit_hash", None), portable(adapter),
        adapters.adapter_digest(adapter, adapter_revision), checked_by, str(merged.dtype).removeprefix("torch."),
        layers, round(lost, 6), _bits(record),
    )  # fmt: skip
    with short_folder(output) as folder:
        merged.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_json(
            folder / RECORD,
            {
                "format": "mmedpo.merge/1", "command": command, "versions": versions(), **asdict(done),
                "model_fingerprint": fingerprint(str(folder)),
                **{key: record[key] for key in TRAINED_ON if key in record}, credentialed.KEY: source,
            },
        )  # fmt: skip
    return done


def _bits(record: dict[str, Any]) -> int | None:
    settings = record.get("lora") or {}
    return 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None


def _refuse_tied(adapted: Any, adapter: str) -> None:
    """Raise InputError where the adapter changes one of two tied weights, since both would change."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    whole = adapted.get_base_model()
    ends = [end for end in (whole.get_input_embeddings(), whole.get_output_embeddings()) if end is not None]
    inner = [end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends]
    tied = len(inner) == 2 and getattr(inner[0], "weight", 0) is getattr(inner[1], "weight", 1)
    if tied and sum(isinstance(end, BaseTunerLayer) for end in ends) == 1:
        raise InputError(
            f"The adapter {adapter!r} changes the head or the embedding of a model that shares their weights: merged, "
            "both would change. Use it as an adapter, or train one without lm_head and embeddings."
        )


def _merge_layers(adapted: Any) -> tuple[int, float]:
    """Merge the layers one by one; return their number and `Merge.lost`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers, wanted, missed = 0, 0.0, 0.0
    for module in adapted.modules():
        if not isinstance(module, BaseTunerLayer) or not hasattr(module, "base_layer"):
            continue
        layers += 1
        if hasattr(module, "unload_and_optionally_merge_module"):  # PEFT merges it as a whole, later
            continue
        exact: Any = copy.deepcopy(module)
        before = _weights(exact.double())
        exact.merge()
        module.merge()
        for old, new, got in zip(before, _weights(exact), _weights(module), strict=True):
            wanted += (new - old).square().sum().item()
            missed += (new - got.double()).square().sum().item()
    return layers, math.sqrt(missed / wanted) if wanted else 0.0


def _weights(module: Any) -> list[Any]:
    return [parameter.detach().clone() for parameter in module.get_base_layer().parameters()]


def _keep_valid(model: Any) -> None:
    """Keep only token ids of a generation config that contradicts itself, as LLaVA's own do: it cannot be saved."""
    from transformers import GenerationConfig

    own = model.generation_config
    try:
        own.validate(strict=True)
    except ValueError:
        ids = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**ids)
