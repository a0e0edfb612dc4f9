"""Any message to any method: an answer or a documented status, in bounded memory.

A few hundred messages in the suite; ten thousand with `--hypothesis-profile=fuzz`.
"""

import pathlib
import random
import re
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from hne_tf.bin import serve
from hne_tf.server.service import Options

_PREDICTION = "/tensorflow.serving.PredictionService"
_METHODS = {
    f"{_PREDICTION}/Predict": predict_pb2.PredictRequest,
    f"{_PREDICTION}/GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
    f"{_PREDICTION}/Classify": classification_pb2.ClassificationRequest,
    f"{_PREDICTION}/Regress": regression_pb2.RegressionRequest,
    f"{_PREDICTION}/MultiInference": inference_pb2.MultiInferenceRequest,
    "/tensorflow.serving.ModelService/GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
    "/tensorflow.serving.ModelService/HandleReloadConfigRequest": (
        model_management_pb2.ReloadConfigRequest
    ),
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest,
    "/grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest,
    "/tensorflow.serving.PredictionService/NoSuchMethod": predict_pb2.PredictRequest,
}
_PREDICT, _WATCH = f"{_PREDICTION}/Predict", "/grpc.health.v1.Health/Watch"
_DOCUMENTED = {
    StatusCode.OK,
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.UNIMPLEMENTED,
}
# As the README says: 16 times the 280 KiB that a request of the digits may have, the rows
# in the graph, and what allocators keep of all the requests before.
_MOST_GROWTH_MIB = 128
# Long: a test must not fail because the machine is busy.
_TIMEOUT_S = 120

_KNOWN = (
    "digits ensemble_1 step_2 serving_default images cache running_sum probabilities logits "
    "signature_def"
)
_NAMES = st.sampled_from([*_KNOWN.split(), "", "x" * 5000]) | st.text(max_size=20)
_SIZES = st.sampled_from([-1, 0, 1, 6, 8, 10, 128, 129, 300_000, 2**31, 2**62, -(2**63), 2**63 - 1])
_FIELDS = FieldDescriptor
_NUMBERS = {
    _FIELDS.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 1, 255, 256]),
    _FIELDS.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1) | _SIZES,
    _FIELDS.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    _FIELDS.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    _FIELDS.CPPTYPE_FLOAT: st.floats(width=32),
    _FIELDS.CPPTYPE_DOUBLE: st.floats(),
    _FIELDS.CPPTYPE_BOOL: st.booleans(),
}


def _value(draw, field):
    """A value for a field that is no message."""
    if field.type == field.TYPE_BYTES:
        return draw(st.binary(max_size=100))
    if field.cpp_type == field.CPPTYPE_STRING:
        return draw(_NAMES)
    if field.cpp_type == field.CPPTYPE_ENUM:
        return draw(st.sampled_from([value.number for value in field.enum_type.values] + [99]))
    return draw(_NUMBERS[field.cpp_type])


def _fill(draw, message, depth):
    """Sets some fields of a message, and of those inside."""
    fields = tuple(message.DESCRIPTOR.fields)
    if not fields:
        return
    for field in draw(st.lists(st.sampled_from(fields), max_size=3)):
        inside = field.message_type
        if inside is not None and inside.GetOptions().map_entry:
            entry = getattr(message, field.name)
            key, value = inside.fields_by_name["key"], inside.fields_by_name["value"]
            name = _value(draw, key)
            if value.message_type is None:
                entry[name] = _value(draw, value)
            elif depth:
                _fill(draw, entry[name], depth - 1)
        elif inside is not None:
            if depth:
                part = getattr(message, field.name)
                _fill(draw, part.add() if field.is_repeated else part, depth - 1)
        elif field.is_repeated:
            count = draw(st.sampled_from([1, 2, 3, 64, 1000]))
            getattr(message, field.name).extend([_value(draw, field)] * count)
        else:
            setattr(message, field.name, _value(draw, field))


