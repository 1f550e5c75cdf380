"""
An endpoint of your own: a database session, a model, and a row written after the answer.

    mlserve run 05_own_endpoint:server
    curl --json '"a good film"' http://127.0.0.1:8000/judge

Needs `pip install 'sqlalchemy[asyncio]' aiosqlite`; the database is a temporary file.
"""

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx2
from fastapi import BackgroundTasks, Body, Depends, FastAPI, Request
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from mlserve import Model, ModelHandler, ModelServer
from mlserve.testing import running


class Sentiment(ModelHandler[str, str]):
    def infer(self, inputs: list[str]) -> list[str]:
        return ["positive" if "good" in review else "negative" for review in inputs]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # around the models: before, and after
    with tempfile.TemporaryDirectory() as folder:
        engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/verdicts.db", pool_size=5)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE verdicts (review TEXT, label TEXT)"))
        app.state.sessions = async_sessionmaker(engine)
        yield
        await engine.dispose()


async def open_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as session:
        yield session


# "function": closed when the endpoint returns; else only when a slow client has read its answer.
Session = Annotated[AsyncSession, Depends(open_session, scope="function")]
server = ModelServer(title="Reviews", lifespan=lifespan).add("sentiment", Sentiment)
app = server.build()
Sentiments = Annotated[Model, Depends(server.model("sentiment"))]


@app.post("/judge")
async def judge(
    review: Annotated[str, Body()], session: Session, model: Sentiments, tasks: BackgroundTasks
) -> dict[str, Any]:
    label = await model.predict(review)  # the same queue, and batches, as over mlserve's routes
    n_before = await session.scalar(text("SELECT count(*) FROM verdicts"))
    tasks.add_task(keep, review=review, label=label)  # runs once the answer is sent
    return {"label": label, "n_before": n_before}


async def keep(**row: str) -> None:
    async with app.state.sessions.begin() as session:  # its own: the endpoint's is closed by now
        await session.execute(text("INSERT INTO verdicts VALUES (:review, :label)"), row)


def check(client: httpx2.Client) -> None:
    answers = (client.post("/judge", json="so good").json() for _ in range(1000))
    print(next(answers))
    print(next(answer for answer in answers if answer["n_before"]))  # the first row is written


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
