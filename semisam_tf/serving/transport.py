"""The two ways to ask TensorFlow Serving, gRPC and REST, behind one function that retries."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

from absl import logging

SIGNATURE = "nifti"
_PORTS = {"http": 8501, "https": 443, "grpc": 8500, "grpcs": 443}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
# Both sides' default is 4 MiB; a scan is larger. TensorFlow Serving itself takes what a message can hold.
_LARGEST_MESSAGE = 2**31 - 1


class ServerError(RuntimeError):
    """The server refused, or could not be asked; the message says why and what to do."""


class UnavailableError(ServerError):
    """The server is not there, or not yet: worth another attempt."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a model is served: `scheme` is "http", "https", "grpc" or "grpcs"."""

    scheme: str
    host: str
    port: int
    model: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """`mask`: bytes of a .nii; `confidence` in [0, 1]; `located`: False where a coarse pass missed a class."""

    mask: bytes
    confidence: float
    located: bool = True


# What is asked: endpoint, scan's bytes, seconds left.
Ask = Callable[[Endpoint, bytes, float], Answer]


def parse_url(url: str) -> Endpoint:
    """`http://host:8501/v1/models/NAME`, or `grpc://host:8500/NAME`; https and grpcs for TLS.

    Raises:
        ValueError: Anything else.
    """
    expected = "Expected --url=http://HOST:8501/v1/models/NAME or --url=grpc://HOST:8500/NAME."
    parts = urllib.parse.urlsplit(url)
    model = parts.path.removeprefix("/v1/models").strip("/")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{expected} Received: {url!r}, whose port is no port.") from None
    if parts.scheme not in _PORTS or not parts.hostname or not re.fullmatch(r"[\w.-]+", model):
        raise ValueError(f"{expected} Received: {url!r}.")
    return Endpoint(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], model)


def ask(
    endpoint: Endpoint,
    scan: bytes,
    timeout_s: float,
    *,
    once: Ask | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Answer:
    """Sends a .nii or .nii.gz, and goes on trying, with growing pauses, while the server is unavailable.

    Args:
        endpoint: The model.
        scan: Bytes of the file.
        timeout_s: For everything together.
        once: One attempt; by default what the endpoint's scheme says.
        sleep, clock: Time.

    Raises:
        UnavailableError: No answer within `timeout_s`.
        ServerError: The server refused the request; nothing is gained by repeating it.
    """
    once = once or (ask_grpc if endpoint.scheme.startswith("grpc") else ask_rest)
    deadline, pause_s, attempts = clock() + timeout_s, _FIRST_PAUSE_S, 0
    while True:
        attempts += 1
        try:
            return once(endpoint, scan, max(0.001, deadline - clock()))
        except UnavailableError as error:
            if clock() + pause_s >= deadline:
                raise UnavailableError(
                    f"{error} Gave up after {attempts} attempt{'s' * (attempts > 1)} in {timeout_s:g} s."
                ) from error
            logging.warning("Attempt %d: %s Again in %g s.", attempts, error, pause_s)
        sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def ask_rest(endpoint: Endpoint, scan: bytes, timeout_s: float) -> Answer:
    """One POST in the columnar form: `inputs` by name, bytes in base64."""
    url = f"{endpoint.scheme}://{_netloc(endpoint)}/v1/models/{endpoint.model}:predict"
    body = {"signature_name": SIGNATURE, "inputs": {"nifti_bytes": {"b64": base64.b64encode(scan).decode()}}}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            outputs = json.load(response)["outputs"]
        mask, confidence = base64.b64decode(outputs["mask_bytes"]["b64"]), float(outputs["confidence"])
        return Answer(mask, confidence, bool(outputs.get("located", True)))
    except urllib.error.HTTPError as error:
        text = _rest_error(error.read())
        if error.code in (502, 503, 504):
            raise UnavailableError(f"{url} is unavailable: {text or error.reason}.") from error
        if error.code == 404:
            raise ServerError(_unknown_model(endpoint, text)) from error
        raise ServerError(readable(text) or f"{url} answered {error.code} {error.reason}.") from error
    except TimeoutError as error:
        raise ServerError(_too_slow(url, timeout_s)) from error
    except urllib.error.URLError as error:
        raise _unreached(endpoint, error.reason, _too_slow(url, timeout_s)) from error
    except (ConnectionError, http.client.HTTPException) as error:
        raise UnavailableError(f"{url} broke off: {error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(f"Expected mask_bytes and confidence from {url}. Received: {error!r}.") from error


def ask_grpc(endpoint: Endpoint, scan: bytes, timeout_s: float) -> Answer:
    """One Predict call."""
    import grpc
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    address = _netloc(endpoint)
    options = [(f"grpc.max_{way}_message_length", _LARGEST_MESSAGE) for way in ("send", "receive")]
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = endpoint.model, SIGNATURE
    request.inputs["nifti_bytes"].dtype = types_pb2.DT_STRING
    request.inputs["nifti_bytes"].tensor_shape.SetInParent()  # a scalar, rather than no shape
    request.inputs["nifti_bytes"].string_val.append(scan)
    if endpoint.scheme == "grpcs":
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(), options)
    else:
        channel = grpc.insecure_channel(address, options)
    with channel:
        try:
            outputs = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout_s).outputs
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
            if code == grpc.StatusCode.UNAVAILABLE:
                raise _unavailable(endpoint, text) from error
            if code == grpc.StatusCode.NOT_FOUND:
                raise ServerError(_unknown_model(endpoint, text)) from error
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise ServerError(_too_slow(address, timeout_s)) from error
            raise ServerError(readable(text) or f"{address} answered {code}.") from error
    located = bool(outputs["located"].bool_val[0]) if "located" in outputs else True
    return Answer(outputs["mask_bytes"].string_val[0], float(outputs["confidence"].float_val[0]), located)


