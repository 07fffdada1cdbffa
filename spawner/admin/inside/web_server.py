"""Answers every request with a word, for at most a minute. Arguments: port, word."""

from __future__ import annotations

import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

signal.alarm(60)
port, word = int(sys.argv[1]), sys.argv[2].encode()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(word)))
        self.end_headers()
        self.wfile.write(word)


ThreadingHTTPServer(("", port), Answer).serve_forever()
