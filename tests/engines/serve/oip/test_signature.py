"""The names of a bundle's inputs, and signatures that are made once for each bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.serve.errors import UnknownModel
from engines.serve.oip.signature import Signature, Signatures
from graphs.base.errors import UgsepError
from tests.engines.serve.oip.local_server import load


def test_signatures_are_made_once_for_the_bundles_that_serve(built_bundle: Path) -> None:
    one, two, three = (load(built_bundle, version=str(number) * 12) for number in range(3))
    signatures = Signatures()
    first = signatures.of(one)
    assert signatures.of(two) is signatures.of(two)
    assert signatures.of(one) is first  # a request that began before the switch
    signatures.of(three)
    assert signatures.of(one).served is one
    for served in (one, two, three):
        served.ranker.close()


def test_a_name_on_both_sides_is_refused(built_bundle: Path) -> None:
    served = load(built_bundle)
    served.ranker.item_inputs = (*served.ranker.item_inputs, served.ranker.user_inputs[0])
    with pytest.raises(UgsepError, match="input 'user_id' is on both sides"):
        Signature(served)
    served.ranker.close()


def test_models_and_versions(built_bundle: Path) -> None:
    served = load(built_bundle)
    signature = Signature(served)
    assert not signature.is_user_model("tiny", "")
    assert signature.is_user_model("tiny.user", served.version)
    for model, version in (("tinny", ""), ("", ""), ("tiny", "1"), ("x" * 10_000, "")):
        with pytest.raises(UnknownModel) as caught:
            signature.is_user_model(model, version)
        assert len(str(caught.value)) < 400
    served.ranker.close()
