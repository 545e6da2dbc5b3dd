"""Terms of the loss, which networks each updates, and in what order (Yang et al. 2018, sections
2.2-2.3): for self-play training on the source corpus, and for one target image online.

An iteration is a list of groups of terms. The terms of a group see the networks run once, and all
have their gradients at the same weights; then the optimizers take their steps, one a term or one
for the sum of some.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from tf_autoctx import losses
from tf_autoctx.systems.renderer.configuration import DISCRIMINATORS, Objective
from tf_autoctx.systems.renderer.segmentation import Networks, Tensor
from tf_autoctx.training import loop
from tf_autoctx.training.configuration import Settings

Batch = Mapping[str, Any]
Plan = list[list[str]]  # groups of terms
Update = Callable[[Batch], dict[str, Tensor]]

# {term: networks that it updates}, in the order of the authors' code. A term of a discriminator's
# name is the discriminator's own loss.
TRAINING = {
    "rendering": ("renderer",),
    "d_app_generator": ("renderer",),
    "d_app": ("d_app",),
    "segmentation": ("segmentor", "renderer"),
    "d_struct_generator": ("segmentor", "renderer"),
    "d_struct": ("d_struct",),
    "d_pair_generator": ("renderer", "segmentor"),
    "d_pair": ("d_pair",),
}
ONLINE = {name: networks for name, networks in TRAINING.items() if name != "segmentation"}
ONLINE["d_pair_generator"] = ("renderer",)

# {network: (its main output, its own term)}
MAIN = {"renderer": ("rendered", "rendering"), "segmentor": ("logits", "segmentation")}

# How often the authors' code updates by each term in an iteration online; in training it is once.
PUBLISHED_ONLINE = {"d_app_generator": 2, "d_struct_generator": 3, "d_pair_generator": 2}


class Outputs:
    """What the networks make of a batch: each runs once, when the first loss asks for it.

    Args:
      networks: {name: network}.
      batch: {"image": (batch, height, width, 1), the fakes, "label": likewise, where there is a
        segmentation loss, "real": {discriminator: (batch, height, width, channels)}}.
      training: whether batch norm has the batch's statistics.
      ignored: label of pixels that the segmentation loss leaves out; None: it leaves out none.
      parts: of the segmentation loss, of `losses.TERMS`.
    """

    def __init__(
        self,
        networks: Networks,
        batch: Batch,
        training: bool,
        ignored: int | None = None,
        parts: Sequence[str] = losses.TERMS,
    ) -> None:
        self._networks, self._batch, self._training = networks, batch, training
        self._ignored, self._parts = ignored, parts
        # Not `functools.cached_property`, whose lock would stop the replicas at each other.
        self._outputs: dict[str, Any] = {}

    def _output(self, name: str) -> Any:
        """What a network makes of what it sees; for a discriminator, of the fakes."""
        if name not in self._outputs:
            x = self._input(name)
            self._outputs[name] = self._networks[name](x, training=self._training)
        return self._outputs[name]

    def _input(self, name: str) -> Tensor:
        """What a network sees: the images, the rendered images, or the fakes."""
        if name == "renderer":
            return self._batch["image"]
        if name == "segmentor":
            if "renderer" not in self._networks:
                return self._batch["image"]
            return self._output("renderer")["rendered"]
        image = self._output("renderer")["rendered"] if name != "d_struct" else None
        return seen_by(name, image, self._map() if name != "d_app" else None)

    def _map(self) -> Tensor:
        """The segmentor's soft map of the head."""
        return ops.softmax(self._output("segmentor")["logits"], axis=-1)[..., 1:]

    def losses(self, term: str, objective: Objective) -> Tensor:
        """(batch,) float32 of a term."""
        if term == "rendering":
            main, aux = self._distance("rendered"), self._distance("aux")
            return objective.rendering_weight * main + objective.rendering_aux_weight * aux
        if term == "segmentation":
            weight, ignored = objective.dice_weight, self._ignored
            if objective.segmentation_loss == "published":
                loss = losses.PublishedHybridLoss(weight, ignored=ignored)
            else:
                loss = losses.HybridLoss(weight, self._parts, ignored=ignored)
            return loss(self._batch["label"], self._output("segmentor"))
        if term.endswith("_generator"):
            name = term.removesuffix("_generator")
            return self._weight(name, objective) * losses.generator_adversarial(self._output(name))
        return self._discriminator_losses(term, objective)

    def _weight(self, discriminator: str, objective: Objective) -> float:
        """Of what renderer and segmentor pay for a discriminator."""
        weights = {
            "d_app": objective.app_weight,
            "d_struct": objective.struct_weight,
            "d_pair": objective.pair_weight,
        }
        count = len(self._networks.keys() & DISCRIMINATORS) if objective.adversarial_mean else 1
        return weights[discriminator] / count

    def _discriminator_losses(self, name: str, objective: Objective) -> Tensor:
        """(batch,) float32 of a discriminator."""
        shown = self._batch["real"][name]
        real = self._networks[name](shown, training=self._training)
        if name != "d_pair" or not objective.mismatched_pairs:
            return losses.discriminator_adversarial(real, self._output(name))
        mismatched = ops.concatenate([shown[..., :1], ops.roll(shown[..., 1:], 1, axis=0)], axis=-1)
        fakes = (self._output(name), self._networks[name](mismatched, training=self._training))
        return sum(losses.discriminator_adversarial(real, fake) for fake in fakes) / 2

    def _distance(self, output: str) -> Tensor:
        """(batch,) float32, mean absolute difference of an output of the renderer and the image."""
        rendered = self._output("renderer")[output]
        return ops.mean(ops.abs(self._batch["image"] - rendered), axis=(1, 2, 3))


