"""`serving.save`, and its SavedModel driven through a STAND-IN server that knows nothing of this package.

No TensorFlow Serving can be installed where the tests run. The stand-in (stand_in/server.py) is a process of
its own with the official servicer stubs and the documented REST JSON; `saved_model_cli` runs the model in a session
of its own.
"""

import base64
import concurrent.futures
import gzip
import json
import re
import runpy
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import SimpleITK as sitk
import tensorflow as tf
import yaml
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import kernels
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from semisam_tf.data.volumes import CaseFiles, load_volume
from semisam_tf.inference.predictor import load_predictor, network_of
from semisam_tf.inference.run_folder import read_run
from semisam_tf.serving import save as save_module
from semisam_tf.serving.onnx_network import TOLERANCE
from semisam_tf.serving.transport import Endpoint, ServerError, ask_grpc, ask_rest

RUNS = runpy.run_path(str(Path(__file__).parents[1] / "serving_run.py"))
scan, nifti = RUNS["scan"], RUNS["nifti"]
STAND_IN = runpy.run_path(str(Path(__file__).parents[2] / "stand_in" / "process.py"))
SFORM = [0, -1.2, 0, 4, 1, 0, 0, 5, 0, 0, 2.25, 6]
NAME = "left_atrium"

# Keras reads its variables with NumPy's older protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run trained on LAS, saved by the command; the workdir and the model's folder."""
    root = tmp_path_factory.mktemp("serving")
    workdir = RUNS["write_run"](root / "run", orientation="LAS")
    report = {"cases": [{}], "mean": {"dice": 0.5}, "std": {"dice": 0.0}, "n_empty": 0, "model": "teacher"}
    (workdir / "metrics.json").write_text(json.dumps(report), encoding="utf-8")
    words = [f"--workdir={workdir}", f"--output={root}/models/{NAME}", "--onnx", "--max_axis_vox=200"]
    done = subprocess.run(
        [sys.executable, "-m", "semisam_tf.serving.save", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "unsupported characters" not in done.stderr
    return workdir, root / "models" / NAME


@pytest.fixture(scope="module")
def stand_in(saved, tmp_path_factory):
    """Ports of a stand-in server, and its process."""
    with STAND_IN["running"]({NAME: saved[1]}, tmp_path_factory.mktemp("stand_in") / "log.txt") as server:
        yield server


def endpoint(stand_in, scheme, model=NAME):
    return Endpoint(scheme, "127.0.0.1", stand_in.grpc if scheme == "grpc" else stand_in.rest, model)


def post(stand_in, body, path=f"/v1/models/{NAME}:predict"):
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{stand_in.rest}{path}", data, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def python_mask(predictor, tmp_path, data):
    path = tmp_path / f"{len(data)}.nii"
    path.write_bytes(data)
    return predictor.mask(load_volume(CaseFiles("case", path, None, "flat"), with_label=False))


def voxels(mask, size):
    return np.frombuffer(mask[352:], np.uint8).reshape(size[::-1]).transpose(2, 1, 0)


def test_a_version_holds_what_the_server_reads(saved):
    folder = saved[1]
    assert {path.name for path in folder.iterdir()} == {"1", "models.config", "compose.yaml"}
    names = {path.name for path in (folder / "1" / "assets.extra").iterdir()}
    assert names == {"tf_serving_warmup_requests", "model.json", "network.onnx"}
    config = text_format.Parse(
        (folder / "models.config").read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == (NAME, f"/models/{NAME}", "tensorflow")
    service = yaml.safe_load((folder / "compose.yaml").read_text(encoding="utf-8"))["services"][NAME]
    assert service["environment"] == {"TF_ENABLE_ONEDNN_OPTS": "1"}
    assert f"--model_config_file=/models/{NAME}/models.config" in service["command"]
    assert not [word for word in service["command"] if "batching" in word]
    assert service["read_only"] is True
    assert service["volumes"] == [{"type": "bind", "source": ".", "target": f"/models/{NAME}", "read_only": True}]
    assert [port.split(":")[-1] for port in service["ports"]] == ["8500", "8501"]


def test_the_health_check_tells_a_model_that_is_there(saved, stand_in):
    service = yaml.safe_load((saved[1] / "compose.yaml").read_text(encoding="utf-8"))["services"][NAME]
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    for name, expected in ((NAME, 0), ("other", 1)):
        words = [word.replace("8501", str(stand_in.rest)).replace(NAME, name) for word in command]
        assert subprocess.run(words, check=False, timeout=30).returncode == expected


def test_metadata_tells_the_model_and_no_scan(saved, stand_in):
    facts = json.loads((saved[1] / "1" / "assets.extra" / "model.json").read_text(encoding="utf-8"))
    assert (facts["classes"], facts["channels"], facts["training_spacing_mm"]) == (2, 1, [1.5, 1.5, 2.0])
    assert (facts["training_commit"], facts["orientation"], facts["weights"]) == ("0123abc", "LAS", "teacher")
    assert facts["label_budget"] == {"labelled": 1, "unlabelled": 2}
    assert facts["metrics"]["mean"] == {"dice": 0.5}
    status, answer = post(stand_in, {"signature_name": "metadata", "inputs": {"field": ""}})
    assert status == 200
    served = json.loads(answer["outputs"])
    assert served == {key: value for key, value in facts.items() if key != "onnx_difference"}


def test_the_next_version_is_numbered_and_a_failed_one_leaves_nothing(saved, tmp_path, monkeypatch):
    workdir, _ = saved
    output = tmp_path / "organ"
    (output / "7").mkdir(parents=True)
    config = save_module.SaveConfig(workdir=str(workdir), output=str(output), model="student")
    monkeypatch.setattr(save_module, "_TOLERANCE", -1)
    with pytest.raises(RuntimeError, match="Expected the saved graph to agree"):
        save_module.save(config)
    assert {path.name for path in output.iterdir()} == {"7"}
    monkeypatch.undo()
    assert save_module.save(config) == output / "8"
    facts = json.loads((output / "8" / "assets.extra" / "model.json").read_text(encoding="utf-8"))
    assert (facts["version"], facts["weights"], facts["metrics"]) == (8, "student", None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--workdir is needed"),
        (["--workdir=w"], "--output is needed"),
        (["--workdir=w", "--output=models/8"], "name the model"),
        (["--workdir=w", "--output=m", "--overlap=1"], "--overlap"),
        (["--workdir=w", "--output=m", "--max_compressed_mib=4096"], "1 to 2047"),
    ],
)
def test_wrong_flags(words, message, capsys):
    assert save_module.main(words) == 2
    assert message in capsys.readouterr().err


def foreign_ops(saved_model):
    """Ops of a SavedModel that a stock server does not contain, or that call Python."""
    graph = saved_model.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    functions = {function.signature.name for function in graph.library.function}
    found = set()
    for op in {node.op for node in nodes} - functions:
        devices = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(op).kernel}
        # What a library of one's own registers is no member of tf.raw_ops.
        if not hasattr(tf.raw_ops, op) or not devices & {"CPU", "DEFAULT"} or "PyFunc" in op:
            found.add(op)
    return found


def test_every_op_is_core_tensorflow(saved, tmp_path):
    proto = saved_model_pb2.SavedModel.FromString((saved[1] / "1" / "saved_model.pb").read_bytes())
    assert foreign_ops(proto) == set()
    assert len(proto.meta_graphs[0].graph_def.library.function) > 10
    module = tf.Module()
    module.f = tf.function(lambda x: tf.numpy_function(np.sin, [x], tf.float32), [tf.TensorSpec([])], autograph=False)
    tf.saved_model.save(module, str(tmp_path), signatures=module.f)
    proto = saved_model_pb2.SavedModel.FromString((tmp_path / "saved_model.pb").read_bytes())
    assert foreign_ops(proto) == {"PyFunc"}


def test_saved_model_cli_shows_and_runs_it(saved, tmp_path):
    cli, folder = shutil.which("saved_model_cli", path=str(Path(sys.executable).parent)), saved[1] / "1"
    shown = subprocess.run([cli, "show", "--dir", folder, "--all"], capture_output=True, text=True, check=True).stdout
    for name in ("serving_default", "nifti", "metadata", "nifti_bytes", "spacing_mm", "foreground_probability"):
        assert name in shown
    image = scan((20, 15, 12))
    np.save(tmp_path / "volume.npy", image)
    np.save(tmp_path / "spacing.npy", np.array([1.0, 1.2, 1.7]))
    command = [cli, "run", "--dir", folder, "--tag_set", "serve", "--signature_def", "serving_default", "--outdir",
               tmp_path, "--inputs", f"volume={tmp_path}/volume.npy;spacing_mm={tmp_path}/spacing.npy"]  # fmt: skip
    subprocess.run(command, capture_output=True, check=True)
    found = tf.saved_model.load(str(folder)).signatures["serving_default"](
        volume=tf.constant(image), spacing_mm=tf.constant([1.0, 1.2, 1.7])
    )
    assert 0.02 < found["mask"].numpy().mean() < 0.98
    np.testing.assert_array_equal(np.load(tmp_path / "mask.npy"), found["mask"])
    np.testing.assert_allclose(
        np.load(tmp_path / "foreground_probability.npy"), found["foreground_probability"], atol=1e-5
    )


def test_warm_up_requests_are_answered(saved):
    """The stand-in sends them, too, before it says that it is ready."""
    records = tf.data.TFRecordDataset(str(saved[1] / "1" / "assets.extra" / "tf_serving_warmup_requests"))
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]
    assert [log.predict_log.request.model_spec.signature_name for log in logs] == ["serving_default", "nifti"]
    (sent,) = logs[1].predict_log.request.inputs["nifti_bytes"].string_val
    assert len(gzip.decompress(sent)) == 352 + 4 * 8**3
    assert {log.predict_log.request.model_spec.name for log in logs} == {NAME}


