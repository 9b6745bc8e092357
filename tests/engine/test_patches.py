"""Changes to objects that are built already: they fit exactly, or fail by name."""

import pytest

from eft_server.engine.patches import overwrite, retype


class Theirs:
    def __init__(self) -> None:
        self.kept = 1


class Ours(Theirs):
    def twice(self) -> int:
        return 2 * self.kept


class Renamed:
    pass


def test_an_object_becomes_our_subclass_and_keeps_what_it_holds() -> None:
    built = Theirs()
    assert retype(built, Ours) is built
    assert retype(built, Ours).twice() == 2


@pytest.mark.parametrize("built", [Renamed(), None, type("Further", (Theirs,), {})()])
def test_what_is_not_exactly_the_class_that_ours_extends_is_refused_by_name(built: object) -> None:
    with pytest.raises(RuntimeError, match=rf"{type(built).__name__}.*Ours is not a subclass"):
        retype(built, Ours)


def test_what_is_overwritten_has_to_be_there() -> None:
    built = Theirs()
    assert overwrite(built, "kept", 5) == 1
    assert built.kept == 5
    with pytest.raises(RuntimeError, match=r"no 'keeps' in .*Theirs"):
        overwrite(built, "keeps", 5)
