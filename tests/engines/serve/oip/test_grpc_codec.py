"""The generated messages are those of the .proto file, and messages with known heads are decoded as by the parser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from grpc_tools import protoc

from engines.serve.oip import open_inference_pb2 as pb
from engines.serve.oip.grpc_codec import MessageCache
from engines.serve.oip.request import Decoded
from engines.serve.oip.signature import Signature
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve.oip.local_server import load, message

ROOT = Path(__file__).parents[4]
PROTO = "engines/serve/oip/open_inference.proto"


@pytest.fixture(scope="module")
def signature(built_bundle: Path) -> Iterator[Signature]:
    served = load(built_bundle)
    yield Signature(served)
    served.ranker.close()


def test_the_generated_files_are_those_of_the_proto_file(tmp_path: Path) -> None:
    arguments = ["protoc", f"-I{ROOT}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", PROTO]
    assert protoc.main(arguments) == 0
    for suffix in ("_pb2.py", "_pb2.pyi"):
        name = PROTO.replace(".proto", suffix)
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), "run 'make proto'"


def parsed(raw: bytes, signature: Signature) -> object:
    """What the parser makes of a message: a new cache knows no head."""
    return outcome(lambda: MessageCache().decode(raw, signature))


def outcome(decode: Callable[[], Decoded]) -> object:
    """What a request is decoded to, or the line that refuses it; tensors by their bytes, so that NaN equals NaN."""
    try:
        found = decode()
    except UgsepError as error:
        return str(error)
    index = None if found.user_index is None else found.user_index.tolist()
    tensors = [
        (name, value.dtype.str, value.shape, value.tobytes(), value.flags.aligned)
        for part in (found.user, found.items)
        for name, value in part.items()
    ]
    return tensors, index, found.users_only, found.timeout, found.reply


def both_sides(candidates: int, seed: int) -> dict[str, np.ndarray]:
    user, items = tiny.user_and_items(candidates, seed)
    return {**user, **items}


def test_a_known_head_gives_what_the_parser_gives(signature: Signature) -> None:
    cache = MessageCache()
    several = {
        **{name: np.repeat(value, 2, axis=0) for name, value in tiny.user_and_items(5, 3)[0].items()},
        **tiny.user_and_items(5, 3)[1],
        "user_index": np.array([0, 1, 1, 0, 1]),
    }
    user, _ = tiny.user_and_items(1, 8)
    timed = message(both_sides(5, 4))
    timed.parameters["timeout"].int64_param = 5_000_000
    shuffled = message(dict(reversed(both_sides(5, 5).items())))
    sent = [message(both_sides(n, seed)) for seed in range(3) for n in (1, 5, 64)]
    sent += [message(several), message(user, "tiny.user"), timed, shuffled, message(both_sides(5, 6), id="7")]
    for turn in range(2):
        for request in sent:
            raw = request.SerializeToString()
            found = outcome(lambda raw=raw: cache.decode(raw, signature))
            assert found == parsed(raw, signature), turn
            assert not isinstance(found, str)


def test_messages_of_one_length_are_not_mixed_up(signature: Signature) -> None:
    """A head is used for exactly the messages that the parser would give it: mutations of all kinds at each byte."""
    cache, rng = MessageCache(), np.random.default_rng(7)
    known = message(both_sides(3, 1)).SerializeToString()
    used = 0
    for turn in range(1500):
        cache.decode(known, signature)
        changed = bytearray(known)
        for at in rng.integers(0, len(known) if turn % 2 else 200, int(rng.integers(1, 4))):
            changed[at] = rng.choice([rng.integers(256), changed[at] ^ 1, 0x3A, 0x80])
        if turn % 5 == 0:  # a part of the message again at another place: tags and lengths where contents were
            size, source, target = rng.integers(1, 40), *rng.integers(0, len(known) - 40, 2)
            changed[target : target + size] = known[source : source + size]
        raw = bytes(changed)
        assert outcome(lambda raw=raw: cache.decode(raw, signature)) == parsed(raw, signature)
        used += raw[: len(known) - 200] == known[: len(known) - 200]
    assert used > 100  # else only refusals were compared


def test_contents_elsewhere_than_at_the_end_are_parsed(signature: Signature) -> None:
    request = message(both_sides(3, 1))
    contents = pb.ModelInferRequest(raw_input_contents=request.raw_input_contents).SerializeToString()
    del request.raw_input_contents[:]
    head = request.SerializeToString()
    cache = MessageCache()
    model = pb.ModelInferRequest(model_name=request.model_name).SerializeToString()
    for raw in (contents + head, model + contents + head):
        for _ in range(2):
            assert outcome(lambda raw=raw: cache.decode(raw, signature)) == parsed(head + contents, signature)


def test_a_known_head_needs_no_parser(signature: Signature, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = MessageCache()
    cache.decode(message(both_sides(5, 1)).SerializeToString(), signature)
    fresh = message(both_sides(5, 2)).SerializeToString()
    expected = parsed(fresh, signature)

    def parse(raw: bytes) -> pb.ModelInferRequest:
        raise AssertionError("parsed again")

    monkeypatch.setattr("engines.serve.oip.grpc_codec._parse", parse)
    assert outcome(lambda: cache.decode(fresh, signature)) == expected
    with pytest.raises(AssertionError, match="parsed again"):  # another bundle serves
        cache.decode(fresh, Signature(signature.served))


def test_the_number_of_known_heads_is_bounded(signature: Signature, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.serve.oip.grpc_codec._MOST_HEADS", 4)
    cache = MessageCache()
    for candidates in range(1, 20):
        cache.decode(message(both_sides(candidates, 1)).SerializeToString(), signature)
        assert len(cache._kept[1]) <= 4
