"""What a served model tells of itself, as far as a client makes use of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from absl import logging

from tf_autoctx import serving
from tf_autoctx.data import images
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.systems.shared import image_checks, registry
from tf_autoctx.systems.shared.declaration import Declaration
from tf_autoctx.systems.shared.image_checks import Trained


@dataclasses.dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
      declaration: of the system; None: it is unknown here.
      labels: {label value: name}.
      trained: how large the volumes were that the model was trained on.
      orientation: of the volumes that the model was trained on; empty if unknown.
      digest: SHA-256 (hex) of its text, in which that of the weights stands.
      channels: of the images that the model takes.
    """

    declaration: Declaration | None = None
    labels: Mapping[int, str] = dataclasses.field(default_factory=dict)
    trained: Trained = dataclasses.field(default_factory=Trained)
    orientation: str = ""
    digest: str = ""
    channels: int = 1

    @classmethod
    def of(cls, text: str) -> Self:
        """The card of JSON.

        Raises:
          ValueError: it is none.
        """
        try:
            card: Any = json.loads(text)
            labels = {int(k): serving.plain(str(v)) for k, v in card.get("labels", {}).items()}
            trained = Trained.of_facts(card)
            orientation = serving.plain(str(card.get("orientation") or ""))
            digest = hashlib.sha256(text.encode()).hexdigest()
            system = _declaration(str(card.get("system")))
            system = system and system.unchecked(card.get("any_voxels"))
            channels = max(1, len(list(card.get("channels") or ())))
            return cls(system, labels, trained, orientation, digest, channels)
        except (AttributeError, TypeError, RecursionError, OverflowError) as error:
            raise ValueError(str(error)) from None

    def warn(self, image: images.Image, voxels: np.ndarray) -> None:
        """Warns of an image that is unlike those of the training, as `predict` does."""
        told = image.path, voxels, image.millimetres, self.declaration
        image_checks.warn_of_unlike(*told, self.trained)


def _declaration(system: str) -> Declaration | None:
    try:
        return registry.find(system, "the server")
    except UserError:  # of a package that the client's machine does not have
        return None


def of_model(
    model: serving.Model, name: str, known: Mapping[str, serving.Signature], retries: int
) -> Card:
    """The card of a model on a server; an empty one, and a warning, where it has none.

    Args:
      model: on a server.
      name: of it there.
      known: its signatures.
      retries: see `serving.with_retries`.

    Raises:
      FieldError: its card cannot be read.
      UserError: it takes volumes in another orientation; the server does not answer, or with
        something else.
    """
    text = serving.with_retries(model.card, retries) if serving.CARD in known else "{}"
    try:
        card = Card.of(text)
    except ValueError:
        raise FieldError(
            "model", name, "its card cannot be read; expected one of ours, export it again."
        ) from None
    axes = known["serving_default"].inputs["image"]  # batch and channel among them
    image_checks.warn_of_orientation(name, {"orientation": card.orientation}, axes - 2)
    if serving.CARD not in known:
        logging.warning(
            "%s: this export tells nothing of its training, so images are not compared with it; "
            "export it again.",
            name,
        )
    return card
