"""
Pictures in, JSON or a picture out: `Upload` and `Binary`.

    mlserve run 07_image_upload:server
    curl -F image=@cat.jpg http://127.0.0.1:8000/v1/models/colour/predict
    curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' -o small.png \
        http://127.0.0.1:8000/v1/models/thumbnail/predict

Needs `pip install pillow`.
"""

import io
import sys

import httpx2
from PIL import Image, ImageOps
from pydantic import BaseModel

from mlserve import Binary, InvalidInputError, Limits, ModelHandler, ModelServer, Upload
from mlserve.testing import running


class Picture(BaseModel):
    image: Upload  # the only field, so the raw file is taken as well as a form


def decode(picture: Picture) -> Image.Image:
    try:
        return Image.open(io.BytesIO(picture.image.content)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise InvalidInputError("This is no picture that can be read.", param="image") from exc


def as_png(image: Image.Image) -> bytes:
    image.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


class Colour(ModelHandler[Picture, list[int]]):
    def preprocess(self, request: Picture) -> Image.Image:
        return decode(request).resize((1, 1), Image.Resampling.BOX)

    def infer(self, inputs: list[Image.Image]) -> list[list[int]]:
        return [list(pixel.tobytes()) for pixel in inputs]


class Thumbnail(ModelHandler[Picture, Binary]):
    def preprocess(self, request: Picture) -> Image.Image:
        return ImageOps.contain(decode(request), (64, 64))

    def infer(self, inputs: list[Image.Image]) -> list[Binary]:
        return [Binary(as_png(image), media_type="image/png") for image in inputs]


server = ModelServer(title="Pictures").add("colour", Colour)
server.add("thumbnail", Thumbnail, limits=Limits(max_body_bytes=4 * 2**20))
app = server.build()


def check(client: httpx2.Client) -> None:
    png = as_png(Image.new("RGB", (640, 320), (200, 100, 50)))
    form = client.post("/v1/models/colour/predict", files={"image": ("a.png", png, "image/png")})
    print("mean colour:", colour := form.json())
    assert colour == [200, 100, 50]
    url, headers = "/v1/models/thumbnail/predict", {"Content-Type": "image/png"}
    small = Image.open(io.BytesIO(client.post(url, content=png, headers=headers).content))
    print("thumbnail:", small.format, small.size)
    assert small.size == (64, 32)
    refused = client.post(url, content=b"no picture", headers=headers).json()["error"]
    print(refused["message"])
    assert refused["code"] == "invalid_input"


if __name__ == "__main__":
    if "--check" in sys.argv:
        with running(server) as client:
            check(client)
    else:
        server.run()
