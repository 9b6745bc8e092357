"""Families of real shapes are families: their members' ids agree, though their vocabularies are padded differently."""

from eft_server.bench.shapes import SHAPES, TOKENS, write_family
from eft_server.family.inspection import inspect_family
from eft_server.family.load import load_config


def test_a_family_of_shapes_passes_the_checks_and_is_written_once(tmp_path):
    path = write_family("qwen25-7b-shapes", tmp_path)
    report = inspect_family(load_config(str(path)))
    sizes = [round(member.parameters / 1e9, 1) for member in report.members]
    assert sizes == [7.6, 0.5, 0.5]
    assert [member.vocab_size for member in report.members] == [152_064, 151_936, 151_936]
    path.write_text("mine")
    assert write_family("qwen25-7b-shapes", tmp_path).read_text() == "mine"


def test_every_shape_has_room_for_the_tokens():
    assert all(member["vocab_size"] >= TOKENS for shapes in SHAPES.values() for member in shapes)
