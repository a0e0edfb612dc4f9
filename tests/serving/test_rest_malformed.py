"""Malformed bodies: each gets its status and one line, and the server goes on."""

import http.client
import json
import random
import socket

import numpy as np
import pytest

from hne_tf.server.rest.bounds import Bounds
from hne_tf.server.rest.caller import HttpCaller
from hne_tf.server.rest.requests import RequestError
from hne_tf.server.servable import Servable
from hne_tf.server.service import Options, start

_COUNT = 2000
_PREDICT = "/v1/models/digits:predict"
_ROW = np.zeros([8, 8, 1], int).tolist()
_STEP = {"cache": [0.5] * 6, "running_sum": [0.25] * 10}


def _image(**changed):
    return json.dumps({"instances": [_ROW], **changed}).encode()


def _rows(value, signature="ensemble_1"):
    return {"signature_name": signature, "instances": [value]}


def _with(value):
    """A row whose first value is another."""
    row = json.loads(json.dumps(_ROW))
    row[0][0][0] = value
    return row


_B64 = {"b64": "AAAA" * 21 + "AA=="}

_MALFORMED = {
    "nothing": (b"", "the body must be JSON"),
    "spaces": (b"  \n", "the body must be JSON"),
    "no JSON": (b"instances=1", "the body must be JSON"),
    "cut short": (b'{"instances": [[1, 2', "the body must be JSON"),
    "two objects": (b"{}{}", "Extra data"),
    "trailing comma": (b'{"instances": [1,]}', "the body must be JSON"),
    "a comment": (b'{"instances": [1] /* one */}', "the body must be JSON"),
    "UTF-16": (_image().decode().encode("utf-16"), "utf-8"),
    "no Unicode": (b'{"instances": ["\xff"]}', "utf-8"),
    "a byte order mark": (b"\xef\xbb\xbf" + _image(), "BOM"),
    "lists nested deeply": (b"[" * 9000, "nested too deeply"),
    "too many lists": (b"[" * 100_000, "at most"),
    "too many values": (b'{"instances": [' + b"1," * 100_000 + b"1]}", "at most"),
    "objects nested deeply": (b'{"a":' * 9000, "nested too deeply"),
    "digits without end": (b'{"instances": [' + b"9" * 5000 + b"]}", "must be JSON"),
    "a list": (b"[]", "must be a JSON object"),
    "a number": (b"1", "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "no inputs": ({}, "one of 'instances' and 'inputs', got neither"),
    "rows and columns": ({"instances": [], "inputs": []}, "got both"),
    "no rows": ({"instances": []}, "at least 1 row"),
    "rows as an object": ({"instances": {"images": [_ROW]}}, "must be a list"),
    "rows as a string": ({"instances": "x"}, "must be a list"),
    "rows as null": ({"instances": None}, "must be a list"),
    "a signature that is no text": (_image(signature_name=1), "must be a string"),
    "a signature that is null": (_image(signature_name=None), "must be a string"),
    "half a character": (_image(signature_name="\ud800"), "valid Unicode"),
    "an unknown signature": (_image(signature_name="ensemble_9"), "ensemble_9"),
    "an unknown input": ({"instances": [{"pixels": _ROW}]}, "an object with ['images']"),
    "one input too many": ({"instances": [{"images": _ROW, "x": 1}]}, "with ['images']"),
    "rows of two kinds": ({"instances": [{"images": _ROW}, _ROW]}, "every one of"),
    "no such column": ({"inputs": {"pixels": [_ROW]}}, "got none of ['images']"),
    "columns as null": ({"inputs": None}, "got null"),
    "a column that is null": ({"inputs": {"images": None}}, "got null"),
    "a column that is a number": ({"inputs": {"images": 1}}, "must have shape"),
    "inputs without names": (
        {"signature_name": "step_2", "instances": [[0.5]]},
        "must name the inputs ['cache', 'running_sum']",
    ),
    "columns without names": (
        {"signature_name": "step_2", "inputs": [[0.5]]},
        "must name the inputs ['cache', 'running_sum']",
    ),
    "an input too few": (_rows({"cache": [0.5] * 6}, "step_2"), "must be an object with"),
    "lists of unequal lengths": (_rows([[[0]] * 8] * 7 + [[[0]] * 7]), "equal lengths"),
    "lists of unequal depths": (_rows([*_ROW[:7], 0]), "equal lengths and depths"),
    "rows of unequal lengths": ({"instances": [_ROW, _ROW[:7]]}, "equal lengths"),
    "a row of no dimensions": (_rows(5), "must have shape"),
    "a row of one dimension": (_rows([0] * 64), "must have shape"),
    "a row of too many dimensions": (_rows([_ROW]), "must have shape"),
    "an empty row": (_rows([]), "must have shape"),
    "129 rows": ({"instances": [_B64] * 129}, "at most 128 rows, got 129"),
    "a string": (_rows(_with("0")), "got a string"),
    "true": (_rows(_with(True)), "got true or false"),
    "null in a row": (_rows(_with(None)), "got null"),
    "an object in a row": (_rows(_with({})), "got an object"),
    "a decimal": (_rows(_with(1.0)), "got a number with a decimal point"),
    "not a number": (_rows(_with(float("nan"))), "got a number with a decimal point"),
    "a negative byte": (_rows(_with(-1)), "out of bounds for uint8"),
    "a byte too large": (_rows(_with(256)), "out of bounds for uint8"),
    "a byte of a thousand digits": (_rows(_with(10**1000)), "too large"),
    "a float that is true": (_rows({**_STEP, "cache": [True] * 6}, "step_2"), "got true"),
    "beyond a float": (_rows({**_STEP, "cache": [1e39] * 6}, "step_2"), "got 1e+39"),
    "an integer beyond a float": (_rows({**_STEP, "cache": [10**400] * 6}, "step_2"), "too large"),
    "beyond any float": (
        json.dumps(_rows({**_STEP, "cache": [0.5] * 6}, "step_2")).replace("0.5", "1e999").encode(),
        "1e999 is too large",
    ),
    "bytes that are no base64": (_rows({"b64": "AA*A"}), "must be base64"),
    "bytes with a space": (_rows({"b64": "AAAA AAAA"}), "must be base64"),
    "bytes that are no ASCII": (_rows({"b64": "ÄÄÄÄ"}), "must be base64"),
    "too few bytes": (_rows({"b64": "AAAA"}), "must have 64 bytes, got 3"),
    "no bytes": (_rows({"b64": ""}), "must have 64 bytes, got 0"),
    "bytes of a part of a row": (_rows([{"b64": "AAAA"}] * 8), "got an object"),
    "bytes for one row of two": ({"instances": [_B64, _ROW]}, "for every row or for none"),
    "bytes for all rows": ({"inputs": _B64}, "got an object"),
    "bytes as a number": (_rows({"b64": 1}), "an object with ['images']"),
}


def _line(answer):
    assert answer.json.keys() == {"error"}
    assert "\n" not in answer.json["error"]
    assert "Traceback" not in answer.json["error"]
    return answer.json["error"]


@pytest.mark.parametrize("kind", _MALFORMED)
def test_a_malformed_body_gets_400_and_one_line(rest, kind):
    body, words = _MALFORMED[kind]
    answer = rest("POST", _PREDICT, body)
    assert words in _line(answer)
    assert answer.status == 400


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1e999", "1_0", "1,5", "0x1", "x"])
def test_a_budget_that_is_no_number_above_0(rest, text):
    answer = rest("POST", _PREDICT, {"instances": [_ROW]}, {"X-HNE-Budget-Ms": text})
    assert answer.status == 400
    assert _line(answer) == f"X-HNE-Budget-Ms must be a number above 0, got {text!r}"


@pytest.mark.parametrize("text", ["1", "2.5", ".5", "1e3"])
def test_a_budget_is_taken(rest, text):
    answer = rest("POST", _PREDICT, {"instances": [_ROW]}, {"X-HNE-Budget-Ms": text})
    assert answer.status == 200


def test_reading_a_request_is_part_of_its_budget():
    now = [100.0]
    call = HttpCaller(50.0, clock=lambda: now[0])
    assert call.budget_ms == 50.0
    now[0] += 0.02
    call.parsed()
    assert call.budget_ms == pytest.approx(30.0)
    now[0] += 0.02
    # From here on whoever answers counts.
    assert call.budget_ms == pytest.approx(30.0)
    call.parsed()
    now[0] += 1
    call.parsed()
    assert 0 < call.budget_ms < 1e-3
    assert (HttpCaller().budget_ms, HttpCaller().remaining_s) == (None, None)


def test_a_body_is_bounded_before_it_is_read(rest, server):
    connection = http.client.HTTPConnection(rest.door.address.removeprefix("http://"))
    connection.putrequest("POST", _PREDICT)
    connection.putheader("Content-Length", str(10**15))
    connection.endheaders()
    # Not a byte of it has been sent.
    answer = connection.getresponse()
    assert answer.status == 413
    assert "must have at most" in json.loads(answer.read())["error"]
    connection.close()


def test_a_body_in_chunks_is_bounded_too(rest):
    chunks = (b" " * 2**16 for _ in range(100))
    connection = http.client.HTTPConnection(rest.door.address.removeprefix("http://"))
    try:
        connection.request("POST", _PREDICT, chunks, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 413
    except (BrokenPipeError, ConnectionResetError):
        # Refused while it was still being sent.
        pass
    finally:
        connection.close()


def test_the_bound_of_messages_holds_here_too(base_path, open_rest):
    server = start(Servable("digits", base_path / "7"), options=Options(max_message_bytes=300))
    try:
        ask = open_rest(server)
        small = {"signature_name": "ensemble_1", "instances": [_B64]}
        assert ask("POST", _PREDICT, small).status == 200
        answer = ask("POST", _PREDICT, _image())
        assert (answer.status, "at most 300 bytes" in _line(answer)) == (413, True)
    finally:
        server.stop(grace_s=0)


def test_the_largest_request_fits_however_it_is_written(rest):
    """With spaces around every value, and named."""
    row = np.full([8, 8, 1], 255).tolist()
    body = json.dumps({"instances": [{"images": row}] * 128}, indent=2).encode()
    assert rest("POST", _PREDICT, body).status == 200
    step = {
        name: np.full(len(values), -1.2345678901234567e-300).tolist()
        for name, values in _STEP.items()
    }
    body = json.dumps({"signature_name": "step_2", "instances": [step] * 128}, indent=4).encode()
    assert rest("POST", _PREDICT, body).status == 200


def test_bounds_are_those_of_the_signature_with_the_most(base_path):
    servable = Servable("digits", base_path / "7")
    bounds = Bounds.of(servable.signature_defs.values(), 128)
    # A row of 8 lists of 8 lists of one, perhaps in an object.
    assert bounds.lists == 10_000 + 128 * (1 + 1 + 8 + 64)
    assert bounds.values == 10_000 + 128 * (1 + 1 + 8 + 64 + 64)
    bounds.check(b"[" * bounds.lists)
    with pytest.raises(RequestError, match="lists"):
        bounds.check(b"[" * (bounds.lists + 1))


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/models/digits HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"b" * 100_000 + b"\r\n\r\n",
        b"POST /v1/models/digits:predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/models/digits:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
        b"Content-Length: 2\r\n\r\n{}",
        b"POST /v1/models/digits:predict HTTP/1.1\r\nHost: x\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/models/digits HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n",
        b"OPTIONS /v1/models/digits HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_gets_json_too(rest, sent):
    host, port = rest.door.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65536):
            received += part
    # A client that hangs up before a line is complete is owed none.
    if received:
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), head
        assert json.loads(body).keys() == {"error"}


