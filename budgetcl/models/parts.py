"""Which part of a network is trained. What is not trained costs no weight gradient, so it buys further updates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np
from torch import nn

from budgetcl.errors import UserError, at_least
from budgetcl.models.network import Network


class Part(Protocol):
    """Chooses what is trained, anew in each step."""

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the modules, or single parameters, that a step trains.

        Everything else is frozen; a module without a trained parameter is frozen with its statistics (BatchNorm).

        Args:
            network: the network; a part may insert parameters of its own when it first sees it.
            step: the time step's number.
            random: the part's own random numbers of this step.
        """
        ...


class Everything:
    """Train the whole network."""

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the network itself."""
        return [network]


class HeadOnly:
    """Train the classifier on a frozen backbone (partial fine-tuning, BudgetCL, CVPR 2023).

    The backbone's forward is still paid at each update: about a third of a full update's price. With cached features
    it is paid once a sample, and the features are stored.

    Args:
        cached: keep the features of every sample once it was drawn, and train on them. Only where images are not
            augmented.
    """

    def __init__(self, cached: bool = False) -> None:
        self.cached = cached

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the head."""
        return [network.head]


class LastStage:
    """Train the last stages of the backbone, and the head (Yosinski et al., NeurIPS 2014).

    The backward ends where they begin.

    Args:
        stages: how many of the last stages, see :func:`stages_of`. What follows them is trained as well.
    """

    def __init__(self, stages: int = 1) -> None:
        at_least(1, **{"part.stages": stages})
        self.stages = stages

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the head, and the backbone's parameters from the stage on.

        Raises:
            UserError: the backbone has fewer stages.
        """
        begins = next(_stages(network.backbone, self.stages)[-self.stages].parameters())
        parameters = list(network.backbone.parameters())
        return [network.head, *parameters[_position(parameters, begins) :]]


class FirstFrozen:
    """Freeze the first stages of the backbone, and what precedes them; train the rest (Yosinski et al., NeurIPS 2014).

    Args:
        stages: how many of the first stages, see :func:`stages_of`.
    """

    def __init__(self, stages: int = 1) -> None:
        at_least(1, **{"part.stages": stages})
        self.stages = stages

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the head, and the backbone's parameters after the stage.

        Raises:
            UserError: the backbone has fewer stages.
        """
        *_, ends = _stages(network.backbone, self.stages)[self.stages - 1].parameters()
        parameters = list(network.backbone.parameters())
        return [network.head, *parameters[_position(parameters, ends) + 1 :]]


class NormOnly:
    """Train scales and shifts of the normalisation layers, and the head (Frankle et al., ICLR 2021: these alone).

    Inputs' gradients still flow to the first normalisation layer; the gradients of convolutions' and linear layers'
    weights fall away.
    """

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the head and the normalisation layers.

        Raises:
            UserError: the backbone has none with parameters.
        """
        return [network.head, *_normalisation(network.backbone)]


class HFT:
    """Train a random half of the backbone, another one in each step, and the head (Hui et al., arXiv 2404.18466).

    What is drawn are the modules that hold parameters of their own, half of each type, as the paper draws half of each
    category of a transformer's matrices. A frozen BatchNorm keeps its statistics for the step. The weights that stay
    are meant to hold what was learned before; that a step costs less comes with it.
    """

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the head and the parameters of the half; of an odd number, one more or one less."""
        holders = [module for module in network.backbone.modules() if _size(module, recurse=False)]
        shuffled = [holders[i] for i in random.permutation(len(holders))]
        by_type = sorted(shuffled, key=lambda module: type(module).__name__)  # a stable sort: random within a type
        half = by_type[int(random.integers(2)) :: 2]
        return [network.head, *(p for module in half for p in module.parameters(recurse=False))]


class FPF:
    """Train everything now and then, and in the other steps only what forgets most, with the head.

    After "Does Continual Learning Equally Forget All Parameters?" (Zhao et al., ICML 2023): a few modules change much
    from task to task, the others can be shared; tuning the few restores what was forgotten, at little cost. There,
    k-FPF trains everything on new data and now and then the few on a buffer; here the sampler says what is learned
    from, and whole time steps take turns.

    Args:
        every: everything is trained in each so-many-th step, beginning with the first one.
        modules: shell patterns of names of the backbone's parameters ("blocks.2.*"), trained in all steps; None for the
            normalisation layers.
    """

    def __init__(self, every: int = 2, modules: Sequence[str] | None = None) -> None:
        at_least(2, **{"part.every": every})
        self.every, self.modules = every, modules

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the network, or the head and the chosen modules.

        Raises:
            UserError: a pattern that fits no name, or no normalisation layer where there should be one.
        """
        chosen = _normalisation(network.backbone) if self.modules is None else self._named(network.backbone)
        return [network] if step % self.every == 0 else [network.head, *chosen]

    def _named(self, backbone: nn.Module) -> list[nn.Parameter]:
        names = [name for name, _ in backbone.named_parameters()]
        for pattern in self.modules or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(
                    f"part.modules: {pattern!r} fits no parameter of the backbone; they are named like "
                    f"{names[0]!r} and {names[-1]!r}"
                )
        return [p for name, p in backbone.named_parameters() if any(fnmatchcase(name, m) for m in self.modules or ())]


# --- what a backbone is made of ---------------------------------------------------------------------------------------


def stages_of(backbone: nn.Module) -> Sequence[nn.Module]:
    """Return the stages of a backbone in the order of its forward; none where it is not built of blocks.

    A block is a module of several layers, a chain a Sequential or ModuleList of blocks. Of the outermost chains, a
    single one's blocks are the stages (the blocks of :class:`SmallResNet`, a transformer's layers, a MobileNet's
    features); several chains are themselves the stages (layer1 to layer4 of a ResNet). Modules are taken to be
    registered in the order in which they run, as torchvision's are.
    """
    level = [backbone]
    while level:
        chains = [module for module in level if isinstance(module, (nn.Sequential, nn.ModuleList)) and _blocks(module)]
        stages = _blocks(chains[0]) if len(chains) == 1 else chains
        if len(stages) > 1:
            return stages
        level = [child for module in level for child in module.children()]
    return []


def _blocks(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if any(True for _ in child.children()) and _size(child)]


def _size(module: nn.Module, recurse: bool = True) -> int:
    return sum(p.numel() for p in module.parameters(recurse))


def _stages(backbone: nn.Module, wanted: int) -> Sequence[nn.Module]:
    stages = stages_of(backbone)
    if len(stages) < wanted:
        raise UserError(
            f"part.stages={wanted} given; {type(backbone).__name__} has {len(stages) or 'no'} stages: set part.stages, "
            "or choose another part (head_only, norm_only)"
        )
    return stages


def _normalisation(backbone: nn.Module) -> Sequence[nn.Module]:
    """Return the normalisation layers that have parameters.

    Raises:
        UserError: there are none.
    """
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    found = [module for module in backbone.modules() if isinstance(module, kinds) and _size(module)]
    if not found:
        raise UserError(
            f"{type(backbone).__name__} has no normalisation layer with parameters: choose another part, such as "
            "head_only"
        )
    return found


def _position(parameters: Sequence[nn.Parameter], wanted: nn.Parameter) -> int:
    return next(i for i, parameter in enumerate(parameters) if parameter is wanted)