def readable(text: str) -> str:
    """The graph's own words out of TensorFlow's message about a check that failed, or the message's first line."""
    if "inflate()" in text:
        return f"Expected a gzip file that is not damaged. Received: {text.strip().splitlines()[0]}."
    found = re.search(r"assertion failed: (\[Expected.*)", text)
    if not found:
        return text.strip().split("\n")[0]
    return " ".join(re.findall(r"\[([^\[\]]*)\]", found.group(1))).rstrip() + "."


def _netloc(endpoint: Endpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{host}:{endpoint.port}"


def _rest_error(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()


def _unknown_model(endpoint: Endpoint, text: str) -> str:
    return (
        f"Expected the name of a model that {_netloc(endpoint)} serves, as the last part of --url. "
        f"Received: {endpoint.model!r} ({readable(text)})."
    )


def _unreached(endpoint: Endpoint, reason: object, too_slow: str) -> ServerError:
    """What urllib's reason means: worth another attempt or not."""
    if isinstance(reason, TimeoutError):
        return ServerError(too_slow)
    if isinstance(reason, socket.gaierror):
        return ServerError(_unknown_host(endpoint, str(reason)))
    if isinstance(reason, ssl.SSLCertVerificationError):
        return ServerError(_bad_certificate(endpoint, str(reason)))
    return UnavailableError(f"{endpoint.scheme}://{_netloc(endpoint)} cannot be reached: {reason}.")


def _unavailable(endpoint: Endpoint, text: str) -> ServerError:
    """What gRPC's UNAVAILABLE means, which it also says of unknown hosts and certificates."""
    if re.search(r"DNS resolution failed|[Dd]omain name not found|DNS query cancelled", text):
        return ServerError(_unknown_host(endpoint, text))
    if re.search(r"CERTIFICATE_VERIFY_FAILED|[Hh]ostname [Vv]erification", text):
        return ServerError(_bad_certificate(endpoint, text))
    return UnavailableError(f"{_netloc(endpoint)} is unavailable: {text}.")


def _unknown_host(endpoint: Endpoint, reason: str) -> str:
    return f"Expected a host that can be found, in --url. Received: {endpoint.host!r} ({reason})."


def _bad_certificate(endpoint: Endpoint, reason: str) -> str:
    return (
        f"Expected a TLS certificate of {_netloc(endpoint)} that this machine trusts. Received: {reason}. "
        "Add its authority to the machine's, or correct --url."
    )


def _too_slow(where: str, timeout_s: float) -> str:
    return f"Expected an answer of {where} within {timeout_s:.0f} s. Received: none; raise --timeout_s."
