"""
Pictures in, labels out: a vision transformer, of which each file is read and no code is run.

    mlserve run 18_image_classification:server
    curl -F image=@cat.jpg http://127.0.0.1:8000/v1/models/animals/predict

To need no model hub, the model is a tiny one with random weights, made in a temporary folder: its
labels mean nothing. For a real one give `ImageClassification` the name of a model on the hub, such
as "google/vit-base-patch16-224". Needs `pip install 'mlserve[transformers]'`.
"""

import functools
import io
import sys
import tempfile

import httpx2
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from mlserve import ModelServer
from mlserve.huggingface import ImageClassification
from mlserve.testing import running

LABELS = ["cat", "dog", "fish"]


def make_model(folder: str) -> str:
    """Save a model as a folder from the hub has it: weights, configuration, image processor."""
    torch.manual_seed(7)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


temporary = tempfile.TemporaryDirectory()
model = make_model(temporary.name)

server = ModelServer(title="Pictures")
server.add("animals", functools.partial(ImageClassification, model, top_k=3))
app = server.build()


def check(client: httpx2.Client) -> None:
    Image.new("RGB", (640, 480), "orange").save(buffer := io.BytesIO(), "JPEG")
    url = "/v1/models/animals/predict"
    form = client.post(url, files={"image": ("cat.jpg", buffer.getvalue(), "image/jpeg")})
    for each in form.json()["scores"]:
        print(f"{each['score']:.2f}  {each['label']}")
    assert {each["label"] for each in form.json()["scores"]} == set(LABELS)
    assert abs(sum(each["score"] for each in form.json()["scores"]) - 1) < 1e-3

    refused = client.post(url, content=b"%!PS-Adobe", headers={"Content-Type": "image/jpeg"})
    print(f" 422  {refused.json()['error']['message']}")
    assert refused.status_code == 422


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
