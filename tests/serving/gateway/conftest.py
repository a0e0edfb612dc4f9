"""Gateways, and upstreams that answer whatever a test says."""

import concurrent.futures
import contextlib

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from hne_tf.gateway.run import GatewayOptions, gateway


class Raw(grpc.GenericRpcHandler):
    """Answers any method of one message with bytes, and keeps what it was asked."""

    def __init__(self):
        self.calls = []
        self.answer = lambda message, context: b"answer of " + message

    def service(self, handler_call_details):
        def handle(message, context):
            pairs = dict(context.invocation_metadata())
            self.calls.append(
                (handler_call_details.method, message, pairs, context.time_remaining())
            )
            return self.answer(message, context)

        return grpc.unary_unary_rpc_method_handler(handle)


@pytest.fixture
def serve_raw():
    servers = []

    def begin():
        raw = Raw()
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        server.add_generic_rpc_handlers((raw,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return raw, f"127.0.0.1:{port}"

    yield begin
    for server in servers:
        server.stop(0)


@pytest.fixture
def behind():
    """Opens a channel to a gateway in front of targets, and gives its metrics, too."""

    @contextlib.contextmanager
    def begin(*targets, **options):
        with (
            gateway(targets, options=GatewayOptions(**options), drain_s=0.0) as running,
            grpc.insecure_channel(running.address) as channel,
        ):
            yield channel, running.metrics.registry.get_sample_value

    return begin


class Ask:
    """Requests and answers with the generated stubs alone."""

    @staticmethod
    def stub(channel):
        return prediction_service_pb2_grpc.PredictionServiceStub(channel)

    @staticmethod
    def request(images, signature="anytime", outputs=(), model="digits"):
        request = predict_pb2.PredictRequest(output_filter=outputs)
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
        return request

    @staticmethod
    def arrays(response):
        return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}

    @staticmethod
    def size(response):
        (size,) = set(Ask.arrays(response)["size"])
        return size

    @staticmethod
    def status(call, *arguments, **options):
        with pytest.raises(grpc.RpcError) as caught:
            call(*arguments, **options)
        return caught.value.code(), caught.value.details()


@pytest.fixture(scope="session")
def ask():
    return Ask
