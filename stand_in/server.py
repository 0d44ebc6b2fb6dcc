"""A STAND-IN for TensorFlow Serving on the loopback: the official servicer stubs and the documented REST JSON.

It is not TensorFlow Serving, of which no binary can be installed where tests and benchmarks run. It loads the
SavedModel with `tf.saved_model.load`, runs as a program of its own, and refuses to start where semisam_tf can be
imported: what it serves is in the SavedModel. Reference: tensorflow.org/tfx/serving/api_rest; names, codes and the
shape of errors.

    python stand_in/server.py NAME=FOLDER_OF_VERSIONS    prints {"grpc": port, "rest": port} when it is ready
"""

# What is imported after the finder is in place is imported as the server would.
# ruff: noqa: E402

import base64
import http.server
import json
import re
import sys
import threading
from concurrent import futures
from pathlib import Path


class NoSemisam:
    """A finder of modules that has none of the package under test, installed or not."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "semisam_tf":
            raise ImportError("semisam_tf is not to be had in the stand-in")


sys.meta_path.insert(0, NoSemisam())
try:
    import semisam_tf
except ImportError:
    pass
else:
    raise SystemExit(f"semisam_tf can be imported: {semisam_tf}")

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

CODES = {code.value[0]: code for code in grpc.StatusCode}
HTTP_CODES = {grpc.StatusCode.NOT_FOUND: 404, grpc.StatusCode.UNAVAILABLE: 503, grpc.StatusCode.INTERNAL: 500}


class Refused(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code, self.text = code, text


class Model:
    """The newest version in a folder, warmed up with its own requests."""

    def __init__(self, folder):
        versions = [int(path.name) for path in Path(folder).iterdir() if path.name.isdigit()]
        self.version = max(versions)
        self.folder = Path(folder) / str(self.version)
        self.loaded = tf.saved_model.load(str(self.folder))
        warmup = self.folder / "assets.extra" / "tf_serving_warmup_requests"
        for record in tf.data.TFRecordDataset(str(warmup)):
            request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
            self.predict(request.model_spec.signature_name, dict(request.inputs.items()))

    def predict(self, name, inputs):
        """Signature's name and TensorProtos, or Python values of the right nesting, by input -> tensors by output."""
        name = name or "serving_default"
        if name not in self.loaded.signatures:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f'Serving signature key "{name}" not found.')
        signature = self.loaded.signatures[name]
        specs = signature.structured_input_signature[1]
        if set(specs) != set(inputs):
            text = f"input size does not match signature: expected {sorted(specs)}, received {sorted(inputs)}"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)
        try:
            tensors = {key: as_tensor(value, specs[key]) for key, value in inputs.items()}
            return signature(**tensors)
        except tf.errors.OpError as error:
            raise Refused(CODES[error.error_code], error.message) from error
        except (TypeError, ValueError) as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error


def as_tensor(value, spec):
    if isinstance(value, tensor_pb2.TensorProto):
        tensor = tf.constant(tf.make_ndarray(value))
    else:
        tensor = tf.constant(unwrap(value), spec.dtype)
    if tensor.dtype != spec.dtype or not spec.shape.is_compatible_with(tensor.shape):
        raise ValueError(
            f"expected {spec.name} to be {spec.dtype.name} {spec.shape}, got {tensor.dtype} {tensor.shape}"
        )
    return tensor


def unwrap(value):
    """{"b64": ...} anywhere in nested lists -> bytes."""
    if isinstance(value, dict):
        return base64.b64decode(value["b64"], validate=True)
    return [unwrap(item) for item in value] if isinstance(value, list) else value


class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models):
        self.models = models

    def find(self, spec):
        if spec.name not in self.models or spec.version.value not in (0, self.models[spec.name].version):
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
        return self.models[spec.name]

    def Predict(self, request, context):
        try:
            model = self.find(request.model_spec)
            outputs = model.predict(request.model_spec.signature_name, dict(request.inputs.items()))
        except Refused as error:
            context.abort(error.code, error.text)
        response = predict_pb2.PredictResponse(model_spec=request.model_spec)
        response.model_spec.version.value = model.version
        for key, value in outputs.items():
            # As an array of objects: NumPy's own byte strings end before their last zeros.
            array = value.numpy() if value.dtype != tf.string else np.array(value.numpy(), object)
            response.outputs[key].CopyFrom(tf.make_tensor_proto(array, value.dtype, value.shape))
        return response

    def GetModelMetadata(self, request, context):
        try:
            model = self.find(request.model_spec)
        except Refused as error:
            context.abort(error.code, error.text)
        return metadata_of(model, request.model_spec)

    def GetModelStatus(self, request, context):
        try:
            model = self.find(request.model_spec)
        except Refused as error:
            context.abort(error.code, error.text)
        status = get_model_status_pb2.ModelVersionStatus(version=model.version, state="AVAILABLE")
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=[status])


def metadata_of(model, spec):
    proto = saved_model_pb2.SavedModel.FromString((model.folder / "saved_model.pb").read_bytes())
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=dict(proto.meta_graphs[0].signature_def))
    response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=spec)
    response.metadata["signature_def"].Pack(signatures)
    return response


def jsonable(name, value):
    if value.dtype != tf.string:
        return value.numpy().tolist()
    array = np.array(value.numpy(), object)
    texts = [{"b64": base64.b64encode(v).decode()} if name.endswith("_bytes") else v.decode() for v in np.ravel(array)]
    return texts[0] if np.ndim(array) == 0 else texts


class Rest(http.server.BaseHTTPRequestHandler):
    servicer = None
    path_form = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(:predict|/metadata)?")

    def log_message(self, *args):
        pass

    def answer(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self, body):
        found = self.path_form.fullmatch(self.path)
        if not found:
            return self.answer(404, {"error": f"Malformed request: {self.path}"})
        spec = predict_pb2.PredictRequest().model_spec
        spec.name, spec.version.value = found[1], int(found[2] or 0)
        try:
            model = self.servicer.find(spec)
            if body is None:
                return self.answer(200, self.about(model, spec, found[3]))
            request = self.parsed(body)
            outputs = model.predict(request.get("signature_name", ""), request["inputs"])
        except Refused as error:
            return self.answer(HTTP_CODES.get(error.code, 400), {"error": error.text})
        values = {key: jsonable(key, value) for key, value in outputs.items()}
        return self.answer(200, {"outputs": next(iter(values.values())) if len(values) == 1 else values})

    @staticmethod
    def parsed(body):
        try:
            request = json.loads(body)
            if not isinstance(request["inputs"], dict):
                raise ValueError("expected an object of named inputs")
            return request
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"JSON Parse error: {error!r}") from error

    @staticmethod
    def about(model, spec, what):
        if what == "/metadata":
            return json_format.MessageToDict(metadata_of(model, spec), preserving_proto_field_name=True)
        status = {"error_code": "OK", "error_message": ""}
        return {"model_version_status": [{"version": str(model.version), "state": "AVAILABLE", "status": status}]}

    def do_GET(self):
        self.handle_request(None)

    def do_POST(self):
        self.handle_request(self.rfile.read(int(self.headers["Content-Length"])))


def main(words):
    servicer = Servicer({name: Model(folder) for name, _, folder in (word.partition("=") for word in words)})
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1),
                                                                 ("grpc.max_send_message_length", -1)])  # fmt: skip
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    Rest.servicer = servicer
    rest = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rest)
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    sys.stdout.write(json.dumps({"grpc": grpc_port, "rest": rest.server_address[1]}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the parent closes it, or ends


if __name__ == "__main__":
    main(sys.argv[1:])
