"""The JavaScript of docs/any-client.md, run by Node where that and its packages are installed."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from hne_tf.gateway.run import gateway

CHECKOUT = pathlib.Path(__file__).parents[3]
# Where `npm install --prefix build/node` of the page's command puts them.
MODULES = CHECKOUT / "build" / "node" / "node_modules"


def block(language):
    page = (CHECKOUT / "docs" / "any-client.md").read_text()
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return found


@pytest.fixture(scope="module")
def node():
    """Runs a script of Node that can require gRPC."""
    binary = shutil.which("node")
    if binary is None:
        pytest.skip("no node on the PATH")
    paths = os.pathsep.join([str(MODULES), os.environ.get("NODE_PATH", "")])
    environment = os.environ | {"NODE_PATH": paths}
    packages = "require('@grpc/grpc-js'); require('@grpc/proto-loader')"
    if subprocess.run([binary, "-e", packages], env=environment, capture_output=True).returncode:
        pytest.skip("no @grpc/grpc-js and @grpc/proto-loader in build/node or NODE_PATH")

    def run(script):
        command = [binary, script.name]
        return subprocess.run(
            command, cwd=script.parent, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.mark.parametrize("through", ["server", "gateway"])
def test_javascript_runs(node, server, tmp_path, through):
    (tmp_path / "serving.proto").write_text(block("proto"))
    script = tmp_path / "ask.js"
    with gateway([server.address]) as running:
        address = server.address if through == "server" else running.address
        code = block("js").replace("127.0.0.1:8500", address)
        # However busy the machine is.
        script.write_text(code.replace("+ 1000", "+ 60000"))
        result = node(script)
    assert result.returncode == 0, result.stderr
    size, classes, latency_ms = result.stdout.split()
    assert (size, classes) == ("4", "10")
    assert float(latency_ms) > 0


def test_a_budget_that_is_no_number_reaches_javascript_as_its_error(node, server, tmp_path):
    (tmp_path / "serving.proto").write_text(block("proto"))
    script = tmp_path / "ask.js"
    code = block("js").replace("127.0.0.1:8500", server.address)
    metadata = "const budget = new grpc.Metadata(); budget.set('hne-budget-ms', 'soon');\n"
    script.write_text(
        code.replace("client.Predict(request,", metadata + "client.Predict(request, budget,")
    )
    result = node(script)
    assert result.returncode != 0
    assert "INVALID_ARGUMENT: hne-budget-ms must be a number above 0, got 'soon'" in result.stderr