def test_onnx_is_the_network(saved):
    record = read_run(saved[0])
    model = network_of(record["config"], 1, "teacher")
    model.load_weights(saved[0] / "teacher.weights.h5")
    session = onnxruntime.InferenceSession(saved[1] / "1" / "assets.extra" / "network.onnx")
    image = np.random.default_rng(5).normal(size=(2, 64, 48, 32, 1)).astype(np.float32)
    logits = session.run(["logits"], {"image": image})[0]
    np.testing.assert_allclose(logits, model(image), rtol=0, atol=TOLERANCE * np.abs(logits).max())
    assert json.loads(session.get_modelmeta().custom_metadata_map["training_spacing_mm"]) == [1.5, 1.5, 2.0]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_client_command_writes_a_mask_on_the_scan(saved, stand_in, tmp_path, scheme):
    size = (22, 19, 14)
    data = gzip.compress(nifti(scan(size)[..., 0], 4, ">", 0.5, 3, (1, 1.2, 2.25), None, SFORM))
    (tmp_path / "scan.nii.gz").write_bytes(data)
    url = f"{scheme}://127.0.0.1:{endpoint(stand_in, scheme).port}/v1/models/{NAME}"
    done = subprocess.run(
        [sys.executable, "-m", "semisam_tf.serving.client", f"--url={url}", tmp_path / "scan.nii.gz",
         tmp_path / "mask.nii.gz"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "confidence 0." in done.stdout
    image, mask = (sitk.ReadImage(str(tmp_path / name)) for name in ("scan.nii.gz", "mask.nii.gz"))
    expected = python_mask(load_predictor(saved[0])[0], tmp_path, gzip.decompress(data))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).transpose(2, 1, 0), expected)
    assert 0.02 < expected.mean() < 0.98
    assert (mask.GetSpacing(), mask.GetOrigin(), mask.GetDirection()) == (
        image.GetSpacing(), image.GetOrigin(), image.GetDirection(),
    )  # fmt: skip


