"""A folder of results takes no others."""

import json

import pytest

from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.engine.settings import digest, keep_settings, refuse_others

SETTINGS = dict(seed=3, size=(2, 5), rate=0.1, options={}, name=None)


def test_the_same_settings_may_go_on(tmp_path):
    file = tmp_path / 'deep' / 'note.json'
    for begun in (False, True, True):
        keep_settings(file, SETTINGS, begun)
    assert json.loads(file.read_text())['size'] == [2, 5]


def test_what_differs_is_named_with_both_values_where_they_are_short(tmp_path):
    file = tmp_path / 'note.json'
    keep_settings(file, SETTINGS, begun=False)
    others = dict(SETTINGS, seed=4, size=(2, 6), options=dict.fromkeys('abcdefghijk', 'long'))
    named = r'\(options; seed 3, not 4; size \[2, 5\], not \[2, 6\]\): name another folder'
    with pytest.raises(UserError, match=named):
        keep_settings(file, others, begun=True)
    with pytest.raises(UserError, match=r'not \[2, 6\]\): name another --option\.$'):
        keep_settings(file, others, begun=True, way_out='name another --option')
    assert json.loads(file.read_text())['seed'] == 3


def test_settings_that_an_earlier_version_noted_are_not_compared_one_by_one(tmp_path):
    fewer = dict(SETTINGS)
    del fewer['seed']
    for noted, wanted in ((fewer, SETTINGS), (SETTINGS, fewer)):
        with pytest.raises(UserError, match='earlier version, .* settings: name another --option'):
            refuse_others(noted, wanted, tmp_path, 'name another --option')


def test_a_folder_without_results_takes_any_settings(tmp_path):
    file = tmp_path / 'note.json'
    keep_settings(file, dict(seed=7), begun=False)
    keep_settings(file, SETTINGS, begun=False)
    keep_settings(file, SETTINGS, begun=True)


@pytest.mark.parametrize('note', [None, '', '{', '[1]', '"text"', '\udcff'])
def test_results_that_say_nothing_of_their_settings_are_left_alone(note, tmp_path):
    file = tmp_path / 'note.json'
    if note is not None:
        file.write_text(note, errors='surrogateescape')
    for agreed in {False, note is not None}:
        with pytest.raises(UserError, match='note.json there does not say of which settings: name'):
            keep_settings(file, SETTINGS, begun=True, agreed=agreed)


def test_results_that_name_the_settings_themselves_get_the_note(tmp_path):
    file = tmp_path / 'note.json'
    keep_settings(file, SETTINGS, begun=True, agreed=True)
    keep_settings(file, SETTINGS, begun=True)
    with pytest.raises(UserError, match='seed 3, not 4'):
        keep_settings(file, dict(SETTINGS, seed=4), begun=True, agreed=True)


def test_a_digest_is_of_the_content_whatever_its_order():
    assert digest(dict(a=1, b=dict(c=2, d=[3]))) == digest(dict(b=dict(d=[3], c=2), a=1))
    assert digest(dict(a=1)) != digest(dict(a=2))


def test_keys_of_several_types_are_summed_up_too():
    mixed = {1: 'a', 'b': [{None: 2, 'c': (3,)}]}
    assert digest(mixed) == digest(dict(reversed(mixed.items())))
    assert digest(mixed) != digest({**mixed, 1: 'c'})


def test_sums_of_configs_do_not_depend_on_the_process():
    """Sets have an order of their own in each, and functions an address."""

    def made():
        def function():
            pass

        return function

    first, second = ({0, 8}, {8, 0})
    assert list(first) != list(second)
    assert digest(dict(keys=first, call=made())) == digest(dict(keys=second, call=made()))
    assert digest(dict(keys=first)) != digest(dict(keys={0, 9}))
