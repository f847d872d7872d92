"""Answers of ``vllm serve`` as they look, and a server that gives them."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tpcli.rollout.vllm_server import COMPLETIONS, GENERATE

GENERATED = json.loads(
    """{"request_id": "generate-tokens-1", "model": "m", "choices": [
    {"index": 1, "finish_reason": "length", "stop_reason": null, "token_ids": [9, 4],
     "logprobs": {"content": [
       {"token_id": 9, "logprob": -0.5, "rank": 1, "top_logprobs": []},
       {"token_id": 4, "logprob": -1.25, "rank": 3, "top_logprobs": []}]},
     "weight_versions": [{"version": "7", "start": 0, "end": 2}]},
    {"index": 0, "finish_reason": "stop", "stop_reason": 2, "token_ids": [2],
     "logprobs": {"content": [
       {"token_id": 2, "logprob": -0.125, "rank": 1, "top_logprobs": []}]},
     "weight_versions": [{"version": "7", "start": 0, "end": 1}]}]}"""
)
COMPLETED = json.loads(
    """{"object": "text_completion", "choices": [
    {"index": 0, "text": "", "finish_reason": "stop", "token_ids": [2], "logprobs":
      {"tokens": ["token_id:2"], "token_logprobs": [-0.125],
       "top_logprobs": [{"token_id:2": -0.125}], "text_offset": [0]}},
    {"index": 1, "text": "", "finish_reason": "length", "token_ids": [9, 4], "logprobs":
      {"tokens": ["token_id:9", "token_id:4"], "token_logprobs": [-0.5, -1.25],
       "top_logprobs": [{"token_id:9": -0.5}, {"token_id:4": -1.25}], "text_offset": [0, 10]}}]}"""
)

Reply = Callable[[dict[str, Any]], Any]


class FakeServer:
    """As much of ``vllm serve`` as the client sees; ``replies`` change what a path answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.replies: dict[str, Reply] = {
            "/v1/models": lambda _: {"data": [{"id": "m", "root": "/m", "max_model_len": 64}]},
            "/is_paused": lambda _: {"is_paused": False},
            GENERATE: self._generate,
            COMPLETIONS: self._complete,
            "/pause?mode=wait": lambda _: {"status": "paused"},
            "/collective_rpc": lambda _: {"results": [None]},
            "/reset_prefix_cache": lambda _: {"success": True},
            "/reset_encoder_cache": lambda _: None,
            "/update_weight_version": self._label,
            "/resume": lambda _: {"status": "resumed"},
        }
        self.version = "default"
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _label(self, body: dict[str, Any]) -> None:
        self.version = body["new_version"]

    def _generate(self, body: dict[str, Any]) -> Any:
        settings = body["sampling_params"]
        entry = {"token_id": 9, "logprob": 0.0, "top_logprobs": []}
        choice = {
            "finish_reason": "length",
            "token_ids": [9],
            "logprobs": {"content": [entry]},
            "weight_versions": [{"version": self.version, "start": 0, "end": 1}],
        }
        return {"choices": [choice | {"index": i} for i in range(settings["n"])]}

    def _complete(self, body: dict[str, Any]) -> Any:
        top = {f"token_id:{token}": -float(token) for token in body["logprob_token_ids"]}
        return {"choices": [{"logprobs": {"top_logprobs": [top]}}]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any]) -> None:
                fake.asked.append((self.path, body))
                reply = fake.replies.get(self.path)
                answer = reply(body) if reply else 404
                if answer == "die":
                    self.connection.close()
                    return
                status = answer if isinstance(answer, int) else 200
                text = json.dumps({"error": "no"} if isinstance(answer, int) else answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                return

        return Handler
