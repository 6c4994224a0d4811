"""Models that are asked for everything, word for word.

The product does not ask a model for what it was never taught, and reads "sofa" as "couch" where that was taught. Who
measures what a model makes of names asks for them as they are.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lasagna import Lasagna


def asked_everything(model: "Lasagna") -> "Lasagna":
    """The same model, whatever its checkpoint says it was taught."""
    model.vocabulary = None
    return model