@pytest.mark.parametrize("once", [ask_grpc, ask_rest])
@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (nifti(np.zeros((5, 4, 3, 2))), NAME, r"Expected 1 image channels, as in training\. Received: .* 2"),
        (nifti(np.full((5, 4, 3), np.nan)), NAME, "Expected finite values"),
        (nifti(np.zeros((201, 2, 2))), NAME, r"Expected a scan of 1 to 200 voxels .* Received: 201 2 2"),
        (nifti(np.zeros((5, 4, 3)))[:-7], NAME, "truncated: 585 bytes"),
        (b"no scan", NAME, "a header of 348 bytes"),
        (gzip.compress(nifti(np.zeros((5, 4, 3))), mtime=0)[:-8] + bytes(8), NAME, "a gzip file that is not damaged"),
        (nifti(np.zeros((5, 4, 3))), "right_atrium", "Expected the name of a model .* Received: 'right_atrium'"),
    ],
)
def test_refusals_come_through_in_words(stand_in, once, data, model, message):
    with pytest.raises(ServerError, match=message):
        once(endpoint(stand_in, "grpc" if once is ask_grpc else "http", model), data, 60)


@pytest.mark.parametrize("once", [ask_grpc, ask_rest])
def test_messages_may_be_larger_than_4_mib(stand_in, once):
    """gRPC's own limit, on the way there and back."""
    size = (180, 160, 150)
    data = nifti(np.indices(size).sum(0) % 200, 2, spacing=(0.2, 0.2, 0.2))
    answer = once(endpoint(stand_in, "grpc" if once is ask_grpc else "http"), data, 120)
    assert len(answer.mask) == 352 + 180 * 160 * 150


