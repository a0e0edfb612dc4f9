"""`hne-serve --upstream`: a real process, and bad flags in this one."""

import pathlib
import re
import signal
import subprocess
import sys

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from hne_tf.bin import serve


def test_a_process_stands_in_front_of_a_server_and_stops_on_sigterm(server, images):
    process = subprocess.Popen(
        [
            *(sys.executable, "-X", "importtime", "-m", "hne_tf.bin.serve"),
            *(f"--upstream={server.address}", "--port=0"),
        ],
        cwd=pathlib.Path(serve.__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(
            r"hne-serve: gateway: upstream=(\S+) address=(127\.0\.0\.1:\d+)\n", line
        )
        assert found, line
        assert found[1] == server.address
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "digits"
        request.model_spec.signature_name = "anytime"
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
        with grpc.insecure_channel(found[2]) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            outputs = stub.Predict(request, timeout=60).outputs
        assert np.isfinite(tf.make_ndarray(outputs["probabilities"])).all()
        process.send_signal(signal.SIGTERM)
        printed, imported = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert printed == "hne-serve: stopped\n"
    assert "hne_tf.gateway.run" in imported
    assert not re.search(r"\| +tensorflow$", imported, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--upstream=host"], "an upstream must be HOST:PORT, got 'host'"),
        (["--upstream=a:1,a:1"], "upstreams must be different"),
        (["--spread"], "--spread must have the servers of --upstream to ask, got none"),
        (
            ["--upstream=a:1", "--spread", "--model_base_path=b"],
            "it takes no latencies of --model_base_path, got b",
        ),
        (["--upstream=a:1", "--threads=2"], "--upstream makes a gateway, which takes no --threads"),
        (["--upstream=a:1", "--max_batch_size=2"], "takes no --max_batch_size"),
        (["--upstream=a:1", "--model_base_path=absent"], "a manifest must be a readable file"),
        (["--upstream=a:1", "--max_message_bytes=0"], "--max_message_bytes must be positive"),
        (["--upstream=a:1", "--tls_key=absent"], "TLS takes both"),
    ],
)
def test_bad_flags_get_one_line(capsys, arguments, reason):
    assert serve.run([*arguments, "--port=0"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("hne-serve: ")
    assert reason in line
