"""PEFT adapters from a folder or the Hub: read, compare with their base model, load."""

from __future__ import annotations

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any

from mmedpo.data import hub
from mmedpo.errors import InputError
from mmedpo.models.fingerprint import file_contents, fingerprint

RECORD = "training.json"  # in the folder of an adapter trained by mmedpo
FINGERPRINT = "model_fingerprint"  # key of the base model's fingerprint in RECORD
BY_FINGERPRINT, BY_NAME = "fingerprint", "name"  # ways to compare base models

AGAIN = "Copy or download it again."

log = logging.getLogger(__name__)


def adapter_config(adapter: str, revision: str | None = None) -> Any:
    """Return the PEFT configuration of an adapter, without loading weights. Raises InputError where there is none."""
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(adapter, revision=revision)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unread(adapter, error) from error


def _unread(adapter: str, error: Exception) -> InputError:
    why = hub.why_unread(error, adapter).removesuffix(".")
    return InputError(f"The adapter {adapter!r} cannot be read: {why}. Give the folder or Hub id of an adapter.")


def base_of(name: str, revision: str | None = None) -> Any:
    """Return the name of an adapter's base model; None where `name` is no adapter."""
    try:
        return adapter_config(name, revision).base_model_name_or_path or "BASE_MODEL"
    except InputError:
        return None


def check_base(
    adapter: str, name: str, revision: str | None = None, base_revision: str | None = None, download: bool = True,
    option: str = "--adapter",
) -> str:  # fmt: skip
    """Compare the model `name` with the base model that an adapter was trained on.

    Weights are compared by fingerprint. Where the adapter's record or the model has none, the last parts of the names
    are compared, with a warning.

    Args:
        adapter: folder or Hub id of a PEFT adapter.
        name: folder or Hub id of the base model.
        revision, base_revision: branch, tag or commit of adapter and base model on the Hub.
        download: False skips the fingerprint of a Hub model that is not in the cache.
        option: command-line option that named the adapter, for error messages.

    Returns:
        `BY_FINGERPRINT` or `BY_NAME`.

    Raises:
        InputError: the adapter is missing, has no loadable weights, or belongs to another model.
    """
    trained_on = adapter_config(adapter, revision).base_model_name_or_path
    adapter_weights(adapter, revision, option)
    known = (record(adapter, revision) or {}).get(FINGERPRINT)
    own = fingerprint(name, base_revision, download) if known else None
    if known and own:
        if known != own:
            raise InputError(
                f"The adapter {adapter!r} was trained on other weights than those of {name!r} (fingerprints "
                f"{known[:8]} and {own[:8]}). Give its own base model, {trained_on!r}."
            )
        return BY_FINGERPRINT
    if trained_on and Path(trained_on).name != Path(name).name:
        raise InputError(
            f"The adapter {adapter!r} was trained on {trained_on!r}, not on {name!r}; give its own base model."
        )
    if download:
        lacking = f"{name!r} has no safetensors files" if known else f"{adapter!r} has no {RECORD} with a fingerprint"
        compared = f"only the name {Path(name).name!r} was compared" if trained_on else "nothing was compared"
        log.warning(f"{lacking}: the adapter may have been trained on other weights; {compared}.")
    return BY_NAME


def record(adapter: str, revision: str | None = None) -> dict[str, Any] | None:
    """Return the training.json of an adapter (folder, checkpoint of a run, Hub id).

    It is empty where there is none, and None where the Hub cannot be asked.
    """
    folder = Path(adapter).resolve()
    if folder.name.startswith("checkpoint-") and folder.is_dir() and not (folder / RECORD).exists():
        folder = folder.parent
    return hub.recorded(str(folder) if folder.exists() else adapter, RECORD, "model", revision)


