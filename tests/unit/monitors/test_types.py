"""Hook points by name."""

import pytest

from monitors.types import HookKind, HookPoint


@pytest.mark.parametrize("text", ["blocks.0.hook_resid_pre", "blocks.12.hook_resid_post"])
def test_a_hook_point_is_written_as_it_is_read(text):
    assert str(HookPoint.parse(text)) == text


def test_layer_and_kind():
    assert HookPoint.parse("blocks.12.hook_resid_pre") == HookPoint(12, HookKind.RESID_PRE)


@pytest.mark.parametrize(
    "text", ["12", "blocks.-1.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post "]
)
def test_anything_else_is_an_error_that_says_the_form(text):
    with pytest.raises(ValueError, match=r"expected 'blocks.<layer>.hook_resid_pre'"):
        HookPoint.parse(text)
