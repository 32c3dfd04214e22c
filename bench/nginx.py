"""A fast static server with the face of the API: nginx, one worker, one core.

Knows nothing of who asks. `with static_server(core) as base_url:`.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPLY_TOKENS = 200
_WORDS = "the answer is long and plain so that it has about as many tokens as words "

CONFIG = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{ default_type application/json; return 200 '{body}'; }}
  }}
}}
"""


def reply_body() -> str:
    """A chat completion of REPLY_TOKENS tokens, in the API's full shape."""
    words = (_WORDS * (REPLY_TOKENS // len(_WORDS.split()) + 1)).split()[:REPLY_TOKENS]
    return json.dumps(
        {
            "id": "chatcmpl-static",
            "object": "chat.completion",
            "created": 1700000000,
            "model": "gpt-4o-2024-08-06",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": " ".join(words), "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 90,
                "completion_tokens": REPLY_TOKENS,
                "total_tokens": 90 + REPLY_TOKENS,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
            },
            "service_tier": "default",
            "system_fingerprint": "fp_static",
        }
    )


@contextlib.contextmanager
def static_server(core: int) -> Iterator[str]:
    """Base URL of a server pinned to `core`. Raises SystemExit where nginx is not installed."""
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if nginx is None:
        raise SystemExit("this benchmark needs nginx (Debian: apt-get install nginx-light)")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nginx.conf"
        path.write_text(CONFIG.format(folder=folder, port=port, body=reply_body()))
        server = subprocess.Popen(["taskset", "-c", str(core), nginx, "-c", str(path), "-p", folder])
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait()


def _wait_for(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit("nginx did not start")
