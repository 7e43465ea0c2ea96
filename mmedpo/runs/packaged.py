"""Folders shipped with the package: dataset builders, templates of cards, metrics, recipes."""

from __future__ import annotations

from pathlib import Path

from mmedpo.errors import InputError

PACKAGE = Path(__file__).parents[1]


def folder(name: str) -> Path:
    """Return the folder `dataset_builders`, `eval`, `model_cards` or `recipes`, of a wheel or a checkout.

    pyproject.toml maps these folders into the wheel as `mmedpo/_share/NAME`.

    Raises:
        InputError: the folder is missing.
    """
    places = (PACKAGE / "_share" / name, PACKAGE.resolve().parent / name)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise InputError(
            f"{places[0]}: this installation is incomplete. Install mmedpo again, from a wheel or a clone."
        )
    return found


def metric(name: str) -> str:
    """Return the path of a metric's folder, for `evaluate.load(mmedpo.metric("med_vqa"))`, also offline.

    Raises:
        InputError: no such metric.
    """
    known = sorted(path.name for path in folder("eval").iterdir() if (path / f"{path.name}.py").exists())
    if name not in known:
        raise InputError(f"{name!r} is not a metric of mmedpo. Use one of {', '.join(known)}.")
    return str(folder("eval") / name)