def test_a_slow_answer_is_a_clear_error(stand_in):
    for once, scheme in ((ask_grpc, "grpc"), (ask_rest, "http")):
        with pytest.raises(ServerError, match="raise --timeout_s"):
            once(endpoint(stand_in, scheme), nifti(scan((90, 80, 70))[..., 0]), 0.2)


def test_rest_as_documented(stand_in):
    """Columnar inputs, base64, the `_bytes` suffix, status, metadata, errors; a volume as nested lists."""
    image = scan((9, 8, 7))
    status, answer = post(stand_in, {"inputs": {"volume": image[..., 0].tolist(), "spacing_mm": [1.0, 1.2, 1.7]}})
    assert status == 200, answer
    outputs = answer["outputs"]
    assert np.shape(outputs["mask"]) == np.shape(outputs["foreground_probability"]) == (9, 8, 7)
    assert 0 <= outputs["confidence"] <= 1
    body = {"signature_name": "nifti", "inputs": {"nifti_bytes": {"b64": base64.b64encode(nifti(image)).decode()}}}
    status, answer = post(stand_in, body, f"/v1/models/{NAME}/versions/1:predict")
    assert status == 200, answer
    assert base64.b64decode(answer["outputs"]["mask_bytes"]["b64"])[344:348] == b"n+1\0"
    assert post(stand_in, None, f"/v1/models/{NAME}")[1]["model_version_status"][0]["state"] == "AVAILABLE"
    assert "signature_def" in post(stand_in, None, f"/v1/models/{NAME}/metadata")[1]["metadata"]
    assert post(stand_in, body, "/v1/models/other:predict")[0] == 404
    for bad in (b"{", {"inputs": {}}, {"signature_name": "x", "inputs": {}}, body | {"inputs": {"nifti_bytes": 3}}):
        status, answer = post(stand_in, bad)
        assert status == 400
        assert answer["error"]


@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl", "jq", "base64"))), reason="curl or jq is not installed")
def test_curl_is_a_whole_client(repo_root, stand_in, tmp_path):
    """The lines of docs/serving.md, as they stand there."""
    text = (repo_root / "docs" / "serving.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^    \{ printf .*?> mask\.nii$", text, re.MULTILINE | re.DOTALL)
    data = nifti(scan((12, 11, 10)))
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(data, mtime=0))
    subprocess.run(["bash", "-ec", lines.replace("8501", str(stand_in.rest))], check=True, cwd=tmp_path, timeout=120)
    assert (tmp_path / "mask.nii").read_bytes() == ask_grpc(endpoint(stand_in, "grpc"), data, 60).mask


def test_status_and_metadata_over_grpc(stand_in):
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{stand_in.grpc}") as channel:
        status_request = get_model_status_pb2.GetModelStatusRequest()
        status_request.model_spec.name = NAME
        status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status_request, 30)
        assert [item.version for item in status.model_version_status] == [1]
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = NAME
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(request, 30)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert answer.metadata["signature_def"].Unpack(signatures)
        assert {"serving_default", "nifti", "metadata"} <= set(signatures.signature_def)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_200_requests_of_8_clients_and_malformed_ones_between(saved, stand_in, tmp_path):
    predictor, _ = load_predictor(saved[0])
    sizes = [(12, 9, 7), (30, 20, 16), (24, 33, 10), (16, 16, 40), (45, 40, 20)]
    files = [
        nifti(scan(size, seed=i)[..., 0], order="<>"[i % 2], spacing=(1, 1.2, 2.25), sform=SFORM)
        for i, size in enumerate(sizes)
    ]
    masks = [python_mask(predictor, tmp_path, data) for data in files]
    bad = [b"", files[0][:400], gzip.compress(files[1], mtime=0)[:-2000], nifti(np.full((9, 9, 9), np.inf))]

    def one(number):
        once, scheme = ((ask_grpc, "grpc"), (ask_rest, "http"))[number % 3 == 0]
        if number % 10 == 5:
            with pytest.raises(ServerError):
                once(endpoint(stand_in, scheme), bad[number // 10 % len(bad)], 120)
            return True
        which = number % len(files)
        answer = once(endpoint(stand_in, scheme), files[which], 120)
        return np.array_equal(voxels(answer.mask, sizes[which]), masks[which])

    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        assert all(clients.map(one, range(40)))
        before = stand_in.resident_bytes()
        assert all(clients.map(one, range(40, 200)))
    # Four times as many requests again add nothing that stays, beyond what allocators keep.
    assert stand_in.resident_bytes() < before + 200 * 2**20
