"""Backbones by name: any architecture of torchvision or timm without its classifier, with published weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from budgetcl.errors import UserError, at_least, nearest
from budgetcl.models.backbones import initialise, per_channel
from budgetcl.models.weights import SUFFIXES, load_exactly, names_file, read_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000
PUBLISHED = "published"
_SHOWN = 5  # names that are like one that is none
_CHANCE = {"StochasticDepth": "p", "DropPath": "drop_prob"}  # torchvision's and timm's modules, and their rates


class Pretrained(nn.Module):
    """A published network without its classifier: pictures -> features.

    What is random in training (dropout, stochastic depth) is switched off: it would draw from torch's global generator,
    which neither a resumed run nor several processes could repeat.

    Args:
        body: the network; its output are the features.
        feature_dim: their dimension.
        mean: per channel, of pixels on the scale 0..1, as the weights were trained.
        std: per channel, like ``mean``.
        rows: (classes, feature_dim) and (classes,), a classifier for a head to start from; None for none.
        embed: widths of the two layers (linear, BatchNorm, ReLU, linear) that embed the features, with fresh weights;
            None for none. A classifier does not fit behind them.
        seed: of fresh weights.
        name: the architecture's, for what is said of it.
        side: the option that sets which pictures it is made for; None where it has none.

    Attributes:
        feature_dim: the features' dimension.
        mean: per channel.
        std: per channel.
        head_weight: (classes, feature_dim) rows of the classifier, or None.
        head_bias: (classes,), or None.

    Raises:
        UserError: ``embed`` is not two widths, or stands before a classifier.
    """

    def __init__(
        self,
        body: nn.Module,
        feature_dim: int,
        mean: Sequence[float],
        std: Sequence[float],
        rows: tuple[Tensor, Tensor] | None = None,
        embed: Sequence[int] | None = None,
        seed: int = 0,
        name: str = "the backbone",
        side: str | None = None,
    ) -> None:
        super().__init__()
        self._name, self._side = name, side
        self._shown: set[tuple[int, ...]] = set()
        self.body, self.feature_dim = body, feature_dim
        self.mean, self.std = tuple(mean), tuple(std)
        self.head_weight: Tensor | None = rows[0] if rows is not None else None
        self.head_bias: Tensor | None = rows[1] if rows is not None else None
        self.embed: nn.Module = nn.Identity()
        if embed is not None:
            if len(embed) != 2 or rows is not None:
                raise UserError(f"backbone.embed={list(embed)} given; two widths are expected, and classifier=false")
            hidden, self.feature_dim = embed
            at_least(1, **{"backbone.embed[0]": hidden, "backbone.embed[1]": self.feature_dim})
            self.embed = nn.Sequential(
                nn.Linear(feature_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, self.feature_dim)
            )
            initialise(self.embed, seed)
        for module in self.modules():
            rate = "p" if isinstance(module, nn.modules.dropout._DropoutNd) else _CHANCE.get(type(module).__name__)
            if rate is not None:
                setattr(module, rate, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) float -> (n, feature_dim)."""
        return self.embed(self.body(x))

    def takes(self, image_shape: tuple[int, int, int], key: str) -> None:
        """Refuse pictures that the architecture cannot show: some want one size, others more than a few pixels.

        Args:
            image_shape: (channels, height, width).
            key: the backbone's, in the configuration.

        Raises:
            UserError: a forward of one picture fails.
        """
        if image_shape in self._shown:
            return
        try:
            self._try(image_shape, "meta")  # shapes only: milliseconds
        except Exception:
            try:
                self._try(image_shape)  # which it may do all the same: what has no shape function, say
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                _, height, width = image_shape
                option = f"its option {self._side} by {key}.options" if self._side else f"another {key}"
                raise UserError(
                    f"{key}.name={self._name} given; it cannot show {height} x {width} pictures ({_line(error)}): set "
                    f"stream.size, or {option}"
                ) from error
        self._shown.add(image_shape)

    def _try(self, image_shape: tuple[int, int, int], device: str | None = None) -> None:
        """Forward one blank picture; weights, statistics, modes and random numbers stay as they are."""
        tensors: dict[str, Tensor] = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        if device is not None:
            tensors = {name: tensor.detach().to(device) for name, tensor in tensors.items()}
        modes = [(module, module.training) for module in self.modules()]
        first = next(iter(tensors.values()), torch.empty(0))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                functional_call(self.eval(), tensors, (torch.zeros(1, *image_shape, device=first.device),))
        finally:
            for module, training in modes:
                module.training = training


