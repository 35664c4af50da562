"""Feature caches of the toy experiment."""

import json

import tiny

from jaxvlm.data.features import cache, shards
from jaxvlm.training import features

DROPOUT = {"data__view_dropout": 0.5}


def configured(data, folder, **changes):
    return tiny.config_for(data, data__features__folder=str(folder), **changes)


def fill(data, folder, **changes):
    config = configured(data, folder, **changes)
    features.cache_features(config, batch_sets=2)
    return config


def held(folder):
    """The features of a folder by name."""
    made = json.loads((folder / "cache.json").read_text())["made_from"]
    return shards.Shards(folder, cache.label_of(made))


def names(folder):
    return set(held(folder))
