"""`Upload` and `Binary` as values and as fields of pydantic models."""

import dataclasses

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from mlserve.payloads import Binary, Upload


class Scan(BaseModel):
    image: Upload
    note: str = ""


def test_an_upload_is_taken_as_it_is() -> None:
    image = Upload(b"GIF89a", content_type="image/gif", name="dot.gif")

    assert Scan(image=image).image is image


def test_a_text_is_no_upload() -> None:
    with pytest.raises(ValidationError):
        Scan.model_validate({"image": "GIF89a"})


def test_both_stand_in_a_schema_as_a_file() -> None:
    file = {"type": "string", "format": "binary"}

    assert Scan.model_json_schema()["properties"]["image"].items() >= file.items()
    assert TypeAdapter(Binary).json_schema() == file


def test_what_is_logged_of_a_file_never_holds_its_bytes() -> None:
    upload = Upload(b"secret", content_type="image/gif", name="dot.gif")
    binary = Binary(b"secret", media_type="image/gif")

    for text in (repr(upload), str(upload), repr(binary), str(binary)):
        assert "secret" not in text
    assert repr(upload) == "<Upload 'dot.gif' image/gif, 6 bytes>"
    assert repr(binary) == "<Binary image/gif, 6 bytes>"
    assert Scan(image=upload).model_dump_json() == (
        '{"image":"<Upload \'dot.gif\' image/gif, 6 bytes>","note":""}'
    )


def test_a_binary_can_be_made_of_text() -> None:
    assert Binary.from_text("é") == Binary(b"\xc3\xa9", "text/plain; charset=utf-8")
    assert Binary.from_text("a,b", "text/csv").media_type == "text/csv"


@pytest.mark.parametrize("payload", [Upload(b""), Binary(b"")], ids=["upload", "binary"])
def test_both_are_frozen(payload: Upload | Binary) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        payload.content = b"x"  # type: ignore[misc]  # this is what must fail


def test_bytes_of_an_unknown_kind_are_an_octet_stream() -> None:
    assert Upload(b"").content_type == Binary(b"").media_type == "application/octet-stream"
    assert Upload(b"").name is None
