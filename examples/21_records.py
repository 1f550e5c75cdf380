"""
A row for every request, in a database, and a call once there are enough of them to retrain.

    mlserve run 21_records:server
    curl --json '{"text": "lovely"}' http://127.0.0.1:8000/v1/models/sentiment/predict
    sqlite3 records.db 'SELECT time, status, total_ms, request, response FROM mlserve_records'

Rows are written in the background, once the answer is sent. `pip install 'mlserve[sql]'`; with
`mlserve[postgres]` and a URL such as `postgresql+asyncpg://user:password@host/db` they go there.
"""

import shutil
import sqlite3
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import httpx2
from pydantic import BaseModel

from mlserve import Call, ModelHandler, ModelServer
from mlserve.integrations.sql import SqlSink
from mlserve.records import EveryN, InferenceRecord, SinkOptions
from mlserve.testing import running

DATABASE = Path("records.db")
if "--check" in sys.argv:
    DATABASE = Path(tempfile.mkdtemp()) / "records.db"


class Review(BaseModel):
    text: str
    author: str = "nobody"


class Sentiment(ModelHandler[Review, float]):
    def preprocess(self, request: Review, call: Call) -> str:
        call.annotate(n_words=len(request.text.split()))  # stands in the record, and in the log
        return request.text

    def infer(self, inputs: list[str]) -> list[float]:
        return [1.0 if "love" in text else 0.0 for text in inputs]


def retrain(record: InferenceRecord) -> None:
    print(f"100 more requests, the last one at {record.time}: train {record.model} anew")


rows = SqlSink(
    f"sqlite+aiosqlite:///{DATABASE}",
    retention=timedelta(days=30),
    options=SinkOptions(keep_payloads=True, redact=["author"]),
)
server = ModelServer(title="Reviews", sinks=[rows, EveryN(100, retrain)])
server.add("sentiment", Sentiment)
app = server.build()


def check(client: httpx2.Client) -> None:
    for number in range(100):
        review = {"text": f"I love it, {number} times", "author": "Ada"}
        assert client.post("/v1/models/sentiment/predict", json=review).json() == 1.0
    assert client.post("/v1/models/sentiment/predict", json={"txt": ""}).status_code == 422


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
        with sqlite3.connect(DATABASE) as database:  # the end has written what still waited
            sql = "SELECT status, count(*), min(request) FROM mlserve_records GROUP BY status"
            print(found := database.execute(sql).fetchall())
        assert [(status, n) for status, n, _ in found] == [(200, 100), (422, 1)]
        assert "Ada" not in str(found)
        shutil.rmtree(DATABASE.parent)
    else:
        server.run()
