"""The registry scope ``mirrorla_mm``.

A config finds every class of this package as ``mirrorla_mm.NAME``, from any default scope: mmengine
imports ``mirrorla_mm.registry`` when it meets the prefix. Nothing is registered elsewhere, so that
names that users register themselves stay theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from .stack import InstallationError, trouble

if sentence := trouble():
    raise InstallationError(sentence)

from mmengine.registry import DATA_SAMPLERS as ROOT_DATA_SAMPLERS
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import LOOPS as ROOT_LOOPS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODEL_WRAPPERS as ROOT_MODEL_WRAPPERS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import STRATEGIES as ROOT_STRATEGIES
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry
from torch import nn

SCOPE = 'mirrorla_mm'


def _scoped(root: Registry) -> Registry:
    # A parent refuses a second child of one scope, so a reload of this module takes the first.
    if SCOPE in root.children:
        return root.children[SCOPE]
    return Registry(root.name, parent=root, scope=SCOPE, locations=[SCOPE])


DATA_SAMPLERS = _scoped(ROOT_DATA_SAMPLERS)
DATASETS = _scoped(ROOT_DATASETS)
METRICS = _scoped(ROOT_METRICS)
MODELS = _scoped(ROOT_MODELS)
FUNCTIONS = _scoped(ROOT_FUNCTIONS)
HOOKS = _scoped(ROOT_HOOKS)
LOOPS = _scoped(ROOT_LOOPS)
MODEL_WRAPPERS = _scoped(ROOT_MODEL_WRAPPERS)
OPTIM_WRAPPERS = _scoped(ROOT_OPTIM_WRAPPERS)
STRATEGIES = _scoped(ROOT_STRATEGIES)
TRANSFORMS = _scoped(ROOT_TRANSFORMS)
ATTENTIONS: dict[str, type[nn.Module]] = {}


def register_model(cls: type[nn.Module]) -> type[nn.Module]:
    """Class decorator: register a host, head or attention in this scope.

    A second registration (module reload) replaces the first instead of raising.
    """
    MODELS.register_module(force=True, module=cls)
    return cls


def register_attention(cls: type[nn.Module]) -> type[nn.Module]:
    """Class decorator: register an attention, one of those that an ``attn_cfg`` may name."""
    ATTENTIONS[cls.__name__] = cls
    return register_model(cls)


def register_lazily(package: str, **modules: str) -> Callable[[str], type[nn.Module]]:
    """Register hosts or heads that build on mmdet or mmseg, importing these when one is used.

    The two take seconds and more memory than a small model, and a user of one need not load both.

    Args:
        package (str): Name of the package that the classes belong to.
        **modules (str): Module of each class, relative to the package.

    Returns:
        Callable: The package's ``__getattr__``, with which it offers the classes.
    """

    def load(name: str) -> type[nn.Module]:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(modules[name], package), name)

    def builder(name: str) -> Callable[..., nn.Module]:
        def build(*args, **kwargs) -> nn.Module:
            return load(name)(*args, **kwargs)

        build.__name__ = name
        return build

    for name in modules:
        # Once imported, the class itself is there.
        if name not in MODELS.module_dict:
            MODELS.register_module(name=name, module=builder(name))
    return load


def build_attention(cfg: dict, **defaults) -> nn.Module:
    """Build an attention module from ``attn_cfg``, whatever the default scope of the run.

    Args:
        cfg (dict): ``type`` and options; options win over ``defaults``.
        **defaults: What the host knows: ``embed_dims``, ``num_heads`` and the like.

    Raises:
        TypeError: If ``cfg`` is not a dict with a ``type``.
        ValueError: If there is no attention of that type.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError(
            "attn_cfg needs to be a dict with a 'type', such as dict(type='MirrorAttention'), "
            f'got {cfg!r}'
        )
    method = MODELS.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
    if method is None:
        raise ValueError(
            f"There is no attention '{cfg['type']}'; choose from {', '.join(sorted(ATTENTIONS))}."
        )
    # A method that brings something of its own is not offered the host's.
    own = getattr(method, 'brings', ())
    offers = {key: value for key, value in defaults.items() if key not in own}
    return MODELS.build({**offers, **cfg, '_scope_': SCOPE})


__all__ = [
    'ATTENTIONS',
    'DATASETS',
    'METRICS',
    'DATA_SAMPLERS',
    'FUNCTIONS',
    'HOOKS',
    'LOOPS',
    'MODELS',
    'MODEL_WRAPPERS',
    'OPTIM_WRAPPERS',
    'SCOPE',
    'STRATEGIES',
    'TRANSFORMS',
    'build_attention',
    'register_attention',
    'register_lazily',
    'register_model',
]
