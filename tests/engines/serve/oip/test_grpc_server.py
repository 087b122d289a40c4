"""Health, metadata and inference over gRPC, against the ranker itself, and its refusals."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engines.serve.oip import open_inference_pb2 as pb
from engines.serve.oip.grpc_server import start_grpc
from engines.serve.oip.signature import Signatures
from graphs.base.errors import UgsepError
from tests import tiny
from tests.engines.serve.oip.local_server import PATIENCE, VERSION, LocalServer, load, message, serving


def scores(answer: bytes) -> np.ndarray:
    parsed = pb.ModelInferResponse.FromString(answer)
    return np.frombuffer(parsed.raw_output_contents[0], np.float32)


def refusal(server: LocalServer, sent: bytes, **more: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        server.call("ModelInfer", sent, **more)
    return caught.value.code(), caught.value.details()


def test_health_and_metadata(server: LocalServer) -> None:
    assert pb.ServerLiveResponse.FromString(server.call("ServerLive", b"")).live
    assert pb.ServerReadyResponse.FromString(server.call("ServerReady", b"")).ready
    named = pb.ModelReadyRequest(name="tiny", version=VERSION).SerializeToString()
    assert pb.ModelReadyResponse.FromString(server.call("ModelReady", named)).ready
    about = pb.ServerMetadataResponse.FromString(server.call("ServerMetadata", b""))
    assert (about.name, list(about.extensions)) == ("ugsep", ["binary_tensor_data", "model_configuration"])
    model = pb.ModelMetadataResponse.FromString(server.call("ModelMetadata", named))
    assert [(t.name, t.datatype, list(t.shape)) for t in model.outputs] == [("like", "FP32", [-1])]
    _, over_http = server.get("/v2/models/tiny")
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
        (t["name"], t["datatype"], t["shape"]) for t in over_http["inputs"]
    ]
    config = pb.ModelConfigResponse.FromString(server.call("ModelConfig", named)).config
    dims = {t.name: (t.data_type, list(t.dims), t.optional) for t in config.input}
    assert dims["genres"] == (pb.TYPE_FP32, [-1, 7], False)
    assert dims["user_index"] == (pb.TYPE_INT64, [-1], True)


def test_scores_with_raw_and_typed_contents(server: LocalServer) -> None:
    user, items = tiny.user_and_items(9, seed=4)
    expected = server.ranker.score(user, items)["like"]
    both = {**user, **items}
    raw = message(both, id="42")
    raw.parameters["triton_enable_empty_final_response"].bool_param = False  # as perf_analyzer sends it
    typed = pb.ModelInferRequest(model_name="tiny", model_version=VERSION, outputs=[{"name": "like"}])
    for name, value in both.items():
        tensor = typed.inputs.add(name=name, datatype="FP32", shape=value.shape)
        if value.dtype == np.int64:
            tensor.datatype = "INT64"
            tensor.contents.int64_contents.extend(value.ravel().tolist())
        else:
            tensor.contents.fp32_contents.extend(value.ravel().tolist())
    for sent in (raw, typed):
        answer = server.call("ModelInfer", sent.SerializeToString(), metadata=[("x-user-key", "u1")])
        np.testing.assert_array_equal(scores(answer), expected)
        parsed = pb.ModelInferResponse.FromString(answer)
        assert (parsed.model_name, parsed.model_version, parsed.id) == ("tiny", VERSION, sent.id)
        assert set(parsed.parameters) == {"user_cached", "batch_users", "queue_us", "user_us", "item_us"}
    assert parsed.parameters["user_cached"].bool_param  # the second request of this user


def test_the_user_graph_is_a_model_of_its_own(server: LocalServer) -> None:
    user, _ = tiny.user_and_items(1, seed=11)
    answer = pb.ModelInferResponse.FromString(
        server.call("ModelInfer", message(user, "tiny.user").SerializeToString())
    )
    states = server.ranker.user_state(user)
    assert {o.name for o in answer.outputs} == set(states)
    for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True):
        np.testing.assert_array_equal(np.frombuffer(content, np.float32).reshape(output.shape), states[output.name])
    warm = message(user, "tiny.user")
    warm.parameters["warm_only"].bool_param = True
    answer = pb.ModelInferResponse.FromString(server.call("ModelInfer", warm.SerializeToString()))
    assert not answer.outputs
    assert answer.parameters["user_cached"].bool_param


def test_what_a_caller_sends_wrong_is_invalid_argument(server: LocalServer) -> None:
    user, items = tiny.user_and_items(3, seed=5)
    both = {**user, **items}

    def changed(change) -> bytes:
        made = message(both)
        change(made)
        return made.SerializeToString()

    def contents_too(made: pb.ModelInferRequest) -> None:
        made.inputs[0].contents.int64_contents.append(1)

    def wrong_contents(made: pb.ModelInferRequest) -> None:
        del made.raw_input_contents[:]
        made.inputs[0].contents.fp32_contents.append(1)

    cases = {
        b"\xff\xff\xff": "no ModelInferRequest",
        changed(lambda m: m.inputs.pop()): "raw_input_contents has 6 tensors, inputs has 5",
        changed(lambda m: (m.inputs.pop(), m.raw_input_contents.pop())): "input 'affinity' is missing",
        changed(lambda m: m.inputs[0].shape.append(9)): "has shape [1, 9]; send [rows]",
        changed(lambda m: m.inputs[3].shape.__setitem__(0, -(1 << 63))): "so no rows",
        changed(lambda m: m.inputs[3].shape.__setitem__(0, (1 << 63) - 1)): "at most 64",
        changed(lambda m: setattr(m.inputs[3], "datatype", "BYTES")): "strings are not features",
        changed(lambda m: setattr(m.inputs[3], "name", "item_ids")): "did you mean 'item_id'?",
        changed(lambda m: setattr(m.inputs[4], "name", "item_id")): "",
        changed(
            lambda m: m.raw_input_contents.__setitem__(3, b"123")
        ): "takes 24 bytes, but its raw_input_contents has 3",
        changed(lambda m: m.outputs.add(name="love")): "unknown output 'love'",
        changed(lambda m: m.parameters["timeut"].__setattr__("int64_param", 1)): "did you mean 'timeout'?",
        changed(lambda m: m.parameters["timeout"].__setattr__("int64_param", -1)): "timeout must be",
        changed(lambda m: m.parameters["timeout"].__setattr__("string_param", "1")): "wrong type",
        changed(lambda m: m.inputs[0].parameters["shared_memory_region"].__setattr__("string_param", "x")): "unknown",
        changed(contents_too): "contents beside raw_input_contents",
        changed(wrong_contents): "belongs in int64_contents",
        changed(lambda m: setattr(m, "id", "a\nb")): "control characters",
    }
    for sent, line in cases.items():
        code, details = refusal(server, sent)
        assert (code, line in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details
        assert details.isprintable()
    code, details = refusal(server, message(both, "tini").SerializeToString())
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, "unknown model 'tini', did you mean 'tiny'?")
    code, _ = refusal(server, message(both, model_version="1").SerializeToString())
    assert code is grpc.StatusCode.NOT_FOUND


def test_a_message_over_the_limit_is_refused(server: LocalServer) -> None:
    code, _ = refusal(server, b"\0" * (3 << 20))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_deadline_frees_the_call_and_the_worker(built_bundle: Path) -> None:
    user, items = tiny.user_and_items(3, seed=6)
    sent = message({**user, **items}).SerializeToString()
    with serving(built_bundle, queue=4) as server:
        decode, entered, released = server.ranker.score_requests, threading.Event(), threading.Event()

        def slow(requests):
            entered.set()
            assert released.wait(PATIENCE)
            return decode(requests)

        server.ranker.score_requests = slow  # type: ignore[method-assign]
        first = threading.Thread(target=server.call, args=("ModelInfer", sent))
        first.start()
        assert entered.wait(PATIENCE)
        started = time.monotonic()
        code, _ = refusal(server, sent, timeout=0.2)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - started < PATIENCE / 2
        waiting = [threading.Thread(target=server.call, args=("ModelInfer", sent)) for _ in range(3)]
        for thread in waiting:
            thread.start()
        until = time.monotonic() + PATIENCE
        while server.context.scheduler.waiting < 4:
            assert time.monotonic() < until
            time.sleep(0.01)
        code, details = refusal(server, sent)
        assert (code, "retry in" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        released.set()
        for thread in (first, *waiting):
            thread.join(PATIENCE)
            assert not thread.is_alive()
        until = time.monotonic() + PATIENCE
        while server.answered(504) < 1 or server.answered(200) < 4:  # one dropped, not scored
            assert time.monotonic() < until
            time.sleep(0.01)
    assert server.bugs == []


def test_calls_without_a_message_are_cut(server: LocalServer) -> None:
    sent = message({n: v for part in tiny.user_and_items(3, seed=9) for n, v in part.items()}).SerializeToString()
    silent = threading.Event()

    def nothing():
        silent.wait(PATIENCE)
        yield b""

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        calls = [stub.future(nothing(), timeout=PATIENCE) for _ in range(20)]
        assert len(scores(server.call("ModelInfer", sent))) == 3
        for call in calls:
            assert call.code() is grpc.StatusCode.CANCELLED  # after body_timeout, long before the caller's deadline
        silent.set()
        with pytest.raises(grpc.RpcError) as caught:
            stub(iter(()), timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_calls_beyond_the_threads_are_told_when_to_retry(built_bundle: Path) -> None:
    sent = message({n: v for part in tiny.user_and_items(3, seed=9) for n, v in part.items()}).SerializeToString()
    silent = threading.Event()

    def nothing():
        silent.wait(PATIENCE)
        yield sent

    with (
        serving(built_bundle, queue=2) as server,  # three calls may wait, each with a thread
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        calls = [stub.future(nothing(), timeout=PATIENCE) for _ in range(100)]
        refused: list[grpc.Future] = []
        until = time.monotonic() + PATIENCE
        while len(refused) < 97:
            assert time.monotonic() < until
            time.sleep(0.01)
            refused = [call for call in calls if call.done()]
        assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert {call.details() for call in refused} == {"3 calls are open, as many as have a thread; retry in 1 s"}
        assert {dict(call.trailing_metadata()).get("retry-after") for call in refused} == {"1"}
        assert pb.ServerLiveResponse.FromString(server.call("ServerLive", b"")).live
        silent.set()
        assert [len(scores(call.result())) for call in calls if call not in refused] == [3] * 3
        assert len(scores(server.call("ModelInfer", sent))) == 3
        assert server.answered(429) == 97


def test_health_follows_the_state_of_the_server(built_bundle: Path) -> None:
    with (
        serving(built_bundle, ready=False) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)

        def health() -> int:
            return stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=PATIENCE).status

        assert health() == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not pb.ServerReadyResponse.FromString(server.call("ServerReady", b"")).ready
        code, _ = refusal(server, b"")
        assert code is grpc.StatusCode.UNAVAILABLE
        server.context.slot.switch(load(built_bundle))
        server.context.lifecycle.change("ready")
        assert health() == health_pb2.HealthCheckResponse.SERVING
        server.context.lifecycle.change("draining")
        assert health() == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_port_in_use_is_one_line(server: LocalServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UgsepError, match=f"127.0.0.1:{port}.*--grpc-port"):
            start_grpc(server.context, Signatures(), "127.0.0.1", port)
    with pytest.raises(UgsepError, match="--grpc-port"):
        start_grpc(server.context, Signatures(), "127.0.0.1", server.grpc_port)