def with_adapter(model: Any, name: str, adapter: str, trainable: bool = False, revision: str | None = None) -> Any:
    """Return `model` with the PEFT adapter of a folder or Hub id; call `check_base` before.

    Raises:
        InputError: the adapter is missing or does not fit the model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    weights = adapter_weights(adapter, revision)
    try:
        _refuse_damaged(adapter, weights)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # PEFT would leave these modules untrained
            adapted = PeftModel.from_pretrained(model, adapter, is_trainable=trainable, revision=revision)
        _refuse_unread(adapter, weights, adapted)
        return adapted
    except InputError:
        raise
    except UserWarning as error:
        raise InputError(
            f"The adapter {adapter!r} lacks weights of modules that its adapter_config.json adapts "
            f"({str(error).partition('[')[2].partition(',')[0].rstrip('].')}, ...). {AGAIN}"
        ) from error
    except SafetensorError as error:
        raise InputError(
            f"The weights of the adapter {adapter!r} cannot be read ({error}): the file is truncated or damaged. "
            f"{AGAIN}"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"The adapter {adapter!r} does not fit {name!r}: {hub.why_unread(error, adapter)}") from error


def _refuse_damaged(adapter: str, weights: Path) -> None:
    """Raise InputError where a tensor of an adapter's file holds NaN or infinity."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            if not file.get_tensor(name).isfinite().all():
                raise InputError(
                    f"The adapter {adapter!r} contains NaN or infinite weights ({name}, ...): its training diverged, "
                    "or the file is damaged. Train it again with a smaller learning rate, or copy it again."
                )


def _refuse_unread(adapter: str, weights: Path, adapted: Any) -> None:
    """Raise InputError where PEFT left tensors of an adapter's file out, since no module takes them."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        names = set(file.keys())
    own = get_peft_model_state_dict(adapted, save_embedding_layers=True).keys()
    if unread := sorted(names - own):
        raise InputError(
            f"The adapter {adapter!r} contains weights of modules that the model does not have ({unread[0]}, ...): "
            f"they belong to another model, or adapter_config.json was changed. {AGAIN}"
        )


def adapter_commit(adapter: str, revision: str | None) -> str | None:
    """Return the commit of an adapter that was loaded from the Hub; None for a folder."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    file = cached_file(adapter, "adapter_config.json", revision=revision)
    return extract_commit_hash(file, None)


def adapter_digest(adapter: str, revision: str | None = None) -> str:
    """Return the SHA-256 (hexadecimal) of an adapter's weights. Raises as `adapter_weights`."""
    return file_contents(adapter_weights(adapter, revision))


def adapter_contents(adapter: str, revision: str | None = None) -> str:
    """Return the SHA-256 (hexadecimal) of an adapter's weights and configuration file.

    Raises:
        InputError: the adapter is missing, or neither on the Hub nor in the cache.
    """
    from transformers.utils.hub import cached_file

    adapter_config(adapter, revision)
    config = file_contents(Path(str(cached_file(adapter, "adapter_config.json", revision=revision))))
    return hashlib.sha256(f"{adapter_digest(adapter, revision)} {config}".encode()).hexdigest()


def adapter_weights(adapter: str, revision: str | None = None, option: str = "--adapter") -> Path:
    """Return the weights file of a PEFT adapter in a folder or on the Hub.

    Raises:
        InputError: there are no weights, or pickled ones; or the Hub cannot be asked and the file is not in the cache.
    """
    from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME
    from transformers.utils.hub import cached_file

    def there(name: str) -> str | None:
        file: str | None = cached_file(adapter, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return file

    try:
        if file := there(ADAPTER_SAFE_WEIGHTS_NAME):
            return Path(file)
        pickled = there(ADAPTER_WEIGHTS_NAME)
    except OSError as error:
        raise _unread(adapter, error) from error
    if pickled:
        raise InputError(
            f"The adapter {adapter!r} has pickled weights (adapter_model.bin), which are not read, since they could "
            f"run code. If you trust it, save it with `save_pretrained`, and give that folder as {option}."
        )
    raise InputError(
        f"The adapter {adapter!r} has no adapter_model.safetensors. Give {option} a finished training's folder."
    )
