"""An emulator of Cloud Storage in this process, for gcsfs and for tensorstore.

The one that is published knows neither generations nor conditions, without which tensorstore writes
nothing; they are added here. And what Cloud Storage cannot do, appending and renaming, fails.
"""

import contextlib
import http.server
import io
import json
import re
import threading
from urllib.parse import parse_qs, unquote, urlparse

import gcp_storage_emulator.server
import pytest
from gcp_storage_emulator.exceptions import NotFound

# While it is set, every request of gcsfs fails.
outage = threading.Event()
_one_at_a_time = threading.Lock()


class _Handler(gcp_storage_emulator.server.RequestHandler):
    def _generation(self, body=b""):
        """Returns the generation of the object asked for; "0" where there is none."""
        url = urlparse(self.path)
        match = re.fullmatch(r".*/b/([^/]+)/o(?:/([^/]+))?", url.path)
        if match is None:
            return None
        name = match[2] or parse_qs(url.query).get("name", [""])[0]
        if not name and (said := re.search(rb'"name": "([^"]+)"', body)):
            name = said[1].decode()
        try:
            return self.storage.get_file_obj(match[1], unquote(name))["generation"]
        except NotFound:
            return "0"

    def end_headers(self):
        if self.command == "GET":
            self.send_header("x-goog-generation", self._generation() or "0")
        super().end_headers()

    def _answer(self, answer):
        """Answers as the emulator does, but where a condition does not hold."""
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else b""
        if length:
            self.rfile = io.BytesIO(body)
        with _one_at_a_time:
            (wanted,) = parse_qs(urlparse(self.path).query).get("ifGenerationMatch", [None])
            if wanted is None or wanted == self._generation(body):
                answer()
                return
        content = json.dumps({"error": {"code": 412, "message": "conditionNotMet"}}).encode()
        self.send_response(412)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self._answer(super().do_GET)

    def do_POST(self):
        self._answer(super().do_POST)

    def do_DELETE(self):
        self._answer(super().do_DELETE)


@contextlib.contextmanager
def running():
    """Runs the emulator; gives the name of its only bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcp_storage_emulator.server, "RequestHandler", _Handler)
        # Else a connection that says nothing yet would stop all others.
        patch.setattr(http.server, "HTTPServer", http.server.ThreadingHTTPServer)
        server = gcp_storage_emulator.server.create_server(
            "localhost", 0, in_memory=True, default_bucket="bucket"
        )
        server.start()
        # A reader that has read enough hangs up.
        server._api._httpd.handle_error = lambda *_: None
        url = f"http://localhost:{server._api._httpd.server_address[1]}"
        for name, value in {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }.items():
            patch.setenv(name, value)
        import gcsfs  # reads the environment

        def refuse(*_args, **_kwargs):
            raise AssertionError("objects cannot be renamed")

        original = gcsfs.GCSFileSystem.open

        def never_append(self, path, mode="rb", *args, **kwargs):
            assert "a" not in mode, "objects cannot be appended"
            return original(self, path, mode, *args, **kwargs)

        call = gcsfs.GCSFileSystem._call

        async def may_fail(self, *args, **kwargs):
            if outage.is_set():
                raise gcsfs.retry.HttpError({"code": 503, "message": "it fails"})
            return await call(self, *args, **kwargs)

        patch.setattr(gcsfs.GCSFileSystem, "_call", may_fail)
        for name in ("mv", "rename", "move", "mv_file"):
            patch.setattr(gcsfs.GCSFileSystem, name, refuse, raising=False)
        patch.setattr(gcsfs.GCSFileSystem, "open", never_append)
        try:
            yield "gs://bucket"
        finally:
            server.stop()
