"""A handler of the kind that many have already, for gate mode `status`: 200 approves, 403 refuses, nothing is signed.

    CERTIFICATE=server.pem KEY=server.key CLIENT_CA=signers-ca.pem PORT=8090 python gate.py

Weaker than a signed answer: whoever takes over the signer's networked process can approve. Only mutual TLS keeps
strangers out, so CLIENT_CA is not optional here.
"""

import json
import os
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ALLOWED_SIGNERS = os.environ.get("SIGNERS", "").split()
MAX_BODY_BYTES = 512 * 1024


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_POST(self):
        length = int(self.headers.get("content-length", "-1"))
        if not 0 <= length <= MAX_BODY_BYTES:
            self.close_connection = True
            return self.answer(413)
        try:
            info = json.loads(self.rfile.read(length))["signerInfo"]
            allowed = info["kind"] == "Signing" and info["signer_id"] in ALLOWED_SIGNERS
        except (ValueError, KeyError, TypeError):
            return self.answer(400)
        return self.answer(200 if allowed else 403)

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    def get_request(self):
        connection, address = self.socket.accept()
        connection.settimeout(Handler.timeout)
        # The handshake is the thread's: a slow one holds up nobody else.
        return tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address


tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=os.environ["CLIENT_CA"])
tls.verify_mode = ssl.CERT_REQUIRED
tls.load_cert_chain(os.environ["CERTIFICATE"], os.environ["KEY"])
Server((os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8090"))), Handler).serve_forever()
