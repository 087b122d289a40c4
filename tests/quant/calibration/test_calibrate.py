import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphs.base.errors import UgsepError
from quant.calibration.calibrate import calibrate
from quant.calibration.files import load_calibration, save_calibration
from quant.calibration.statistics import merge
from quant.requests.hash import samples_sha256
from quant.requests.readers import read_requests
from quant.requests.spec import Request, request_spec


@pytest.fixture
def requests(graphs, make_columns, make_shards, tmp_path):
    make_shards(tmp_path / "data", make_columns(25), [30])
    return list(read_requests([tmp_path / "data"], request_spec(*graphs)))


def reference_inputs(graphs, requests) -> dict[str, np.ndarray]:
    """The inputs of each MatMul in FP64, in plain NumPy: rows second last, feature tokens first if any."""
    user, item = ({t.name: numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in graphs)
    found: dict[str, list[np.ndarray]] = {"user_x": [], "item_x": [], "per_token@3": [], "hidden@3": [], "pooled": []}
    for r in requests:
        x = np.concatenate([user["user.table"][r.user["user_id"]], r.user["user_dense"]], 1).astype(np.float64)
        found["user_x"].append(x)
        state = np.maximum(x @ user["user.in.weight"] + user["user.in.bias"], 0)
        rows = [item["item.table"][r.items["item_id"]], r.items["item_dense"], np.repeat(state, r.candidates, 0)]
        y = np.concatenate(rows, 1)
        found["item_x"].append(y)
        tokens = (y @ item["item.in.weight"]).reshape(-1, 3, 10)
        tokens = tokens / np.sqrt((tokens**2).mean(-1, keepdims=True) + 1e-6) * item["norm.gain"]
        t = tokens.transpose(1, 0, 2)
        found["per_token@3"].append(t)
        h = np.maximum(t @ item["ffn.up.weight"] + item["ffn.up.bias"], 0)
        found["hidden@3"].append(h)
        found["pooled"].append((h @ item["ffn.down.weight"]).mean(0))
    return {name: np.concatenate(parts, axis=-2) for name, parts in found.items()}


@pytest.mark.parametrize("chunk", [3, 256])
def test_statistics_match_plain_numpy(graphs, requests, monkeypatch, chunk) -> None:
    monkeypatch.setattr("quant.calibration.calibrate.CHUNK_ROWS", chunk)
    found = calibrate(*graphs, requests, threads=1, gram=True)
    tensors = {**found.user.tensors, **found.item.tensors}
    expected = reference_inputs(graphs, requests)
    assert set(tensors) == set(expected)
    for name, x in expected.items():
        seen = tensors[name]
        assert seen.count == x.shape[-2]
        # float32 graphs: activations agree to about 1e-5 relative to their size
        np.testing.assert_allclose(seen.squares, (x**2).sum(-2), rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(seen.low, x.min(-2), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(seen.high, x.max(-2), rtol=1e-3, atol=1e-4)
        gram = x.swapaxes(-1, -2) @ x
        np.testing.assert_allclose(seen.gram, gram, rtol=1e-4, atol=1e-5 * np.abs(gram).max())
    assert found.item.feeds["ffn.up.weight"] == ("per_token@3",)
    assert found.samples_sha256 == samples_sha256(requests)
    assert found.rows == sum(r.candidates for r in requests)


def same(one, two) -> None:
    for side in ("user", "item"):
        first, second = getattr(one, side), getattr(two, side)
        assert first.graph_sha256 == second.graph_sha256
        assert first.feeds == second.feeds
        for name, seen in first.tensors.items():
            other = second.tensors[name]
            assert seen.count == other.count
            # FP64 sums in another order: 100 additions of 2^-53 each
            np.testing.assert_allclose(seen.squares, other.squares, rtol=1e-13)
            np.testing.assert_array_equal(seen.low, other.low)
            np.testing.assert_array_equal(seen.high, other.high)
            if seen.gram is not None:
                np.testing.assert_allclose(seen.gram, other.gram, rtol=1e-12, atol=1e-12 * np.abs(other.gram).max())


def test_parts_merge_to_the_whole_and_survive_the_disk(graphs, requests, tmp_path) -> None:
    whole = calibrate(*graphs, requests, gram=True)
    parts = [calibrate(*graphs, part, gram=True) for part in (requests[:7], requests[7:9], requests[9:])]
    for number, part in enumerate(parts):
        save_calibration(part, tmp_path / str(number))
    joined = merge(load_calibration(tmp_path / str(n)) for n in range(3))
    same(joined, whole)
    assert joined.rows == whole.rows
    assert len(joined.samples) == 3
    with pytest.raises(UgsepError, match="the same requests are in two"):
        merge([parts[0], parts[0]])
    with pytest.raises(UgsepError, match="nothing to merge"):
        merge([])


def test_an_interrupted_run_ends_as_if_it_had_not_stopped(graphs, requests, tmp_path) -> None:
    whole = calibrate(*graphs, requests)

    def stop_after_ten():
        yield from requests[:13]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(*graphs, stop_after_ten(), every=5, checkpoint=lambda c: save_calibration(c, tmp_path / "part"))
    part = load_calibration(tmp_path / "part")
    assert part.samples[0].requests == 10
    resumed = calibrate(*graphs, requests, resume=part)
    same(resumed, whole)
    assert resumed.samples == whole.samples
    with pytest.raises(UgsepError, match="requests changed"):
        calibrate(*graphs, requests[::-1], resume=part)
    with pytest.raises(UgsepError, match="fewer requests"):
        calibrate(*graphs, requests[:4], resume=part)
    with pytest.raises(UgsepError, match="no Gram"):
        calibrate(*graphs, requests, resume=part, gram=True)


def test_statistics_of_another_graph_are_refused(graphs, requests, make_graphs, tmp_path) -> None:
    found = calibrate(*graphs, requests)
    other = make_graphs(tmp_path / "other", seed=5)
    assert found.side(graphs[1]) is found.item
    with pytest.raises(UgsepError, match="calibration is of another graph"):
        found.side(other[1])
    with pytest.raises(UgsepError, match="different graphs"):
        merge([found, calibrate(*other, requests)])
    with pytest.raises(UgsepError, match="of another graph"):
        calibrate(*other, requests, resume=found)
    with pytest.raises(UgsepError, match="'nothing' was not calibrated"):
        found.item.of("nothing")


def test_no_requests_and_nan_on_the_way_are_refused(graphs, requests, capfd) -> None:
    with pytest.raises(UgsepError, match="no requests to calibrate on"):
        calibrate(*graphs, [])
    huge = requests[0]
    items = {**huge.items, "item_dense": np.full_like(huge.items["item_dense"], 3e38)}
    with pytest.raises(UgsepError, match=r"item.onnx', tensor '.*': the FP32 graph computes NaN or Inf"):
        calibrate(*graphs, [Request(0, huge.user, items)])
    with pytest.raises(UgsepError, match="does not run on these requests"):
        calibrate(*graphs, [Request(0, huge.user, {**huge.items, "item_id": huge.items["item_id"] + 1000})])
    assert capfd.readouterr().err == ""  # the runtime does not say it a second time


def test_damaged_calibration_files_are_refused(graphs, requests, tmp_path) -> None:
    with pytest.raises(UgsepError, match="does not exist; run quant calibrate"):
        load_calibration(tmp_path)
    text, data = save_calibration(calibrate(*graphs, requests[:3]), tmp_path / "a")
    save_calibration(calibrate(*graphs, requests[3:]), tmp_path / "b")
    whole = data.read_bytes()
    data.write_bytes(whole[:-8])
    with pytest.raises(UgsepError, match="is truncated or not safetensors"):
        load_calibration(tmp_path / "a")
    data.write_bytes((tmp_path / "b" / data.name).read_bytes())
    with pytest.raises(UgsepError, match="are of different runs"):
        load_calibration(tmp_path / "a")
    data.write_bytes(whole)
    document = json.loads(text.read_text())
    text.write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(UgsepError, match="has format 99"):
        load_calibration(text)
    text.write_text("{")
    with pytest.raises(UgsepError, match="is damaged"):
        load_calibration(text)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("samples", 0, "requests"), "3", r"calibration.json': samples\[0\].requests is \"3\", not an integer"),
        (("samples", 0, "extra"), 1, r"calibration.json': samples\[0\]: unknown setting 'extra'"),
        (("sides", "user", "counts", "user_x"), "9", r"sides.user.counts.user_x is \"9\", not an integer"),
        (("sides", "item", "feeds"), [], r"calibration.json': sides.item.feeds is \[\], not an object"),
        (("sides", "item"), None, r"calibration.json': sides.item is null, not an object"),
        (("token",), 3, "calibration.json': token is 3, not a string"),
        (("format",), "2", 'calibration.json\' has format "2", not 2'),
        (("sides", "user", "counts", "other"), 1, "is damaged .*user/other/squares"),
    ],
)
def test_a_malformed_field_is_named(graphs, requests, tmp_path, path, value, message) -> None:
    text, _ = save_calibration(calibrate(*graphs, requests[:2]), tmp_path)
    document = json.loads(text.read_text())
    *parents, last = path
    target = document
    for step in parents:
        target = target[step]
    target[last] = value
    text.write_text(json.dumps(document))
    with pytest.raises(UgsepError, match=message):
        load_calibration(tmp_path)


def test_both_files_have_the_mode_of_a_new_file(graphs, requests, tmp_path) -> None:
    (tmp_path / "new").touch()
    files = save_calibration(calibrate(*graphs, requests[:2]), tmp_path)
    assert {p.stat().st_mode for p in files} == {(tmp_path / "new").stat().st_mode}


def test_a_failed_save_leaves_the_old_files(graphs, requests, tmp_path, monkeypatch) -> None:
    save_calibration(calibrate(*graphs, requests[:3]), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("calibration.*")}

    def full(arrays, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("quant.calibration.files.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_calibration(calibrate(*graphs, requests[3:]), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("calibration.*")} == before
