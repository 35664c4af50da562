"""Which views of an image set a feature cache holds."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxvlm.data.features.cache import feature_name
from jaxvlm.data.views import keep_views


def cached_subsets(
    data, images: Sequence[str], keep_first: bool, digests: Mapping[str, str]
) -> list[tuple[int, ...]]:
    """The subsets of an image set's views that training chooses among, a function of the images.

    Without view dropout that is one, all views that are shown. With it, `data.features.variants`
    are drawn as training would draw them; some may be the same.

    Args:
      data: `data` of the configuration.
      images: of the set.
      keep_first: view 0 is never left out.
      digests: SHA-256 of each image.
    """
    shown = images[: data.num_views]
    if not data.view_dropout:
        return [tuple(range(len(shown)))]
    seed = int(feature_name([digests[image] for image in shown]), 16)
    return [
        tuple(keep_views(len(shown), len(shown), data.view_dropout, keep_first, rng))
        for rng in (np.random.default_rng([seed, k]) for k in range(data.features.variants))
    ]
