"""Requests that no client means, by what is wrong with each: for the edge's own tests, and for those of refusals."""

from __future__ import annotations

from .raw import CHAT

LINE = f"POST {CHAT} HTTP/1.1\r\n".encode()
HOST = b"Host: localhost\r\n"
END = b"Content-Length: 2\r\n\r\n{}"
CHUNKED_BODY = b"2\r\n{}\r\n0\r\n\r\n"


def framed(*lines: bytes, body: bytes = b"{}") -> bytes:
    """A POST with a good Host and these field lines."""
    return LINE + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def hosted(*hosts: bytes) -> bytes:
    """A POST with these Host lines."""
    return LINE + b"".join(b"Host: " + host + b"\r\n" for host in hosts) + END


def first_line(line: bytes) -> bytes:
    """This first line, and a good rest."""
    return line + b"\r\n" + HOST + END


MALFORMED = {
    # Where does the body end?
    "content-length and transfer-encoding": framed(
        b"Content-Length: 2", b"Transfer-Encoding: chunked", body=CHUNKED_BODY
    ),
    "transfer-encoding and content-length": framed(
        b"Transfer-Encoding: chunked", b"Content-Length: 2", body=CHUNKED_BODY
    ),
    "two equal content-lengths": framed(b"Content-Length: 2", b"Content-Length: 2"),
    "two different content-lengths": framed(b"Content-Length: 2", b"content-length: 3"),
    "content-length as a list": framed(b"Content-Length: 2, 2"),
    "content-length with a plus": framed(b"Content-Length: +2"),
    "content-length with a minus": framed(b"Content-Length: -2"),
    "content-length in hex": framed(b"Content-Length: 0x2"),
    "content-length with an underscore": framed(b"Content-Length: 1_0"),
    "content-length with a space inside": framed(b"Content-Length: 1 0"),
    "content-length with a fraction": framed(b"Content-Length: 2.0"),
    "content-length in other digits": framed("Content-Length: ٢".encode()),
    "content-length empty": framed(b"Content-Length:"),
    "content-length of 25 digits": framed(b"Content-Length: " + b"1" * 25),
    "transfer-encoding identity": framed(b"Transfer-Encoding: identity"),
    "transfer-encoding gzip": framed(b"Transfer-Encoding: gzip"),
    "transfer-encoding gzip, chunked": framed(b"Transfer-Encoding: gzip, chunked", body=CHUNKED_BODY),
    "transfer-encoding chunked, chunked": framed(b"Transfer-Encoding: chunked, chunked", body=CHUNKED_BODY),
    "transfer-encoding chunked, identity": framed(b"Transfer-Encoding: chunked, identity", body=CHUNKED_BODY),
    "transfer-encoding xchunked": framed(b"Transfer-Encoding: xchunked", body=CHUNKED_BODY),
    "transfer-encoding quoted": framed(b'Transfer-Encoding: "chunked"', body=CHUNKED_BODY),
    "transfer-encoding empty": framed(b"Transfer-Encoding:", body=CHUNKED_BODY),
    "two transfer-encodings": framed(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKED_BODY),
    "transfer-encoding in HTTP/1.0": f"POST {CHAT} HTTP/1.0\r\n".encode()
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + CHUNKED_BODY,
    # Where does a line end?
    "bare LF after the request line": LINE.replace(b"\r\n", b"\n") + HOST + END,
    "bare LF after a field": LINE + b"Host: localhost\n" + END,
    "bare LF at the end": LINE + HOST + b"\n",
    "LF LF everywhere": (LINE + HOST + b"\r\n").replace(b"\r\n", b"\n"),
    "bare CR after a field": LINE + b"Host: localhost\r" + END,
    "bare CR in a value": framed(b"X-A: one\rX-B: two"),
    "CR CR LF": framed(b"X-A: one\r"),
    "obs-fold with a space": framed(b"X-A: one", b" two"),
    "obs-fold with a tab": framed(b"X-A: one", b"\ttwo"),
    "a first field that starts with a space": LINE + b" " + HOST + END,
    # What is a field?
    "a space before the colon": framed(b"X-A : one"),
    "a tab before the colon": framed(b"X-A\t: one"),
    "content-length with a space before the colon": framed(b"Content-Length : 2"),
    "no colon": framed(b"X-A one"),
    "no name": framed(b": one"),
    "a name with a space": framed(b"X A: one"),
    "a name with a slash": framed(b"X/A: one"),
    "a name with a NUL": framed(b"X\x00A: one"),
    "a name with a parenthesis": framed(b"X(A): one"),
    "a name that is not ASCII": framed("Ключ: one".encode()),
    "a NUL in a value": framed(b"X-A: o\x00ne"),
    "an escape in a value": framed(b"X-A: o\x1bne"),
    "a backspace in a value": framed(b"X-A: o\x08ne"),
    "a DEL in a value": framed(b"X-A: o\x7fne"),
    "a vertical tab in a value": framed(b"X-A: o\x0bne"),
    "two authorizations": framed(b"Authorization: Bearer a", b"Authorization: Bearer b", b"Content-Length: 2"),
    "two content-types": framed(b"Content-Type: a/b", b"Content-Type: c/d", b"Content-Length: 2"),
    # Which host?
    "no host": LINE + END,
    "two hosts": hosted(b"localhost", b"localhost"),
    "two different hosts": hosted(b"localhost", b"example.org"),
    "host empty": hosted(b""),
    "host with a path": hosted(b"a/x?y="),
    "host with a path after the port": hosted(b"localhost:8070/admin"),
    "host with a query": hosted(b"localhost?x"),
    "host with a fragment": hosted(b"localhost#x"),
    "host with userinfo": hosted(b"user@localhost"),
    "host with a password": hosted(b"user:pass@localhost"),
    "host with a space": hosted(b"local host"),
    "host as a list": hosted(b"localhost, example.org"),
    "host with a port that is no number": hosted(b"localhost:http"),
    "host with an empty port": hosted(b"localhost:"),
    "host with port 0": hosted(b"localhost:0"),
    "host with port 65536": hosted(b"localhost:65536"),
    "host with two ports": hosted(b"localhost:80:80"),
    "host with a backslash": hosted(b"localhost\\x"),
    "host with a percent": hosted(b"local%68ost"),
    "host with an open bracket": hosted(b"[::1"),
    "host with a zone": hosted(b"[fe80::1%25eth0]"),
    "host with a scheme": hosted(b"http://localhost"),
    "host that is not ASCII": hosted("löcalhost".encode()),
    # What is asked for?
    "a target with another authority": first_line(b"POST http://example.org" + CHAT.encode() + b" HTTP/1.1"),
    "a target with userinfo": first_line(b"POST http://a@localhost" + CHAT.encode() + b" HTTP/1.1"),
    "a target with another scheme": first_line(b"POST file://localhost/etc/passwd HTTP/1.1"),
    "a target that is not ASCII": first_line(f"POST {CHAT}é HTTP/1.1".encode()),
    "a target with a control character": first_line(b"POST /v1/\x01 HTTP/1.1"),
    "a target with a NUL": first_line(b"POST /v1/\x00 HTTP/1.1"),
    "a target with an escaped NUL": first_line(b"POST /v1/%00 HTTP/1.1"),
    "a target with an escaped line end": first_line(b"POST /v1/%0d%0a HTTP/1.1"),
    "a target with a broken escape": first_line(b"POST /v1/%zz HTTP/1.1"),
    "a target with a cut escape": first_line(b"POST /v1/%2 HTTP/1.1"),
    "a target with a fragment": first_line(CHAT.encode().join((b"POST ", b"#x HTTP/1.1"))),
    "a target without a slash": first_line(b"POST v1/chat/completions HTTP/1.1"),
    "a target with a space": first_line(b"POST /v1/chat completions HTTP/1.1"),
    "a target with a tab": first_line(b"POST\t/v1/chat/completions\tHTTP/1.1"),
    "no target": first_line(b"POST HTTP/1.1"),
    "an empty target": first_line(b"POST  HTTP/1.1"),
    "a star for POST": first_line(b"POST * HTTP/1.1"),
    "two spaces": first_line(b"POST  /v1/chat/completions HTTP/1.1"),
    "a space at the end": first_line(b"POST /v1/chat/completions HTTP/1.1 "),
    "a space at the start": first_line(b" POST /v1/chat/completions HTTP/1.1"),
    "two empty lines first": b"\r\n\r\n" + LINE + HOST + END,
    # Which protocol?
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/0.9 with a host": b"GET /\r\n" + HOST + b"\r\n",
    "HTTP/1.2": first_line(b"POST /v1/chat/completions HTTP/1.2"),
    "HTTP/1.10": first_line(b"POST /v1/chat/completions HTTP/1.10"),
    "HTTP/1": first_line(b"POST /v1/chat/completions HTTP/1"),
    "HTTP/2.0": first_line(b"POST /v1/chat/completions HTTP/2.0"),
    "http/1.1": first_line(b"POST /v1/chat/completions http/1.1"),
    "ICE/1.0": first_line(b"SOURCE /v1/chat/completions ICE/1.0"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303"),
    "an answer": b"HTTP/1.1 200 OK\r\n\r\n",
    "noise": b"\xff\xfe\xfd\xfc\r\n\r\n",
    "websocket": framed(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
    "websocket among others": framed(b"Connection: Upgrade", b"Upgrade: h2c, WebSocket"),
}
OTHER_STATUS = {
    "CONNECT": (405, first_line(b"CONNECT localhost:443 HTTP/1.1")),
    "TRACE": (405, first_line(b"TRACE /v1/chat/completions HTTP/1.1")),
    "an unknown method": (405, first_line(b"BREW /v1/chat/completions HTTP/1.1")),
    "a method in lower case": (405, first_line(b"post /v1/chat/completions HTTP/1.1")),
    "101 fields": (431, framed(*(b"x-%d: 1" % number for number in range(101)))),
    "102 fields, unfinished": (431, LINE + b"".join(b"x-%d: 1\r\n" % number for number in range(102))),
    "a header of 64 KiB": (431, framed(b"x: " + b"a" * 65536)),
    "a header of 64 KiB, unfinished": (431, LINE + HOST + b"x: " + b"a" * 65536),
    "a header of many lines, unfinished": (431, LINE + HOST + (b"x: " + b"a" * 1000 + b"\r\n") * 66),
    "a request line above 8 KiB": (400, first_line(b"POST /" + b"a" * 8192 + b" HTTP/1.1")),
    "a request line above 8 KiB, unfinished": (400, b"POST /" + b"a" * 8192),
    "a request line above 8 KiB, its header unfinished": (400, b"POST /" + b"a" * 8192 + b" HTTP/1.1\r\n" + HOST),
    "a method of 9 KiB": (400, b"A" * 9000),
}