def test_the_expected_continue_is_sent_unless_the_request_is_refused(rest):
    host, port = rest.door.address.removeprefix("http://").split(":")
    body = _image()
    for path, expected in ((_PREDICT, b"HTTP/1.1 100 "), ("/v1/models/digits:x", b"HTTP/1.1 400 ")):
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(head.encode())
            assert connection.recv(65536).startswith(expected)
            if b"100" in expected:
                connection.sendall(body)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def _mutated(random_, body):
    """A body with one to three faults of transport, or of malice, in it."""
    for _ in range(random_.randint(1, 3)):
        at = random_.randrange(len(body) + 1)
        kind = random_.randrange(8)
        if kind == 0:
            body = body[:at]
        elif kind == 1:
            body = body[:at] + random_.randbytes(random_.choice([1, 10, 1000])) + body[at:]
        elif kind == 2 and body:
            at = min(at, len(body) - 1)
            body = body[:at] + bytes([body[at] ^ 1 << random_.randrange(8)]) + body[at + 1 :]
        elif kind == 3:
            words = [
                b"null",
                b"true",
                b"-1",
                b"1e999",
                b"NaN",
                b'"x"',
                b"{}",
                b"[]",
                b"[[",
                b"9" * 400,
            ]
            end = min(len(body), at + random_.randint(0, 3))
            body = body[:at] + random_.choice(words) + body[end:]
        elif kind == 4:
            end = random_.randrange(len(body) + 1)
            body = (
                body[:at] + body[min(at, end) : max(at, end)] * random_.randint(1, 50) + body[at:]
            )
        elif kind == 5:
            body = body + body[:at]
        else:
            # Numbers and names that may be as good as before.
            end = min(len(body), at + 1)
            body = body[:at] + random_.choice([b"0", b"7", b" ", b"a"]) + body[end:]
    return body


