"""Models that were trained on restricted data, which their texts may repeat."""

from __future__ import annotations

from mmedpo.data import credentialed
from mmedpo.models import adapters
from mmedpo.models.vision_language import configured


def trained_on(
    model: str, adapter: str | None = None, revision: str | None = None, adapter_revision: str | None = None
) -> str | None:
    """Return the restricted source that a model, or its adapter, was trained on; None if there is none.

    An adapter whose record cannot be read counts as restricted, under its own name.

    Raises:
        InputError: no loadable configuration under `model`.
    """
    if source := configured(model, credentialed.KEY, revision):
        return str(source)
    if not adapter:
        return None
    record = adapters.record(adapter, adapter_revision)
    return adapter if record is None else credentialed.first([record])


def evidence(
    model: str, adapter: str | None = None, revision: str | None = None, adapter_revision: str | None = None
) -> str | None:
    """Return the evidence that a model's texts may repeat restricted data, or None; raises as `trained_on`."""
    source = trained_on(model, adapter, revision, adapter_revision)
    return source and f"the model {model}{f' with {adapter}' * bool(adapter)}, which was trained on {source}"