def _images(rows, listed=False):
    """A request that is answered unless something else is wrong with it."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = "ensemble_1"
    tensor = request.inputs["images"]
    tensor.dtype = types_pb2.DT_UINT8
    for size in (rows, 8, 8, 1):
        tensor.tensor_shape.dim.add(size=size)
    if listed:
        tensor.int_val.extend([200] * 64 * rows)
    else:
        tensor.tensor_content = bytes(64 * rows)
    return request


def _step(rows):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = "step_2"
    for name, width in (("cache", 6), ("running_sum", 10)):
        request.inputs[name].CopyFrom(tf.make_tensor_proto(np.ones([rows, width], np.float32)))
    return request


def _start(draw, method):
    """A message to begin with: a good one, or an empty one."""
    message = _METHODS[method]()
    if draw(st.booleans()):
        return message
    if isinstance(message, predict_pb2.PredictRequest):
        rows = draw(st.sampled_from([1, 2, 128]))
        return draw(st.sampled_from([_images(rows), _images(rows, listed=True), _step(rows)]))
    if "model_spec" in message.DESCRIPTOR.fields_by_name:
        message.model_spec.name = "digits"
    return message


def _damaged(draw, content):
    """The bytes of a message with a fault of transport, or of malice, in them."""
    random_ = random.Random(draw(st.integers(0, 2**32)))
    at, end = sorted(random_.choices(range(len(content) + 1), k=2))
    kind = draw(st.sampled_from(["none"] * 4 + ["cut", "garbage", "flipped", "repeated", "many"]))
    if kind == "cut":
        return content[:at]
    if kind == "garbage":
        return content[:at] + random_.randbytes(random_.choice([1, 10, 1000])) + content[at:]
    if kind == "flipped" and content:
        at = random_.randrange(len(content))
        return content[:at] + bytes([content[at] ^ 1 << random_.randrange(8)]) + content[at + 1 :]
    if kind == "repeated":
        part = content[at:end]
        return content[:at] + part * (300_000 // (len(part) + 1)) + content[at:]
    if kind == "many":
        # An empty field of any number, many times.
        field = bytes([random_.randrange(1, 16) << 3 | 2, 0])
        return content + field * random_.choice([100, 9_000, 120_000, 500_000])
    return content


@st.composite
def _calls(draw):
    """A method and the bytes that it is asked with."""
    # Predictions are what can be done most with.
    method = draw(st.sampled_from([_PREDICT] * 2 * len(_METHODS) + list(_METHODS)))
    message = _start(draw, method)
    _fill(draw, message, depth=5)
    return method, _damaged(draw, message.SerializeToString())


@pytest.fixture(scope="module")
def process(base_path):
    """A server in a process of its own: its number and its address."""
    started = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hne_tf.bin.serve",
            f"--model_base_path={base_path}",
            "--port=0",
        ],
        cwd=pathlib.Path(serve.__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    complaints = []
    reader = threading.Thread(target=lambda: complaints.extend(started.stderr))
    reader.start()
    try:
        line = started.stdout.readline()
        found = re.search(r"address=(\S+)", line)
        assert found, line + "".join(complaints)
        yield started.pid, found[1]
        assert started.poll() is None
    finally:
        started.kill()
        started.wait()
        reader.join()
        started.stdout.close()
        started.stderr.close()
    # Nothing was raised that nobody had thought of.
    assert complaints == []


def _peak_mib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def _ask(channel, method, content):
    """The status that a call ends with, and its details."""
    try:
        if method == _WATCH:
            call = channel.unary_stream(method)(content, timeout=_TIMEOUT_S)
            next(call)
            call.cancel()
        else:
            channel.unary_unary(method)(content, timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return StatusCode.OK, ""


def _parses(method, content):
    try:
        _METHODS[method].FromString(content)
    except DecodeError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_no_message_costs_more_than_it_may_or_ends_in_another_status(process):
    pid, address = process
    asked = dict.fromkeys(StatusCode, 0)
    with grpc.insecure_channel(address) as channel:
        good = [_images(Options().max_rows), _images(1, listed=True), _step(Options().max_rows)]
        for request in good:
            assert _ask(channel, _PREDICT, request.SerializeToString())[0] is StatusCode.OK
        before = _peak_mib(pid)

        @settings(suppress_health_check=list(HealthCheck))
        @given(_calls())
        def ask(call):
            method, content = call
            code, details = _ask(channel, method, content)
            asked[code] += 1
            if code is StatusCode.INTERNAL:
                # Groups are skipped by parsers, and refused here.
                assert not _parses(method, content) or "must be a PredictRequest" in details
            else:
                assert code in _DOCUMENTED, details
            assert "Traceback" not in details

        ask()
        growth = _peak_mib(pid) - before
        for request in good:
            assert _ask(channel, _PREDICT, request.SerializeToString())[0] is StatusCode.OK
    counts = {code.name: count for code, count in asked.items() if count}
    print(f"{sum(counts.values())} messages: {counts}; memory grew by {growth:.0f} MiB")
    assert growth < _MOST_GROWTH_MIB
    # The fuzzer is none if all of its messages end the same way.
    assert min(counts.get(name, 0) for name in ("OK", "INVALID_ARGUMENT", "INTERNAL")) > 0
