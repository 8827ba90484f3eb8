"""Reading a JSON object: keys in any case, defaults, and errors that name the key."""

from __future__ import annotations

from typing import Any

import pytest

from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.fields import Fields


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ({"hostPort": 1, "HostPort": 2}, 1),
        ({"HostPort": 2, "hostPort": 1}, 1),
        ({"HostPort": 2, "HOSTPORT": 3}, 3),  # without an exact match the last one, as in Go
        ({"hostPort": None, "HostPort": 2}, None),
        ({"hostport": 4}, 4),
        ({"host_port": 4}, None),
        ({}, None),
    ],
)
def test_keys_match_exactly_first_and_then_in_any_case(raw: dict[str, Any], wanted: Any) -> None:
    assert Fields(raw).value("hostPort") == wanted
    assert Fields(raw).integer("hostPort", 0, 10) == wanted


def test_absent_and_null_leave_the_default() -> None:
    for fields in (Fields({}), Fields(dict.fromkeys("sbilo"))):
        assert fields.string("s", "default") == "default"
        assert fields.boolean("b", default=True) is True
        assert fields.integer("i", 0, 1) is None
        assert (fields.strings("l"), fields.items("l"), list(fields.objects("l"))) == ([], [], [])
        assert fields.section("o") is None


WRONG = [
    ("string", {"k": 5}, '"top.k" must be a string, found 5'),
    ("string", {"k": ["x"]}, '"top.k" must be a string, found a list'),
    ("string", {"k": "x\0"}, "without NUL"),
    ("string", {"k": "\udc80"}, "Unicode"),
    ("strings", {"k": "x"}, '"top.k" must be a list, found "x"'),
    ("strings", {"k": ["x", None]}, '"top.k[1]" must be a string, found none'),
    ("strings", {"k": ["x\0"]}, '"top.k[0]"'),
    ("boolean", {"k": "true"}, '"top.k" must be true or false, found "true"'),
    ("boolean", {"k": 1}, '"top.k" must be true or false, found 1'),
    ("section", {"k": []}, '"top.k" must be an object, found a list'),
    ("items", {"k": {}}, '"top.k" must be a list, found an object'),
    ("string", {"K": 1.5}, '"top.k" must be a string, found 1.5'),
    ("boolean", {"k": "x" * 100}, '"top.k" must be true or false, found a string'),
]


@pytest.mark.parametrize(("method", "raw", "words"), WRONG)
def test_a_value_of_another_type_is_code_7_that_names_the_key(
    method: str, raw: dict[str, Any], words: str
) -> None:
    with pytest.raises(CNIError) as caught:
        getattr(Fields(raw, "top"), method)("k")
    assert caught.value.code == 7
    assert words in caught.value.msg


def test_a_value_is_named_by_its_kind_however_deep_it_nests() -> None:
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(CNIError, match='"mtu" must be an integer, found a list'):
        Fields({"mtu": value}).integer("mtu", 0, 10)


@pytest.mark.parametrize("value", [True, False, 1.0, "1", [1], -1, 11, 10**30])
def test_an_integer_is_no_boolean_no_text_and_within_its_bounds(value: object) -> None:
    with pytest.raises(CNIError, match=r'"i" must be'):
        Fields({"i": value}).integer("i", 0, 10)


def test_paths_lead_through_sections_and_lists() -> None:
    document = Fields({"a": {"B": [{}, {"c": 5}]}})
    member = list(document.section("a").objects("b"))[1]
    assert (member.path, member.name("c")) == ("a.b[1]", "a.b[1].c")
    with pytest.raises(CNIError, match=r'"a\.b\[0\]" must be an object, found 1'):
        list(Fields({"b": [1]}, "a").objects("b"))
