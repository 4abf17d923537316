"""A web server in Python, which tells as whom and where it runs."""

import os
from http.server import BaseHTTPRequestHandler, HTTPServer


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        who = f"{os.getuid()}:{os.getgid()} {os.getgroups()} in {os.getcwd()}"
        self.wfile.write(f"hello from Python as {who}\n".encode())


HTTPServer(("", int(os.environ["PORT"])), Hello).serve_forever()
