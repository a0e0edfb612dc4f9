"""Settings of any kind are taken, or refused in one line."""

import contextlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hne_tf.errors import InputError
from hne_tf.models.architectures import ARCHITECTURES
from hne_tf.objectives import OBJECTIVES
from hne_tf.training import build
from hne_tf.training.config import check, default, digest, from_json

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 8)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "on", "off", "small", "large", *ARCHITECTURES, *OBJECTIVES])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def fields():
    """Names of all fields, as paths."""

    def walk(section, prefix):
        for name, value in section.items():
            yield (*prefix, name)
            if isinstance(value, dict):
                yield from walk(value, (*prefix, name))

    return list(walk(default().to_dict(), ()))


CHANGES = st.lists(st.tuples(st.sampled_from(fields()), VALUES), max_size=6)


def changed(changes):
    """Default settings as JSON values, with some of them replaced, sections too."""
    settings = json.loads(json.dumps(default().to_dict()))
    for path, value in changes:
        section = settings
        for name in path[:-1]:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section[path[-1]] = value
    return settings


@given(changes=CHANGES)
def test_settings_of_any_kind_are_read_or_refused(bounded, changes):
    # Whatever else is raised is a fault.
    with contextlib.suppress(InputError), bounded():
        config = from_json(changed(changes))
        check(config)
        digest(config)
        assert build.tree(config).leaves >= 1


@given(content=VALUES)
@example(content={"": {}})
def test_anything_else_is_refused(bounded, content):
    sections = isinstance(content, dict) and content.keys() <= set(default().keys())
    refusal = contextlib.suppress(InputError) if sections else pytest.raises(InputError)
    with refusal, bounded():
        check(from_json(content))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"optimiser": {"momentum": 0.5}}, "optimiser"),
        ({"optimiser": {}}, "optimiser"),
        ({"model": {"resnet": {"width": (8,)}}}, "model.resnet.width"),
        ({"data": {"flips": True}}, "data.flips"),
    ],
)
def test_a_misspelt_setting_is_named(fields, name):
    with pytest.raises(InputError, match=f"got '{name}'"):
        from_json(fields)


def test_a_class_of_ones_own_has_settings_of_any_name():
    settings = {"depth": 3, "widths": {"first": 8}}
    config = from_json({"model": {"architecture": "mine:Net", "settings": settings}})
    assert config.model.settings.to_dict() == settings
