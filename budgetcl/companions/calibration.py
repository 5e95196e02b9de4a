"""Calibration: what corrects a network's outputs after a step's training, out of a part of its allowance."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from budgetcl.budget.compute import Compute
from budgetcl.budget.formulas import cholesky, nearest_mean, sgd
from budgetcl.companions.companion import Companion
from budgetcl.errors import UserError, at_least, between
from budgetcl.memory.memory import Memory
from budgetcl.memory.sampler import Place
from budgetcl.memory.uniform import fill_evenly
from budgetcl.models.network import Network, Outputs
from budgetcl.streams.stream import IntArray


class Calibration(Companion):
    """No correction."""

    def hold_out(self, index: IntArray, label: IntArray, random: np.random.Generator) -> NDArray[np.bool_]:
        """Choose, among samples just revealed, those to calibrate on: they are never trained on.

        Args:
            index: (n,) the samples' indices.
            label: (n,) their classes.
            random: decides.

        Returns:
            (n,) whether each is held out.
        """
        return np.zeros(len(index), bool)

    def logits(self, outputs: Outputs, compute: Compute) -> Tensor:
        """Return the corrected logits (n, classes) of a prediction."""
        return outputs.logits


class WeightAligning(Calibration):
    """Weight aligning (WA: Zhao et al., CVPR 2020, eqs. 6-9): new classes' rows are scaled to the old ones' mean norm.

    After a step that reveals classes, their rows are multiplied by mean norm of the old rows / mean norm of the new
    ones. In training, all of the head's weights are clamped to zero and above after each update (section 3.3): a row's
    norm then says how large its logits can become. It costs 2 FLOPs a weight of the head, as "calibrate".

    The paper trains its head under the clamp from the first step on. A head that came trained without it loses all its
    negative weights to the first update: with the embedded backbone those are 60 % of them, and accuracy collapses
    (docs/claims.md); with ``clamp=false`` the aligning alone is left.

    Args:
        clamp: whether weights are clamped in training.
    """

    def __init__(self, clamp: bool = True) -> None:
        if not isinstance(clamp, bool):
            raise UserError(f"calibration.clamp={clamp!r} given; true or false is expected")
        self.clamp = clamp
        self._old = self._known = 0

    def begin(self, place: Place) -> None:
        """Note which classes are new, and reserve what aligning costs."""
        self._old, self._known = self._known or _classes_before(place), place.network.head.classes
        if 0 < self._old < self._known:
            place.compute.reserve("calibrate", self._cost(place.network))

    @staticmethod
    def _cost(network: Network) -> int:
        return 2 * network.head.weight.numel()

    @torch.no_grad()
    def follow(self, network: Network) -> None:
        """Clamp the head's weights."""
        if self.clamp:
            network.head.weight.clamp_(min=0)

    @torch.no_grad()
    def end(self, place: Place) -> None:
        """Scale the new classes' rows."""
        if not 0 < self._old < self._known:
            return
        place.compute.work("calibrate", self._cost(place.network))
        norms = place.network.head.weight.norm(dim=1)
        old, new = norms[: self._old].mean(), norms[self._old :].mean()
        place.network.head.weight[self._old :] *= torch.where(new > 0, old / new, torch.ones_like(new))

    def state_dict(self) -> Mapping[str, Any]:
        """Return how many classes were known."""
        return {"known": self._known}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Take up how many classes were known."""
        self._known = state["known"]


class HeldOut(Calibration, ABC):
    """Base of what is fitted on held-out samples: a share of every reveal, kept apart from the memory.

    Forward passes over them, and the fit, are reserved when a step opens ("calibrate"). At most ``samples`` of them are
    looked at in a step, each class with an equal share. A class that reveals a single sample in a step holds none out.
    Where nothing is held out yet, or ``spend`` does not pay for one image, what earlier steps fitted stays, at first no
    correction; a run in which that is foreseen for all steps says so before it begins.

    Args:
        share: of what each class reveals in a step, above 0; rounded by lot.
        samples: looked at in a step, at most.
        spend: the share of a step's allowance that this may cost, at most, above 0; it bounds the samples.
    """

    def __init__(self, share: float = 0.1, samples: int = 256, spend: float = 0.1) -> None:
        _a_share(share=share, spend=spend)
        at_least(1, **{"calibration.samples": samples})
        self.share, self.samples, self.spend = share, samples, spend
        self._held = Memory()
        self._chosen: IntArray = np.empty(0, np.int64)

    def hold_out(self, index: IntArray, label: IntArray, random: np.random.Generator) -> NDArray[np.bool_]:
        """Hold out a share of each class, but never all of it."""
        held = np.zeros(len(index), bool)
        order = random.permutation(len(index))
        order = order[np.argsort(label[order], kind="stable")]
        _, starts, counts = np.unique(label[order], return_index=True, return_counts=True)
        wanted = np.minimum(np.floor(self.share * counts + random.random(len(counts))).astype(np.int64), counts - 1)
        place = np.arange(len(order)) - np.repeat(starts, counts)  # within its class
        held[order[place < np.repeat(wanted, counts)]] = True
        self._held.add(index[held], label[held])
        return held

    def held(self) -> int:
        """Return how many samples are held out."""
        return len(self._held)

    def _per_sample(self, place: Place) -> int:
        """Return the FLOPs of looking at one sample and of the fit on it."""
        return place.price() + self._fit_price(place.network)

    @abstractmethod
    def _fit_price(self, network: Network) -> int:
        """Return the FLOPs of the fit, per sample."""

    def begin(self, place: Place) -> None:
        """Choose the samples to look at, and reserve what that will cost."""
        each = self._per_sample(place)
        n = min(self.samples, len(self._held), int(self.spend * place.compute.spare) // each)
        shares = fill_evenly(n, self._held.class_counts, place.random("calibrate"))
        rows = [
            place.random("calibrate", label + 1).choice(self._held.rows_of(label), share, replace=False)
            for label, share in enumerate(shares.tolist())
            if share
        ]
        self._chosen = np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int64)
        place.compute.reserve("calibrate", len(self._chosen) * each)

    def end(self, place: Place) -> None:
        """Look at the samples and fit."""
        if not len(self._chosen):
            return
        found = []
        for start in range(0, len(self._chosen), 256):
            images = place.revealed.images(self._held.index[self._chosen[start : start + 256]])
            found.append(place.compute.forward(place.network, images, "calibrate"))
        y = torch.from_numpy(self._held.label[self._chosen]).to(found[0].logits.device)
        logits = torch.cat([outputs.logits.float() for outputs in found])
        flops = len(self._chosen) * self._fit_price(place.network)
        place.compute.work("calibrate", flops, lambda: self._fit(logits, y))

    @abstractmethod
    def _fit(self, logits: Tensor, y: Tensor) -> None:
        """Fit to logits (n, classes) and classes (n,)."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the held-out samples."""
        return {"held": self._held.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Take up the held-out samples."""
        self._held.load_state_dict(state["held"])

    def nbytes(self) -> int:
        """Return the bytes of what is remembered of the held-out samples."""
        return self._held.nbytes


class Temperature(HeldOut):
    """Temperature scaling (Guo et al., ICML 2017): logits / T, with T fitted to the held-out samples' cross-entropy.

    It changes confidences, not which class is first. Newton's method on ln T: 10 FLOPs a logit and iteration.

    Args:
        share: of what each class reveals in a step, held out.
        samples: looked at in a step, at most.
        spend: the share of a step's allowance that this may cost, at most.
        iterations: of the fit.
    """

    def __init__(self, share: float = 0.1, samples: int = 256, spend: float = 0.1, iterations: int = 20) -> None:
        super().__init__(share, samples, spend)
        at_least(1, **{"calibration.iterations": iterations})
        self.iterations = iterations
        self.temperature = 1.0

    def _fit_price(self, network: Network) -> int:
        return 10 * self.iterations * network.head.classes

    def _fit(self, logits: Tensor, y: Tensor) -> None:
        target = logits.gather(1, y[:, None])[:, 0]
        log_beta = torch.zeros((), dtype=torch.float64, device=logits.device)  # beta = 1 / T
        z, target = logits.double(), target.double()
        for _ in range(self.iterations):
            beta = log_beta.exp()
            p = (beta * z).softmax(1)
            mean = (p * z).sum(1)
            slope = (mean - target).mean()
            curve = ((p * z.square()).sum(1) - mean.square()).mean()
            # d/d ln(beta) = beta slope; its derivative beta slope + beta^2 curve, kept positive
            step = slope / (beta * curve + slope.abs() + 1e-12)
            log_beta = (log_beta - step.clamp(-1, 1)).clamp(-math.log(100), math.log(100))
        self.temperature = float(torch.exp(-log_beta))

    def logits(self, outputs: Outputs, compute: Compute) -> Tensor:
        """Return logits / T."""
        return outputs.logits / self.temperature

    def state_dict(self) -> Mapping[str, Any]:
        """Return T and the held-out samples."""
        return {**super().state_dict(), "temperature": self.temperature}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Take up T and the held-out samples."""
        super().load_state_dict(state, network)
        self.temperature = state["temperature"]


class BiasCorrection(HeldOut):
    """Bias correction (BiC: Wu et al., CVPR 2019, eq. 4): alpha z + beta for the newest classes' logits.

    After a step that reveals classes, the two numbers are fitted to the cross-entropy of held-out samples of all
    classes, by gradient descent; the logits of old classes stay, and so do the numbers that earlier steps found for the
    classes that were new to them. 10 FLOPs a logit and iteration.

    Args:
        share: of what each class reveals in a step, held out.
        samples: looked at in a step, at most.
        spend: the share of a step's allowance that this may cost, at most.
        iterations: of the fit.
        rate: of its gradient descent (Adam).
    """

    def __init__(
        self, share: float = 0.1, samples: int = 256, spend: float = 0.1, iterations: int = 100, rate: float = 0.05
    ) -> None:
        super().__init__(share, samples, spend)
        at_least(1, **{"calibration.iterations": iterations})
        between(0, 10, **{"calibration.rate": rate})
        self.iterations, self.rate = iterations, rate
        self._scale: Tensor = torch.ones(0)
        self._shift: Tensor = torch.zeros(0)
        self._old = 0

    def _fit_price(self, network: Network) -> int:
        return 10 * self.iterations * network.head.classes

    def begin(self, place: Place) -> None:
        """Note which classes are new; correct only where there are some, beside old ones."""
        self._old, classes = len(self._scale) or _classes_before(place), place.network.head.classes
        more, device = classes - len(self._scale), place.compute.device
        self._scale = torch.cat([self._scale.to(device), torch.ones(more, device=device)])
        self._shift = torch.cat([self._shift.to(device), torch.zeros(more, device=device)])
        self._chosen = np.empty(0, np.int64)
        if 0 < self._old < classes:
            super().begin(place)

    def _fit(self, logits: Tensor, y: Tensor) -> None:
        new = torch.arange(logits.shape[1], device=logits.device) >= self._old
        corrected = logits * self._scale + self._shift
        numbers = torch.tensor([1.0, 0.0], device=logits.device, requires_grad=True)
        optimiser = torch.optim.Adam([numbers], self.rate)
        with torch.enable_grad():
            for _ in range(self.iterations):
                loss = cross_entropy(torch.where(new, corrected * numbers[0] + numbers[1], corrected), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        alpha, beta = numbers.detach()
        self._scale = torch.where(new, alpha, self._scale)
        self._shift = torch.where(new, beta, self._shift)

    def logits(self, outputs: Outputs, compute: Compute) -> Tensor:
        """Return alpha z + beta, each class with the numbers of its step."""
        known = len(self._scale)
        head = outputs.logits[:, :known] * self._scale + self._shift
        return torch.cat([head, outputs.logits[:, known:]], 1) if known < outputs.logits.shape[1] else head

    def state_dict(self) -> Mapping[str, Any]:
        """Return the numbers and the held-out samples."""
        return {**super().state_dict(), "scale": self._scale, "shift": self._shift}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Take up the numbers and the held-out samples."""
        super().load_state_dict(state, network)
        self._scale, self._shift = state["scale"].clone(), state["shift"].clone()


class Exemplars(Calibration, ABC):
    """Base of what is fitted on features of the memory: at most ``samples`` of its rows, each class with equal shares.

    Forward passes over them, and the fit, are reserved when a step opens ("calibrate"). Where ``spend`` does not pay
    for one image, what earlier steps fitted stays, at first nothing; a run in which that is foreseen for all steps says
    so before it begins.

    Args:
        samples: of the memory, looked at in a step, at most.
        spend: the share of a step's allowance that this may cost, at most, above 0; it bounds the samples.
    """

    looks_back = True

    def __init__(self, samples: int = 1024, spend: float = 0.2) -> None:
        at_least(1, **{"calibration.samples": samples})
        _a_share(spend=spend)
        self.samples, self.spend = samples, spend
        self._count = 0

    def begin(self, place: Place) -> None:
        """Reserve what looking at the exemplars will cost."""
        each, fixed = place.price() + self._fit_price(place.network), self._fixed_price(place.network)
        affordable = (int(self.spend * place.compute.spare) - fixed) // each
        self._count = max(0, min(self.samples, len(place.memory), affordable))
        place.compute.reserve("calibrate", self._count * each + (fixed if self._count else 0))

    @abstractmethod
    def _fit_price(self, network: Network) -> int:
        """Return the FLOPs of the fit, per sample."""

    def _fixed_price(self, network: Network) -> int:
        """Return the FLOPs of the fit, whatever the number of samples."""
        return 0

    def end(self, place: Place) -> None:
        """Look at the exemplars and fit."""
        if not self._count:
            return
        features, y = self._features(place)
        flops = len(y) * self._fit_price(place.network) + self._fixed_price(place.network)
        place.compute.work("calibrate", flops, lambda: self._fit(place, features, y))

    @abstractmethod
    def _fit(self, place: Place, features: Tensor, y: Tensor) -> None:
        """Fit to features (n, d) and classes (n,)."""

    def _features(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return features (n, d) and classes (n,) of exemplars, drawn evenly from the classes in memory."""
        shares = fill_evenly(self._count, place.memory.class_counts, place.random("exemplars"))
        rows = np.concatenate(
            [np.empty(0, np.int64)]
            + [
                place.random("exemplars", label + 1).choice(place.memory.rows_of(label), share, replace=False)
                for label, share in enumerate(shares.tolist())
                if share
            ]
        ).astype(np.int64)
        found = [outputs.features.float() for _, outputs in place.forward(rows, "calibrate")]
        y = torch.from_numpy(place.memory.label[rows]).to(place.compute.device)
        return torch.cat(found), y


class NearestMean(Exemplars):
    """Classify by the nearest mean of exemplars' features (iCaRL, CVPR 2017, algorithm 1), whatever the head says.

    Features and means are normalised to length 1; the logits are -distance^2 = 2 cos - 2, and classes without an
    exemplar keep the lowest one. What this costs beyond the head, 2ndc, is metered as prediction.

    Args:
        samples: of the memory, looked at in a step, at most.
        spend: the share of a step's allowance that this may cost, at most.
    """

    def __init__(self, samples: int = 1024, spend: float = 0.2) -> None:
        super().__init__(samples, spend)
        self._means: Tensor | None = None
        self._there: Tensor | None = None

    def _fit_price(self, network: Network) -> int:
        return nearest_mean(1, network.feature_dim, 0)

    def _fit(self, place: Place, features: Tensor, y: Tensor) -> None:
        means = torch.zeros(place.network.head.classes, features.shape[1], device=features.device)
        means.index_add_(0, y, normalize(features))
        self._there = torch.bincount(y, minlength=len(means)) > 0
        self._means = normalize(means)

    def logits(self, outputs: Outputs, compute: Compute) -> Tensor:
        """Return minus the squared distances to the means; before there are means, the head's logits."""
        if self._means is None or self._there is None:
            return outputs.logits
        n, classes = outputs.logits.shape
        means, there = self._means, self._there

        def cosines() -> Tensor:
            return (normalize(outputs.features.float()) @ means.T).masked_fill(~there, -1)

        cosine = compute.work("predict", 2 * n * means.numel(), cosines)
        assert cosine is not None
        unknown = cosine.new_full((n, classes - len(means)), -1)
        return 2 * torch.cat([cosine, unknown], 1) - 2

    def state_dict(self) -> Mapping[str, Any]:
        """Return the means."""
        return {"means": self._means, "there": self._there}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Take up the means."""
        self._means, self._there = state["means"], state["there"]

    def nbytes(self) -> int:
        """Return the bytes of the means."""
        return 0 if self._means is None else self._means.nbytes


class GaussianAlignment(Exemplars):
    """Classifier alignment (SLCA: Zhang et al., ICCV 2023, section 3.3): the head is trained on drawn features.

    At a step's end each class's features are summed up by their mean and, with shrinkage, one covariance that all
    classes share; the head is then trained by gradient descent on features drawn from these Gaussians, each class as
    often as any other. Forwards over exemplars, the covariance (2d^2 a sample), its decomposition and the head's
    training are reserved and charged as "calibrate".

    Two departures from the paper. It keeps a covariance a class; with few exemplars of many classes one for all is what
    can be estimated. And it trains the head on normalised logits, divided by their norm (in the authors' code the mean
    of the norms of each task's logits) and by a temperature of 0.1; here the loss is the plain cross-entropy, since a
    stream need not have tasks whose logits could be told apart.

    Args:
        samples: of the memory, looked at in a step, at most.
        spend: the share of a step's allowance that this may cost, at most.
        draws: features drawn, per exemplar.
        rate: of the head's training (SGD, momentum 0.9).
        batch: drawn features per update of the head.
    """

    def __init__(
        self, samples: int = 512, spend: float = 0.2, draws: int = 5, rate: float = 0.05, batch: int = 128
    ) -> None:
        super().__init__(samples, spend)
        at_least(1, **{"calibration.draws": draws, "calibration.batch": batch})
        between(0, 10, **{"calibration.rate": rate})
        self.draws, self.rate, self.batch = draws, rate, batch

    def _fit_price(self, network: Network) -> int:
        dim, row = network.feature_dim, network.head.weight.numel()
        # Per exemplar: its part of the covariance; and of each drawn feature, the draw and the head's update.
        return 2 * dim**2 + self.draws * (2 * dim**2 + 6 * row + -(-sgd(row) // self.batch))

    def _fixed_price(self, network: Network) -> int:
        return cholesky(network.feature_dim)

    def _fit(self, place: Place, features: Tensor, y: Tensor) -> None:
        classes = torch.unique(y)
        sums = torch.zeros(place.network.head.classes, features.shape[1], device=features.device)
        counts = torch.bincount(y, minlength=len(sums)).clamp(min=1)
        means = sums.index_add_(0, y, features) / counts[:, None]
        off = features - means[y]
        covariance = off.T @ off / len(off)
        ridge = 0.1 * covariance.diagonal().mean() + 1e-6
        root = torch.linalg.cholesky(0.9 * covariance + ridge * torch.eye(len(covariance), device=covariance.device))
        self._train(place, classes, means, root)

    def _train(self, place: Place, classes: Tensor, means: Tensor, root: Tensor) -> None:
        head: nn.Module = place.network.head
        trained = [p for p in head.parameters() if p.requires_grad]
        if not trained:
            return
        optimiser = torch.optim.SGD(trained, self.rate, momentum=0.9)
        total = self._count * self.draws
        random = place.random("gaussians")
        for start in range(0, total, self.batch):
            n = min(self.batch, total - start)
            y = classes[torch.from_numpy(random.integers(len(classes), size=n)).to(classes.device)]
            noise = torch.from_numpy(random.standard_normal((n, len(root)), np.float32)).to(root.device)
            with torch.enable_grad():
                loss = cross_entropy(head(means[y] + noise @ root.T).float(), y)
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
        optimiser.zero_grad()


def _a_share(**values: float) -> None:
    """Refuse what is no share, and 0: nothing would ever be calibrated."""
    for name, value in values.items():
        between(0, 1, **{f"calibration.{name}": value})
        if not value:
            raise UserError(
                f"calibration.{name}={value!r} given: nothing would be calibrated; a share above 0 is expected, or "
                "calibration=none"
            )


def _classes_before(place: Place) -> int:
    """Return how many classes were known before the step: in the first one, those of pretraining."""
    past = np.setdiff1d(place.revealed.indices, place.revealed.new)
    return int(place.revealed.labels(past).max()) + 1 if len(past) else 0