def test_random_bodies_leave_it_serving(rest, images):
    random_ = random.Random(16)
    valid = [
        _image(),
        json.dumps({"instances": images.tolist()}).encode(),
        json.dumps({"inputs": {"images": [_B64, _B64]}}).encode(),
        json.dumps({"signature_name": "step_2", "instances": [_STEP] * 3}).encode(),
        json.dumps({"signature_name": "ensemble_2", "instances": [{"images": _ROW}]}).encode(),
    ]
    expected = [rest("POST", _PREDICT, body) for body in valid]
    assert {answer.status for answer in expected} == {200}
    counts = {}
    connection = http.client.HTTPConnection(rest.door.address.removeprefix("http://"), timeout=120)
    for number in range(_COUNT):
        if random_.random() < 0.1:
            body = random_.randbytes(random_.choice([0, 1, 100, 10_000]))
        else:
            body = _mutated(random_, random_.choice(valid))
        connection.request("POST", _PREDICT, body)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        counts[answer.status] = counts.get(answer.status, 0) + 1
        if answer.status == 200:
            assert content.keys() <= {"predictions", "outputs"}
        else:
            assert answer.status in (400, 413), content
            assert content.keys() == {"error"}
            assert "Traceback" not in content["error"]
        if number % 200 == 0:
            assert [rest("POST", _PREDICT, body).json for body in valid] == [
                answer.json for answer in expected
            ]
    connection.close()
    print(f"{_COUNT} bodies: {counts}")
    # The fuzzer is none if all of its bodies end the same way.
    assert min(counts.get(status, 0) for status in (200, 400)) > 20
    assert rest("GET", "/v1/models/digits").status == 200