def seen_by(discriminator: str, image: Tensor, map_: Tensor) -> Tensor:
    """Input of a discriminator: the image, the map, or the pair of both.

    The map is a soft one of a fake, a mask of 0 and 1 of a real.
    """
    if discriminator == "d_pair":
        return ops.concatenate([image, map_], axis=-1)
    return image if discriminator == "d_app" else map_


def groups(names: Collection[str], objective: Objective, online: bool = False) -> Plan:
    """The groups of terms of one iteration.

    Args:
      names: of the networks; a term that needs another one is left out.
      objective: how the terms are ordered.
      online: the terms and counts of online rendering, without segmentation loss, in place of those
        of training.
    """
    terms = [term for term in (ONLINE if online else TRAINING) if _needed(term) in names]
    if objective.update_order == "published":
        counts = PUBLISHED_ONLINE if online else {}
        return [[term] for term in terms for _ in range(counts.get(term, 1))]
    generators = [term for term in terms if term not in DISCRIMINATORS]
    return [generators] * (objective.generator_updates - 1) + [terms]


def updates(
    networks: Networks,
    plan: Plan,
    objective: Objective,
    settings: Settings,
    online: bool = False,
    ignored: int | None = None,
    rates: Mapping[str, float] | None = None,
) -> tuple[dict[str, keras.optimizers.Optimizer], Update]:
    """The optimizers, and one iteration of updates.

    Args:
      networks: {name: network}.
      plan: of `groups`.
      objective: how the terms are weighted, and whether some share an optimizer.
      settings: of the optimizers.
      online: whether the networks are those of `ONLINE`, with moving statistics in batch norm.
      ignored: see `Outputs`.
      rates: {network: its learning rate relative to that of the settings}; 1 where it is missing.

    Returns:
      ({name: optimizer}, batch of `Outputs` -> {term: mean loss at its last update, "loss": their
      sum}).
    """
    owners = {term: _optimizer_of(term, objective) for group in plan for term in group}
    variables: dict[str, dict[int, Any]] = {}  # of every optimizer, each once
    for term, owner in owners.items():
        reached = _reached(term, networks, ONLINE if online else TRAINING)
        variables.setdefault(owner, {}).update({id(variable): variable for variable in reached})
    own = {
        id(variable): rate
        for name, rate in (rates or {}).items()
        if name in networks and rate != 1
        for variable in networks[name].trainable_variables
    }
    optimizers = {
        owner: loop.adam(settings, list(owned.values()), [own.get(key, 1.0) for key in owned])
        for owner, owned in variables.items()
    }

    parts = settings.terms(losses.TERMS)

    def iteration(batch: Batch) -> dict[str, Tensor]:
        means: dict[str, Tensor] = {}
        for group in plan:
            outputs = Outputs(networks, batch, not online, ignored=ignored, parts=parts)
            means |= loop.minimize(
                {
                    term: loop.Term(
                        optimizers[owners[term]],
                        list(variables[owners[term]].values()),
                        functools.partial(outputs.losses, term, objective),
                    )
                    for term in group
                }
            )
        return means | {"loss": sum(means.values())}

    return optimizers, iteration


def _needed(term: str) -> str:
    """Name of the network without which there is no such term."""
    own = {term: network for network, (_, term) in MAIN.items()}
    return own.get(term, term.removesuffix("_generator"))


def _optimizer_of(term: str, objective: Objective) -> str:
    """Name of the optimizer that a term has, alone or with others (equation 5)."""
    together = objective.update_order == "summed" and term not in DISCRIMINATORS
    return "generators" if together else term


def _reached(
    term: str, networks: Networks, updated: Mapping[str, tuple[str, ...]]
) -> list[keras.Variable]:
    """The variables that a term updates; a side branch learns from its own network's term alone."""
    variables = []
    for name in updated[term]:
        if name not in networks:
            continue
        network = networks[name]
        output, own = MAIN.get(name, ("", term))
        main = network if term == own else keras.Model(network.input, network.output[output])
        variables += main.trainable_variables
    return variables
