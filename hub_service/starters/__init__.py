"""The starter notebooks: each runs as it is, and becomes a project with one click.

`operations.starters` offers them; the notebooks lie beside this file and travel in the package.
"""

from __future__ import annotations

from importlib.resources import files

from federator.contract import Starter

STARTERS: tuple[Starter, ...] = (
    Starter("tabular", "Table, with PyTorch", "Logistic regression on a table of numbers: is this tumour malignant?"),
    Starter("sklearn", "Table, with scikit-learn", "The same question with scikit-learn's SGDClassifier."),
    Starter("xgboost", "Table, with XGBoost", "Boosted trees: each round, every hospital adds a tree to one forest."),
    Starter("survival", "Survival analysis", "Cox proportional hazards: what raises a risk, and by how much?"),
    Starter("histopathology", "Images", "A small convolutional network, a ResNet or VGG-16, for images in folders."),
    Starter("finetuning", "Fine-tuning", "A small pretrained network learns a new task from few images of each site."),
)


def read(name: str) -> bytes:
    """The notebook's bytes.

    Args:
        name: of one of STARTERS.
    """
    return files(__name__).joinpath(f"{name}.ipynb").read_bytes()