def torchvision(
    name: str = "resnet50",
    weights: str | None = None,
    classifier: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    embed: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Pretrained:
    """Return an architecture of torchvision.

    Published weights lie in torch's cache (``$TORCH_HOME/hub/checkpoints``); those that were asked for by name and are
    not there are fetched. Nothing else ever is.

    Args:
        name: resnet50, vit_b_16, mobilenet_v3_large, ...
        weights: None for fresh ones; the name of published ones (IMAGENET1K_V2, DEFAULT); or a file.
        classifier: whether the head starts from the classifier that comes with the weights. Only where its classes are
            the stream's pretraining classes, in this order.
        mean: per channel, of pixels on the scale 0..1; None for that of the published weights, else ImageNet's.
        std: per channel, like ``mean``.
        embed: see :class:`Pretrained`.
        options: further arguments of the architecture, such as the image_size of a vision transformer.
        seed: of fresh weights.

    Raises:
        UserError: no such architecture or weights; the weights are not to be had, or do not fit.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"backbone.name={name!r} given; {_like(str(name), known)}")
    usual, tensors = (IMAGENET_MEAN, IMAGENET_STD), None
    if weights is not None and names_file(weights):
        tensors = read_weights(weights)
    elif weights is not None:
        published = models.get_model_weights(name).__members__
        if weights not in published:
            raise UserError(
                f"backbone.weights={weights!r} given; null, one of {', '.join(published)}, or a file "
                f"({', '.join(SUFFIXES)}) is expected"
            )
        preset = published[weights].transforms()
        usual, tensors = (preset.mean, preset.std), read_weights(_cached(published[weights].url))
    if tensors is not None and name.startswith("densenet"):  # published with the names of an older version
        tensors = {re.sub(r"(layer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): value for key, value in tensors.items()}
    body = _built(name, lambda: models.get_model(name, weights=None, **(options or {})))
    layers = [path for path, layer in body.named_modules() if getattr(layer, "out_features", 0) == IMAGENET_CLASSES]
    if len(layers) != 1:  # convolutions as a classifier (SqueezeNet), or further ones for training (Inception)
        raise UserError(f"backbone.name={name} given; a network that ends in one linear classifier is expected")
    normal = per_channel("backbone.mean", mean or usual[0], 3), per_channel("backbone.std", std or usual[1], 3)
    side = "image_size" if name.startswith("vit_") else None
    return _cut(body, layers[0], tensors, str(weights), classifier, normal, embed, seed, name, side)


def timm(
    name: str,
    weights: str | None = None,
    classifier: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    embed: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Pretrained:
    """Return an architecture of timm (``pip install 'budgetcl[models]'``).

    Args:
        name: resnet50.a1_in1k, vit_small_patch16_224.augreg_in21k, ...; what follows the dot are the weights.
        weights: None for fresh ones; "published" for those of the name, from the Hugging Face cache, into which timm
            fetches what is not there; or a file.
        classifier: see :func:`torchvision`.
        mean: per channel, of pixels on the scale 0..1; None for that of the name's published weights.
        std: per channel, like ``mean``.
        embed: see :class:`Pretrained`.
        options: further arguments of the architecture, such as img_size or in_chans.
        seed: of fresh weights.

    Raises:
        UserError: timm is not installed; no such architecture or weights; they are not to be had, or do not fit.
    """
    try:
        import timm as library
    except ImportError as error:
        raise UserError("backbone=timm given, but timm is not installed: pip install 'budgetcl[models]'") from error

    if not library.is_model(name):
        raise UserError(f"backbone.name={name!r} given; {_like(str(name).split('.')[0], library.list_models())}")
    if weights is not None and weights != PUBLISHED and not names_file(weights):
        raise UserError(
            f"backbone.weights={weights!r} given; null, '{PUBLISHED}', or a file ({', '.join(SUFFIXES)}) is expected"
        )
    tensors = read_weights(weights) if weights not in (None, PUBLISHED) else None
    body = _built(name, lambda: library.create_model(name, **(options or {})))
    about = body.pretrained_cfg
    if weights == PUBLISHED:
        if not about.get("hf_hub_id") and not about.get("url"):
            raise UserError(f"backbone.weights={PUBLISHED} given, but timm has none of {name}: append the weights' tag")
        tensors = _built(name, lambda: _published(library, name, options or {}))
    layer = body.get_classifier()
    layers = [path for path, module in body.named_modules() if module is layer]
    if not isinstance(layer, nn.Linear):
        raise UserError(f"backbone.name={name} given; a network that ends in one linear classifier is expected")
    channels = (options or {}).get("in_chans", 3)
    normal = (
        per_channel("backbone.mean", mean or about["mean"], channels),
        per_channel("backbone.std", std or about["std"], channels),
    )
    side = "img_size" if hasattr(body, "patch_embed") else None
    return _cut(body, layers[0], tensors, str(weights), classifier, normal, embed, seed, name, side)


def _like(name: str, known: Sequence[str]) -> str:
    """Return what a name may have meant: of a thousand names, a few."""
    if get_close_matches(name, known, n=1, cutoff=0.5):
        return nearest(name, known)
    return f"the nearest of {len(known):,} names: {', '.join(get_close_matches(name, known, n=_SHOWN, cutoff=0))}"


def _published(library: Any, name: str, options: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        return dict(library.create_model(name, pretrained=True, **options).state_dict())
    except Exception as error:  # whatever the transport raises that is installed
        about = library.create_model(name, **options).pretrained_cfg
        place = f"https://huggingface.co/{about['hf_hub_id']}" if about.get("hf_hub_id") else about["url"]
        raise UserError(
            f"the weights of {name} are not in the cache ($HF_HOME) and cannot be fetched ({_line(error)}): fetch "
            f"model.safetensors from {place} and give it as backbone.weights, or null for fresh weights"
        ) from error


def _built(name: str, build: Callable[[], Any]) -> Any:
    """Build what draws fresh weights from torch's global generator, and leave that generator as it was."""
    with torch.random.fork_rng(devices=[]):
        try:
            return build()
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{name} refuses its settings ({_line(error)}): see backbone.options") from error


def _cached(url: str) -> Path:
    """Return where published weights lie, fetched first where they are missing.

    Raises:
        UserError: they cannot be fetched.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        stamp = re.search(r"-([0-9a-f]{8,})\.", path.name)  # the begin of the file's hash
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), stamp and stamp.group(1))
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(
                f"the weights {path.name} are not in {path.parent} and cannot be fetched ({_line(error)}): put {url} "
                "there, or give a file as backbone.weights, or null for fresh weights"
            ) from error
    return path


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _cut(
    body: nn.Module,
    path: str,
    tensors: Mapping[str, Tensor] | None,
    source: str,
    classifier: bool,
    normal: tuple[Sequence[float], Sequence[float]],
    embed: Sequence[int] | None,
    seed: int,
    name: str,
    side: str | None,
) -> Pretrained:
    """Cut the classifier off a network and load the weights of the rest, or draw fresh ones."""
    layer = body.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    body.set_submodule(path, nn.Identity())
    rows = None
    if tensors is None:
        initialise(body, seed)
    else:
        tensors = dict(tensors)
        weight, bias = tensors.pop(f"{path}.weight", None), tensors.pop(f"{path}.bias", None)
        load_exactly(body, tensors, source)
        if classifier and weight is not None and weight.ndim == 2:
            rows = (weight, bias if bias is not None else torch.zeros(len(weight)))
    if classifier and rows is None:
        raise UserError(f"backbone.classifier=true given, but weights={source} hold none ({path}.weight): set it false")
    return Pretrained(body, layer.in_features, *normal, rows, embed, seed, name, side)
