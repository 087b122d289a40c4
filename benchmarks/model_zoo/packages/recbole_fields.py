"""What RecBole's models ask a dataset and a configuration for, without a dataset on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.model_zoo.packages.inputs import HISTORY, ITEM_FIELDS, USER_FIELDS, VOCABULARY, WIDTH

USER, ITEM, SEEN, LENGTH = "user_id", "item_id", "item_id_list", "item_length"


@dataclass(frozen=True)
class Fields:
    """The fields of a dataset: ids of VOCABULARY values, sizes and sources as RecBole's ``Dataset`` gives them."""

    field2type: Mapping[str, Any]
    field2source: Mapping[str, Any]
    field2seqlen: Mapping[str, int]

    def fields(self, source: Sequence[Any]) -> list[str]:
        """Return the names of the fields of some sources."""
        return [name for name, of in self.field2source.items() if of in source]

    def num(self, field: str) -> int:
        """Return the number of values of a field."""
        return VOCABULARY

    @property
    def user_num(self) -> int:
        """The number of users."""
        return VOCABULARY

    @property
    def item_num(self) -> int:
        """The number of items."""
        return VOCABULARY


def fields() -> Fields:
    """Return the fields of the user and of the item, beside their ids."""
    from recbole.utils import FeatureSource, FeatureType

    sources = {USER: FeatureSource.USER_ID, ITEM: FeatureSource.ITEM_ID}
    sources |= dict.fromkeys(USER_FIELDS[1:], FeatureSource.USER) | dict.fromkeys(ITEM_FIELDS[1:], FeatureSource.ITEM)
    return Fields(dict.fromkeys(sources, FeatureType.TOKEN), sources, {**dict.fromkeys(sources, 1), SEEN: HISTORY})


def settings(model: str, changes: Mapping[str, Any]) -> Any:
    """Return RecBole's configuration of a model: its own defaults, and changes."""
    from recbole.config import Config

    given = {"embedding_size": WIDTH, "MAX_ITEM_LIST_LENGTH": HISTORY, "numerical_features": [], "use_gpu": False}
    given |= {"data_path": tempfile.gettempdir(), "train_neg_sample_args": None, "loss_type": "CE", **changes}
    # It gives NumPy names that NumPy 2 has taken away; the models read np.long, which is there again.
    quiet = type("Settings", (Config,), {"compatibility_settings": lambda self: None})
    return quiet(model=model, dataset="zoo", config_dict=given)
