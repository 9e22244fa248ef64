"""Mechanics of semantic de-duplication with an embedder whose meanings are known: the first word of a text is its meaning."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
import zstandard

from data_tools.cli import main as huatuo_data
from data_tools.collect.duplicates import KEPT, keep_preferred
from data_tools.collect.semantic import EndpointEmbedder, open_embedder, similar_meanings
from data_tools.collect.settings import Semantic
from huatuo_jax.errors import ConfigError, DataError


def meaning(text: str) -> list[float]:
    seed = int.from_bytes(hashlib.blake2b(text[:2].encode(), digest_size=4).digest(), "little")
    noise = np.random.default_rng(len(text)).normal(size=16) * 0.01
    return (np.random.default_rng(seed).normal(size=16) + noise).tolist()


class Server(BaseHTTPRequestHandler):
    calls: ClassVar[list[dict]] = []
    broken = False

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.calls.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        rows = [{"index": i, "embedding": meaning(text)} for i, text in enumerate(body["input"])][::-1]
        content = b"<html>busy</html>" if Server.broken else json.dumps({"data": rows}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        pass


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Server.calls, Server.broken = [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_asked_in_batches_and_its_answers_put_in_order(endpoint, monkeypatch):
    monkeypatch.setenv("EMBEDDINGS_API_KEY", "secret")
    texts = [f"{i:02} text" for i in range(70)]
    vectors = EndpointEmbedder(endpoint, "small").embed(texts)
    assert np.allclose(vectors, [meaning(text) for text in texts], atol=1e-6)
    assert [(len(call["input"]), call["path"], call["model"], call["key"]) for call in Server.calls] == [
        (64, "/v1/embeddings", "small", "Bearer secret"),
        (6, "/v1/embeddings", "small", "Bearer secret"),
    ]


@pytest.mark.parametrize("cluster", [10_000, 50])
def test_same_meanings_are_found_within_clusters(cluster):
    pytest.importorskip("faiss")
    source = np.random.default_rng(0)
    topics = source.normal(size=(100, 32))
    vectors = (np.repeat(topics, 3, axis=0) + 0.01 * source.normal(size=(300, 32))).astype(np.float32)
    settings = Semantic("folder", threshold=0.95, cluster=cluster)
    copies = keep_preferred(similar_meanings(vectors, settings), 300)
    assert np.array_equal(copies, np.where(np.arange(300) % 3 == 0, KEPT, np.arange(300) // 3 * 3))
    assert np.array_equal(similar_meanings(vectors, settings), similar_meanings(vectors, settings))


def test_a_run_keeps_the_preferred_text_of_each_meaning_and_asks_once(tmp_path, endpoint):
    rows = [
        ("头痛时应当多休息，避免强光刺激，保持充足的睡眠时间。", "a"),
        ("头痛的人要睡好觉，少看屏幕，环境安静一些更有帮助。", "b"),
        ("腹泻时需要补充水分与盐，防止身体脱水，必要时就医。", "a"),
    ]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": text, "source": source}) + "\n" for text, source in rows))
    words = [
        "collect",
        tmp_path / "raw.jsonl",
        "--any-domain",
        "--embedder",
        endpoint,
        "--semantic-model",
        "m",
        "--source-priority",
        "b",
    ]
    words += ["--out", tmp_path / "out", "--quiet"]
    Server.broken = True
    assert huatuo_data([*map(str, words)]) == 1
    Server.broken, Server.calls = False, []
    for _ in range(2):
        assert huatuo_data([*map(str, words)]) == 0
    content = zstandard.decompress((tmp_path / "out" / "passages" / "raw.jsonl.zst").read_bytes(), 1 << 20)
    assert [json.loads(line)["text"] for line in content.splitlines()] == [rows[1][0], rows[2][0]]
    assert [len(call["input"]) for call in Server.calls] == [3]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["drops"]["same meaning"]["texts"] == 1


def test_an_answer_that_is_no_embedding_is_told(endpoint):
    Server.broken = True
    with pytest.raises(DataError, match="gives no embeddings"):
        EndpointEmbedder(endpoint, "m").embed(["text"])


@pytest.mark.parametrize("settings", [{"embedder": "http://x/v1"}, {"embedder": "folder", "threshold": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        Semantic(**settings)


def test_a_password_in_the_url_is_refused_without_showing_it(tmp_path, capsys):
    (tmp_path / "raw.jsonl").write_text(json.dumps({"text": "text"}))
    for url in ("http://user:PASSWORD@host/v1", "http://user:PASS/WORD@host/v1", "https://PASSWORD@host"):
        words = ["collect", str(tmp_path / "raw.jsonl"), "--any-domain", "--embedder", url, "--out", str(tmp_path / "out")]
        assert huatuo_data(words) == 2
        printed = "".join(capsys.readouterr())
        assert "without user name or password" in printed and "WORD" not in printed
    assert not (tmp_path / "out").exists()


def test_a_key_of_a_file_with_a_line_end_is_sent_without_it(endpoint, monkeypatch):
    monkeypatch.setenv("EMBEDDINGS_API_KEY", "sk-secret\r\n")
    EndpointEmbedder(endpoint, "m").embed(["text"])
    assert Server.calls[0]["key"] == "Bearer sk-secret"


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("EMBEDDINGS_API_KEY", "sk-secret\rX: y")
    with pytest.raises(ConfigError, match="EMBEDDINGS_API_KEY holds a blank") as refused:
        EndpointEmbedder("http://host/v1", "m").embed(["text"])
    assert "sk-" not in str(refused.value)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(ConfigError, match="no folder of a sentence-transformers model"):
        open_embedder(Semantic(str(tmp_path / "none")))
